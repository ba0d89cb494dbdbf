"""Cost of a training step of the autoencoder and its discriminator, for one GPU's share of a batch."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from walt_pl.models.discriminator import Discriminator, DiscriminatorConfig
from walt_pl.models.losses import discriminator_loss, generator_loss, r1_penalty, select_frames
from walt_pl.models.vae import VAE, VAEConfig
from walt_pl.training.step_cost import StepCost, cost_of, sum_flops

ClipShape = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class AutoencoderTraining:
    """Networks and terms of the loss that a step of `VAEStage` runs."""

    vae: VAEConfig
    discriminator: DiscriminatorConfig | None
    """None where the step has no adversarial term."""
    perceptual: bool
    """True if the loss has LPIPS."""
    perceptual_frames: int | None
    """Frames of each clip in LPIPS; None for all."""
    r1_share: float
    """Share of the steps that have the gradient penalty."""

    def build(self) -> tuple[VAE, Discriminator | None, nn.Module | None]:
        """Return autoencoder, discriminator and LPIPS on the meta device."""
        with torch.device("meta"):
            discriminator = Discriminator(self.discriminator) if self.discriminator is not None else None
            return VAE(self.vae), discriminator, _perceptual() if self.perceptual else None


def autoencoder_cost(training: AutoencoderTraining, shapes: Sequence[ClipShape], autocast: torch.dtype | None) -> StepCost:
    """Return the cost of a step of the autoencoder and one of its discriminator, `VAEStage.training_step`.

    The gradient penalty counts in proportion to its frequency.

    Args:
        training: networks and terms of the loss.
        shapes: of the videos and of the images, [b 3 t h w] each; those without a clip are left out.
        autocast: dtype of autocast; None for no autocast.
    """
    shapes = [shape for shape in shapes if shape[0]]
    vae, discriminator, metric = training.build()
    modules = [module for module in (vae, discriminator, metric) if module is not None]

    def clips() -> list[Tensor]:
        return [torch.empty(shape) for shape in shapes]

    def generator() -> Tensor:
        reals, fakes, losses = clips(), [], []
        for x in reals:
            posterior = vae.encode(x)
            fakes.append(vae.decode(posterior.sample(torch.empty_like(posterior.mean))))
            losses += [(x - fakes[-1]).square().sum(), posterior.kl().sum()]
        if metric is not None:
            for y, x in zip(fakes, reals, strict=True):
                frames = min(x.shape[2], training.perceptual_frames or x.shape[2])
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
    often = training.r1_share
    turns = [reconstruct, plain, penalised] if often else [reconstruct, plain]
    return StepCost(
        sum_flops((1, reconstruct.flops), (1 - often, plain.flops), (often, penalised.flops)),
        sum_flops((1, reconstruct.forward), (1 - often, plain.forward), (often, penalised.forward)),
        max(turn.kept for turn in turns),
        max(turn.peak for turn in turns),
    )


def clip_flops(config: VAEConfig, shape: ClipShape, autocast: torch.dtype | None = None) -> dict[str, int]:
    """Return the operations of encoding and of decoding clips, by name: "encode", "decode".

    Args:
        config: of the autoencoder.
        shape: of the clips, [b 3 t h w].
        autocast: dtype of autocast; None for no autocast.
    """
    with torch.device("meta"):
        vae = VAE(config)
    (b, _, t, h, w), (ft, fh, fw) = shape, config.factors
    latents = (b, config.latent_channels, 1 + (t - 1) // ft, h // fh, w // fw)
    with torch.no_grad():
        passes = {
            "encode": cost_of(lambda: vae.encode(torch.empty(shape)).mean, [vae], autocast),
            "decode": cost_of(lambda: vae.decode(torch.empty(latents)), [vae], autocast),
        }
    return {name: round(sum(cost.flops.values())) for name, cost in passes.items()}


def _perceptual() -> nn.Module:
    """Return LPIPS without its weights."""
    import lpips

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision warns of the way in which lpips calls it
        metric: nn.Module = lpips.LPIPS(net="vgg", pnet_rand=True, pretrained=False, verbose=False)
    return metric.requires_grad_(False).to("meta")
