"""From a condition and noise to latents. All sampling from a trained denoiser uses this code.

Conditions of training and of sampling are built here too, since both must pass the network the same inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from walt_pl.blocks.frames import FrameLayout
from walt_pl.blocks.transfer import to_device
from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.diffusion.ddim import Guidance, classifier_free_guidance, ddim
from walt_pl.diffusion.path import ProbabilityPath, add_noise
from walt_pl.models.compiled_blocks import are_compiled, pad_text
from walt_pl.models.denoiser import Denoiser
from walt_pl.models.latent_normalizer import LatentNormalizer
from walt_pl.sampling.cuda_graph import GraphedNetwork
from walt_pl.sampling.sampling_network import SamplingNetwork
from walt_pl.text.small_encoder import TextEncoder


def text_condition(
    encoder: TextEncoder | None, captions: Sequence[str], labels: Tensor | None, layout: FrameLayout, condition_kept: Tensor
) -> Condition:
    """Return captions and labels as a condition; an empty caption becomes the null.

    Args:
        encoder: of the captions; None for models without text.
        captions: one for each sample.
        labels: class numbers [s]; None for models without classes.
        layout: of the samples.
        condition_kept: [s] bool, false where caption and label are dropped.
    """
    if encoder is None:
        return Condition(layout, condition_kept, labels=labels)
    known = to_device(torch.tensor([bool(caption.strip()) for caption in captions], dtype=torch.bool), condition_kept.device)
    text, mask = encoder.encode(captions)
    return Condition(layout, condition_kept & known, text=text, text_mask=mask, labels=labels)


def with_low_res(condition: Condition, path: ProbabilityPath, low_res: Tensor, noise: Tensor, noise_aug_level: Tensor) -> Condition:
    """Return the condition with low-resolution latents, noised before the network upscales them (noise augmentation).

    Args:
        condition: of the samples.
        path: from clean latents to noise.
        low_res: low-resolution latents, normalised [f c h w].
        noise: standard normal [f c h w].
        noise_aug_level: noise augmentation level (a timestep) of each sample, int64 [s].
    """
    return replace(
        condition, low_res=add_noise(path, low_res, noise, condition.layout.per_frame(noise_aug_level)), noise_aug_level=noise_aug_level
    )


def with_context(condition: Condition, latents: Tensor) -> Condition:
    """Return the condition with normalised latents [b c 1|2 h w] as the context frames of its clips."""
    layout, count = condition.layout, latents.shape[2]
    clips = F.pad(latents, (0, 0, 0, 0, 0, layout.frames - count))
    return condition.with_context(layout.join(clips, clips[:0]), torch.full((layout.num_samples,), count, device=latents.device))


def unconditional(condition: Condition) -> Condition:
    """Return the condition of guidance's unconditional branch, without text, label and context frames.

    Text and context are one condition with one scale. Training drops them independently. This null (no text, no context) is 9 % of the
    samples, and the null that keeps the context only 1 %. Two scales (InstructPix2Pix, arXiv 2211.09800) would depend on the rare one,
    and take three evaluations a sampling step. Stable Video Diffusion also drops its image and all other conditions together.
    """
    return condition.without_text().without_context()


@dataclass(frozen=True)
class StageSampler:
    """A trained denoiser with its diffusion settings and latent statistics."""

    denoiser: Denoiser
    config: DiffusionConfig
    normalizer: LatentNormalizer
    use_graphs: bool = True
    """Run the denoiser as a CUDA graph on a GPU."""

    @cached_property
    def path(self) -> ProbabilityPath:
        """The probability path that the denoiser was trained on."""
        return self.config.path()

    @cached_property
    def graphs(self) -> GraphedNetwork:
        """CUDA graphs of the denoiser. They are kept for the next clips of the same shapes, and hold the memory of a pass each."""
        return GraphedNetwork(self.denoiser)

    def release_graphs(self) -> None:
        """Free the memory of the CUDA graphs."""
        self.graphs.clear()

    def sample(
        self,
        condition: Condition,
        noise: Tensor,
        steps: int,
        guidance: Guidance,
        eta: float = 0.0,
        unconditional: Callable[[Condition], Condition] = unconditional,
        fresh_noise: Callable[[], Tensor] | None = None,
        each_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Sample clips with DDIM and classifier-free guidance.

        Args:
            condition: of the clips.
            noise: standard normal [f c h w].
            steps: sampling steps.
            guidance: scale and shape.
            eta: 0 is deterministic, 1 is ancestral.
            unconditional: turns a condition into that of the unconditional branch.
            fresh_noise: returns the noise [f c h w] that each sampling step adds when eta > 0.
            each_step: called after every sampling step, for progress.

        Returns:
            Raw (not normalised) latents of the videos [v c t h w], float32.
        """
        null = unconditional
        if are_compiled(self.denoiser.blocks):  # one length of text, so that the layers compile once
            condition, null = pad_text(condition), lambda given: pad_text(unconditional(given))
        network = SamplingNetwork(self.denoiser, self.graphs if noise.is_cuda and self.use_graphs else None)
        denoise = classifier_free_guidance(network, guidance, self.path, null)
        latents = ddim(denoise, self.path, noise, condition, steps, eta, fresh_noise, each_step)
        return condition.layout.split(self.normalizer.denormalize(latents))[0]
