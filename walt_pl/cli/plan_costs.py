"""Costs of the training steps of configured stages, for one GPU's share of a batch."""

import torch

from datamodules.joint import JointData
from stages.latent_diffusion import LatentDiffusion
from stages.vae import VAEStage
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.training.autoencoder_cost import ClipShape, autoencoder_cost
from walt_pl.training.denoiser_cost import Share, TextInput, denoiser_cost
from walt_pl.training.step_cost import StepCost
from walt_pl.training.step_flops import autoencoder_training, small_text


def share_of(data: JointData, gpus: int) -> Share:
    """Return the share of a batch of each of ``gpus`` GPUs.

    Raises:
        ValueError: the number of GPUs does not divide the batch.
    """
    for name in ("videos_per_batch", "image_stacks_per_batch"):
        if getattr(data, name) % gpus:
            raise ValueError(f"data.{name} counts the global batch and must be a multiple of the {gpus} GPUs, got {getattr(data, name)}")
    return Share(data.videos_per_batch // gpus, data.images_per_batch // gpus)


def is_compiled(compile: str | bool) -> bool:
    """Return whether a planned GPU runs compiled layers; `auto` compiles on GPUs."""
    return compile == "auto" or compile is True


def stage_cost(
    stage: LatentDiffusion,
    config: DenoiserConfig,
    share: Share,
    caption: int,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
    compiled: bool = False,
) -> StepCost:
    """Return the cost of a step of the base or a super-resolution stage, as `denoiser_cost` counts it.

    Args:
        stage: stage built on the meta device.
        config: config of its denoiser, possibly with activation checkpointing.
        share: one GPU's share of the batch.
        caption: tokens of a caption.
        dtype: dtype of weights and latents.
        autocast: dtype of autocast; None for no autocast.
        compiled: whether every layer is compiled.
    """
    return denoiser_cost(config, small_text(stage) or TextInput(caption), share, dtype, autocast, compiled)


def picture_size(data: JointData) -> tuple[int, int]:
    """Return rows and columns of the autoencoder's training pictures."""
    crop = data.clip_transform.crop
    return (crop, crop) if crop else data.clip_transform.shape(data.clip_transform.size)


def clip_shapes(data: JointData, share: Share) -> tuple[ClipShape, ClipShape]:
    """Return the shapes of a share's videos and images, pixels [b 3 t h w]."""
    picture = picture_size(data)
    return (share.videos, 3, data.clip_transform.frames, *picture), (share.images, 3, 1, *picture)


def vae_stage_cost(stage: VAEStage, data: JointData, share: Share, autocast: torch.dtype | None) -> StepCost:
    """Return the cost of a step of the autoencoder's stage, as `autoencoder_cost` counts it.

    Args:
        stage: stage built on the meta device.
        data: data module of the stage.
        share: one GPU's share of the batch.
        autocast: dtype of autocast; None for no autocast.
    """
    return autoencoder_cost(autoencoder_training(stage), clip_shapes(data, share), autocast)
