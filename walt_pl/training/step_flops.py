"""Model operations of a training step of a stage, counted once on the meta device."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from walt_pl.data.batch import JointBatch
from walt_pl.models.denoiser import Denoiser
from walt_pl.models.vae import VAE
from walt_pl.text.small_encoder import SmallTextEncoder
from walt_pl.training.autoencoder_cost import AutoencoderTraining, autoencoder_cost, clip_flops
from walt_pl.training.denoiser_cost import Share, TextInput, denoiser_cost

PLAIN: Any = "math"
"""Attention whose operations are counted, whatever kernel runs: the fused ones compute the scores again in the backward pass."""


def step_flops(stage: nn.Module, batch: JointBatch, step: int) -> float | None:
    """Return the model operations of one training step on a rank's batch.

    They are those of the loss and its gradients, a multiplication and an addition as two. Included are the expected share of
    self-conditioning's first pass, the frozen encoders that run in the step, LPIPS, the discriminator's step, and the gradient penalty by
    its frequency. Not included is work that is done twice or in vain: layers recomputed by activation checkpointing, scores recomputed by
    attention kernels, and rows of the first pass that are then discarded. Optimisers do not count, nor do elementwise operations.
    Modules are built on the meta device, which draws no random numbers.

    Args:
        stage: the LightningModule.
        batch: a batch of this rank.
        step: number of the optimiser step: the discriminator may start later than the autoencoder.

    Returns:
        Operations; None for a stage whose operations are not known: neither a denoiser nor an autoencoder.
    """
    share = Share(len(batch.videos), len(batch.images))
    denoiser = getattr(stage, "denoiser", None)
    if isinstance(denoiser, Denoiser):
        config = replace(denoiser.config, attention=PLAIN, activation_checkpointing=False)
        cost = denoiser_cost(config, _text(stage, batch), share, torch.float32, None)
        return sum(cost.flops.values()) + _encoding(stage, batch)
    if isinstance(getattr(stage, "vae", None), VAE):
        shapes = [(len(x), 3, *x.shape[2:]) for x in (batch.videos, batch.images)]
        return sum(autoencoder_cost(autoencoder_training(stage, step), shapes, None).flops.values())
    return None


def has_discriminator(stage: Any, step: int) -> bool:
    """Return whether an optimiser step of a stage trains a discriminator."""
    return getattr(stage, "discriminator", None) is not None and step >= stage.adversarial_start


def autoencoder_training(stage: Any, step: int | None = None) -> AutoencoderTraining:
    """Return networks and terms of the loss of a `VAEStage`.

    Args:
        stage: the LightningModule.
        step: number of the optimiser step; None for one in which the discriminator has started.
    """
    discriminator = stage.discriminator if step is None or has_discriminator(stage, step) else None
    return AutoencoderTraining(
        stage.vae.config,
        discriminator.config if discriminator is not None else None,
        stage.perceptual == "lpips",
        stage.perceptual_frames,
        1 / stage.r1_every if stage.r1_weight else 0.0,
    )


def small_text(stage: nn.Module) -> TextInput | None:
    """Return the small text encoder that a stage trains; None if it trains none."""
    encoder = getattr(stage, "text", None)
    return TextInput(encoder.config.max_length, encoder.config) if isinstance(encoder, SmallTextEncoder) else None


def _text(stage: Any, batch: JointBatch) -> TextInput:
    """Return the text of a batch."""
    encoder = getattr(stage, "text_encoder", None)
    if encoder is None:
        return TextInput(1)
    if isinstance(encoder, SmallTextEncoder):
        return TextInput(encoder.config.max_length, encoder.config, is_trained=getattr(stage, "text", None) is encoder)
    with torch.no_grad():  # features are read from a file
        return TextInput(encoder.encode(batch.captions)[0].shape[1])


def _encoding(stage: Any, batch: JointBatch) -> int:
    """Return the operations of the frozen autoencoder on a batch of pixels."""
    if batch.space != "pixels" or not isinstance(vae := stage.vae, VAE):
        return 0
    clips = (batch.videos, batch.images, batch.low_res_videos, batch.low_res_images)
    shapes = [(len(x), 3, *x.shape[2:]) for x in clips if x is not None and len(x)]
    return sum(clip_flops(vae.config, shape)["encode"] for shape in shapes)
