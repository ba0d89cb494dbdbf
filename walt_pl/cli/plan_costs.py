"""Costs of the training steps of the stages, for one GPU's share of a batch."""

import warnings
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from datamodules.joint import JointData
from stages.latent_diffusion import LatentDiffusion
from stages.vae import VAEStage
from walt_pl.blocks.frames import FrameLayout
from walt_pl.diffusion.condition import Condition
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.losses import discriminator_loss, generator_loss, r1_penalty, select_frames
from walt_pl.training.step_cost import StepCost, cost_of, sum_flops


@dataclass(frozen=True)
class Share:
    """One GPU's share of a batch: numbers of videos and images."""

    videos: int
    images: int

    @classmethod
    def of(cls, data: JointData, gpus: int) -> "Share":
        """Return the share of each of ``gpus`` GPUs.

        Raises:
            ValueError: the number of GPUs does not divide the batch.
        """
        for name in ("videos_per_batch", "image_stacks_per_batch"):
            if getattr(data, name) % gpus:
                raise ValueError(
                    f"data.{name} counts the global batch and must be a multiple of the {gpus} GPUs, got {getattr(data, name)}"
                )
        return cls(data.videos_per_batch // gpus, data.images_per_batch // gpus)


def diffusion_cost(
    stage: LatentDiffusion, config: DenoiserConfig, share: Share, caption: int, dtype: torch.dtype, autocast: torch.dtype | None
) -> StepCost:
    """Return the cost of a step of the base or a super-resolution stage, `LatentDiffusion.training_step`.

    Each pair of layers, spatial and spatiotemporal, costs as much as the pair before it. A deep model therefore runs with few layers, and
    the cost of the others is added.

    Args:
        stage: stage built on the meta device.
        config: config of its denoiser, possibly with activation checkpointing.
        share: one GPU's share of the batch.
        caption: tokens of a caption.
        dtype: dtype of weights and latents.
        autocast: dtype of autocast; None for no autocast.
    """
    few = 2 + config.depth % 2
    if config.depth <= few + 2:
        return _diffusion_cost(stage, config, share, caption, dtype, autocast)
    short, long = (_diffusion_cost(stage, replace(config, depth=layers), share, caption, dtype, autocast) for layers in (few, few + 2))
    pairs = (config.depth - few) // 2
    return StepCost(
        sum_flops((1 - pairs, short.flops), (pairs, long.flops)),
        sum_flops((1 - pairs, short.forward), (pairs, long.forward)),
        short.kept + pairs * (long.kept - short.kept),
        short.peak + pairs * (long.peak - short.peak),
    )


def _diffusion_cost(
    stage: LatentDiffusion, config: DenoiserConfig, share: Share, caption: int, dtype: torch.dtype, autocast: torch.dtype | None
) -> StepCost:
    c, layout = config, FrameLayout(share.videos, config.size[0], share.images)
    with torch.device("meta"):
        denoiser = Denoiser(config).to(dtype)
    encoder = getattr(stage, "text", None)
    modules = [denoiser] if encoder is None else [denoiser, encoder.to(dtype)]

    def words() -> Tensor:
        if encoder is None:
            return torch.empty(layout.num_samples, caption, c.text_width or 0, dtype=dtype)
        ids, mask = (torch.zeros(layout.num_samples, caption, dtype=kind) for kind in (torch.int64, torch.bool))
        text: Tensor = encoder(ids, mask)
        return text

    def forward() -> Tensor:
        step, mask = torch.zeros(layout.num_samples, dtype=torch.int64), torch.ones(layout.num_samples, caption, dtype=torch.bool)
        text = words() if c.text_width else None
        x = torch.empty(layout.total_frames, c.latent_channels, *c.size[1:], dtype=dtype)
        small = torch.empty(layout.total_frames, c.latent_channels, c.size[1] // 2, c.size[2] // 2, dtype=dtype)
        mask_frames = torch.empty_like(x[:, :1])
        condition = Condition(
            layout,
            mask[:, 0],
            text,
            mask,
            labels=step,
            context_latents=x,
            context_mask=mask_frames,
            low_res=small,
            noise_aug_level=step,
        )
        v = denoiser(x, step, condition, torch.empty_like(x) if c.self_conditioning else None)
        return (v - torch.empty_like(v)).square().mean()

    whole = cost_of(forward, modules, autocast)
    # The first pass of self-conditioning is a forward pass over a share p of the samples. The text is encoded once for both passes.
    p = stage.denoiser.config.self_conditioning
    if not p:
        return whole
    with torch.no_grad():
        text = cost_of(words, modules, autocast)
    return replace(whole, flops=sum_flops((1, whole.flops), (p, whole.forward), (-p, text.flops)))


def picture_size(data: JointData) -> tuple[int, int]:
    """Return rows and columns of the autoencoder's training pictures."""
    crop = data.clip_transform.crop
    return (crop, crop) if crop else data.clip_transform.shape(data.clip_transform.size)


def autoencoder_cost(stage: VAEStage, data: JointData, share: Share, autocast: torch.dtype | None) -> StepCost:
    """Return the cost of a step of the autoencoder and one of its discriminator, `VAEStage.training_step`.

    The gradient penalty counts in proportion to its frequency.

    Args:
        stage: stage built on the meta device.
        data: data module of the stage.
        share: one GPU's share of the batch.
        autocast: dtype of autocast; None for no autocast.
    """
    picture, dtype = picture_size(data), next(stage.parameters()).dtype
    shapes = [(share.videos, 3, data.clip_transform.frames, *picture), (share.images, 3, 1, *picture)]
    shapes = [shape for shape in shapes if shape[0]]
    metric = _perceptual() if stage.perceptual == "lpips" else None
    discriminator = stage.discriminator
    modules = [module for module in (stage, metric) if module is not None]

    def clips() -> list[Tensor]:
        return [torch.empty(shape, dtype=dtype) for shape in shapes]

    def generator() -> Tensor:
        reals, fakes, losses = clips(), [], []
        for x in reals:
            posterior = stage.vae.encode(x)
            fakes.append(stage.vae.decode(posterior.sample(torch.empty_like(posterior.mean))))
            losses += [(x - fakes[-1]).square().sum(), posterior.kl().sum()]
        if metric is not None:
            for y, x in zip(fakes, reals, strict=True):
                frames = min(x.shape[2], stage.perceptual_frames or x.shape[2])
                chosen = torch.arange(frames).expand(len(x), frames)
                losses.append(metric(select_frames(y, chosen), select_frames(x, chosen)).mean())
        if discriminator is not None:
            losses.append(generator_loss(torch.cat([discriminator(y) for y in fakes])).mean())
        return torch.stack(losses).sum()

    def judge(penalised: bool) -> Tensor:
        assert discriminator is not None
        real, fake = (torch.cat([discriminator(x) for x in side]) for side in (clips(), clips()))
        loss = discriminator_loss(real, fake).mean()
        if penalised:
            loss = loss + torch.cat([r1_penalty(x, discriminator(x)) for x in (x.requires_grad_() for x in clips())]).mean()
        return loss

    if discriminator is None:
        return cost_of(generator, modules, autocast)
    discriminator.requires_grad_(False)  # training_step alternates in this way
    reconstruct = cost_of(generator, modules, autocast)
    discriminator.requires_grad_(True)
    plain, penalised = (cost_of(partial(judge, penalised), modules, autocast) for penalised in (False, True))
    often = 1 / stage.r1_every if stage.r1_weight else 0.0
    turns = [reconstruct, plain, penalised] if often else [reconstruct, plain]
    return StepCost(
        sum_flops((1, reconstruct.flops), (1 - often, plain.flops), (often, penalised.flops)),
        sum_flops((1, reconstruct.forward), (1 - often, plain.forward), (often, penalised.forward)),
        max(turn.kept for turn in turns),
        max(turn.peak for turn in turns),
    )


def _perceptual() -> nn.Module:
    """Return LPIPS without its weights."""
    import lpips

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision warns of the way in which lpips calls it
        metric: nn.Module = lpips.LPIPS(net="vgg", pnet_rand=True, pretrained=False, verbose=False)
    return metric.requires_grad_(False).to("meta")
