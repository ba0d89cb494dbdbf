"""From a prompt, an image or a clip to pixels: text encoder, base sampler, super-resolution samplers, decoder, for each segment."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from walt_pl.blocks.compute import compute_dtype
from walt_pl.blocks.frames import FrameLayout
from walt_pl.blocks.transfer import to_device
from walt_pl.data.transforms import to_size
from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.diffusion.ddim import Guidance
from walt_pl.diffusion.rng import PerSampleRNG
from walt_pl.media.types import Frames
from walt_pl.models.autoencoder import Autoencoder
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.latent_normalizer import LatentNormalizer
from walt_pl.runs.artifact import load
from walt_pl.runs.living_run import read_settled
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.stage_names import in_order, kind_of
from walt_pl.sampling.known_rate import trained_fps
from walt_pl.sampling.sampled_video import SampledVideo
from walt_pl.sampling.stage_choice import BASE, choose_stages
from walt_pl.sampling.stage_sampler import StageSampler, text_condition, unconditional, with_context, with_low_res
from walt_pl.sampling.text_encoder import open_text_encoder
from walt_pl.text.small_encoder import SmallTextEncoder

VAE_STAGE = "vae"
KNOWN = {1: "an image", 2: "the end of a clip"}
"""Meaning of a number of context frames: the first latent of a clip is one pixel frame, each further latent is f_t pixel frames."""


@dataclass(frozen=True)
class SampleRequest:
    """Request for clips: their conditions and seeds."""

    prompts: Sequence[str] = ()
    """Captions, one for each clip; ignored by class-conditional models."""
    labels: Sequence[int] = ()
    """Class numbers, one for each clip, for class-conditional models."""
    negative_prompt: str = ""
    """Text condition of the unconditional branch, instead of the learned null."""
    seeds: Sequence[int] = ()
    """Seeds, one for each clip: the noise of a clip does not depend on the others of its batch."""
    context_latents: Mapping[str, Tensor] = field(default_factory=dict)
    """Context frames by stage: raw latents [b c 1|2 h w] that the clips begin with. A stage that is not named has none."""
    segment: int = 0
    """Number of the segment in a longer video: each segment has other noise."""

    def __post_init__(self) -> None:
        if len(self.seeds) != len(self):
            raise ValueError(f"sample: {len(self)} clips want as many seeds, got {len(self.seeds)}")

    def __len__(self) -> int:
        return len(self.labels) or len(self.prompts)

    def part(self, start: int, count: int) -> "SampleRequest":
        """Return the request for `count` of the clips, from `start`."""
        stop = start + count
        context_latents = {stage: latents[start:stop] for stage, latents in self.context_latents.items()}
        return replace(
            self,
            prompts=self.prompts[start:stop],
            labels=self.labels[start:stop],
            seeds=self.seeds[start:stop],
            context_latents=context_latents,
        )


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of the sampler and of the decoder."""

    steps: int | Mapping[str, int] = 50
    """Network evaluations (twice that with guidance), of every stage or by stage; stages that are not named take 50."""
    eta: float = 0.0
    """Noise of each DDIM update: 0 is deterministic, 1 ancestral."""
    guidance: Mapping[str, Guidance] = field(default_factory=dict)
    """Classifier-free guidance by stage; stages that are not named use that of their artifact."""
    chunk: int | None = None
    """Latent frames decoded at once; null for all."""
    tile: int | None = None
    """Side in latent cells of the tiles decoded at once; null for whole frames."""

    def steps_of(self, stage: str) -> int:
        """Return the network evaluations of a stage."""
        return self.steps if isinstance(self.steps, int) else self.steps.get(stage, 50)


class Cascade:
    """Models of a run, loaded for sampling.

    Args:
        folders: artifact folder of each stage. `vae` alone can encode and decode; sampling also needs `base` and the stages above.
        device: to run on.
        dtype: of the networks' arithmetic; `compute_dtype` of the device when None. Noise and updates stay float32.
        text_encoder: path of a pretrained text encoder, if not that of the base's training.
        verify: compare the hash of large weights, too, see `walt_pl.load`.

    Raises:
        ValueError: the stages do not fit each other, or the text encoder is missing or another one.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        text_encoder: str | None = None,
        verify: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype or compute_dtype(self.device)
        self.stages = [stage for stage in in_order(list(folders)) if stage != VAE_STAGE]
        artifacts = {stage: load(folder, self.device, verify) for stage, folder in folders.items()}
        self.vae = cast(Autoencoder, artifacts[VAE_STAGE].model("vae"))
        self.card = artifacts[VAE_STAGE].card
        self.artifacts = {stage: artifacts[stage] for stage in self.stages}
        self.samplers = {stage: self._sampler(stage) for stage in self.stages}
        self.base = next((stage for stage in self.stages if kind_of(stage) == "base"), BASE)
        self.text = open_text_encoder(self.artifacts[self.base], self.device, text_encoder) if self.base in self.artifacts else None
        self._check_chain()

    @classmethod
    def open(
        cls,
        run: str | Path,
        stages: Sequence[str] | None = None,
        allow_stale: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        text_encoder: str | None = None,
        verify: bool = False,
    ) -> "Cascade":
        """Load the cascade of a run.

        Args:
            run: folder of the run.
            stages: to load, without a gap from a base model upwards; all finished ones when None.
            allow_stale: load stages although a parent was trained again.
            device: to run on.
            dtype: see `Cascade`.
            text_encoder: see `Cascade`.
            verify: see `Cascade`.

        Raises:
            ManifestError: a stage is missing, stale or changed on disk.
            ValueError: the stages have a gap, or the run has several base models and none is named.
        """
        manifest = Manifest.open(run)
        loaded = [VAE_STAGE, *choose_stages(manifest, stages)]
        return read_settled(
            manifest,
            lambda: cls(manifest.usable(loaded, allow_stale), device, dtype, text_encoder, verify),
            # A stage was replaced after it was compared with its record.
            failed=lambda cascade: any(cascade.sha256(stage) != manifest.sha256(stage) for stage in loaded),
        )

    def sha256(self, stage: str) -> str:
        """Return the hash of the weights of a stage."""
        return str(self.card["sha256"]) if stage == VAE_STAGE else self.artifacts[stage].sha256

    def _sampler(self, stage: str) -> StageSampler:
        artifact = self.artifacts[stage]
        denoiser, config = cast(Denoiser, artifact.model("denoiser")), DiffusionConfig.from_plain(artifact.section("diffusion"))
        channels = denoiser.config.latent_channels
        return StageSampler(denoiser, config, LatentNormalizer.choose(self.card, channels, config.normalize_latents))

    def _check_chain(self) -> None:
        """Check that each stage doubles the size of the stage before, and that super-resolution fits the text encoder of `base`.

        Raises:
            ValueError: a size does not fit, or super-resolution was trained with another small text encoder.
        """
        for low_res, high in itertools.pairwise(self.stages):
            small, large = (self._denoiser(stage).config.size for stage in (low_res, high))
            if large != (small[0], 2 * small[1], 2 * small[2]):
                raise ValueError(
                    f'stage "{high}" makes latents of {large} from half of that, but "{low_res}" makes {small}; '
                    "choose the base that fits with --stages, e.g. --stages base_9x16,sr1"
                )
        if len(self.stages) > 1 and self.base not in (BASE, self.stages[-1]) and isinstance(self.text, SmallTextEncoder):
            raise ValueError(f'super-resolution was trained with the words of "{BASE}", not of "{self.base}": take --stages {self.base}')

    @property
    def clip_frames(self) -> int:
        """Number of pixel frames in one sample of the base model."""
        return 1 + (self._denoiser(self.base).config.size[0] - 1) * self.vae.factors[0]

    @property
    def overlap(self) -> int:
        """Number of pixel frames in two latent frames, the context of the next segment of a long video."""
        return 1 + self.vae.factors[0]

    @property
    def frame_rates(self) -> dict[str, float]:
        """Training frame rate of each stage in frames a second, in the order of the stages; those whose artifact has none are left out."""
        known = {stage: artifact for stage, artifact in self.artifacts.items() if "video" in artifact.config}
        return {stage: trained_fps(artifact.section("video"), str(artifact.path)) for stage, artifact in known.items()}

    @property
    def fps(self) -> float | None:
        """Frames a second of the clips. The base determines the motion: its rate, or that of the first stage with one; None for none."""
        return next(iter(self.frame_rates.values()), None)

    def num_segments(self, frames: int) -> int:
        """Return the number of segments of a video of `frames` pixel frames."""
        new = max(1, self.clip_frames - self.overlap)  # at least 1: `check` refuses models with fewer frames
        return 1 + math.ceil(max(0, frames - self.clip_frames) / new)

    def num_evaluations(self, sampling: SamplingConfig, frames: int) -> int:
        """Return the number of sampling steps for a video of `frames` pixel frames, for a progress bar."""
        return sum(sampling.steps_of(stage) for stage in self.stages) * self.num_segments(frames)

    def encode_context(self, pictures: Frames, name: str, crop: bool = False) -> dict[str, Tensor]:
        """Encode an image, or the end of a clip, as context latents of the stages.

        A super-resolution stage with frames larger than the pictures gets no context. Enlarged pictures lack the detail of its size.

        Args:
            pictures: uint8 [t h w 3], one frame or `overlap` frames.
            name: of the file, for errors.
            crop: crop pictures of another aspect ratio to their middle.

        Returns:
            Raw latents [1 c 1|2 h w] by stage name.

        Raises:
            ValueError: the aspect ratio of the pictures differs by more than 1 %, and `crop` is false.
        """
        sizes = {stage: self.pixels(stage) for stage in self.stages}
        height, width = pictures.shape[1:3]
        rows, columns = sizes[self.base]
        kept = min(rows * width, columns * height) / max(rows * width, columns * height)
        if kept < 0.99 and not crop:
            raise ValueError(
                f"{name}: found {width} x {height} pixels, but this run makes {columns} x {rows}: cut the file to that aspect, "
                "or take its middle with --crop true"
            )
        fitting = [stage for stage, (h, w) in sizes.items() if stage == self.base or (h <= height and w <= width)]
        return {stage: self.encode(to_size(pictures, *sizes[stage])[None]) for stage in fitting}

    def guidance(self, stage: str, sampling: SamplingConfig = SamplingConfig()) -> Guidance:
        """Return the guidance of a stage: that of `sampling`, or else that of the artifact."""
        return sampling.guidance.get(stage) or self.samplers[stage].config.guidance

    def check(self, request: SampleRequest, sampling: SamplingConfig, frames: int) -> None:
        """Compare a request for videos of `frames` pixel frames with the context frames that the stages had in training.

        Raises:
            ValueError: a stage was not trained for this.
        """
        longer = {2} if frames > self.clip_frames else set()
        given = {stage: {context_latents.shape[2]} for stage, context_latents in request.context_latents.items()}
        trained = self._denoiser(self.base).config.frame_prediction
        if not trained and (longer or self.base in given):
            raise ValueError(
                f'stage "{self.base}" was trained without frame prediction: it can neither go on from an image or a clip nor make more '
                f"than {self.clip_frames} frames; train it as experiments/shapes/base_long_video.yaml does"
            )
        for stage in self.stages:
            able = self._context_frames(stage)
            untrained = (given.get(stage, set()) | longer) - set(able)
            if untrained:
                known = " or ".join(KNOWN[count] for count in able)
                asked = " or ".join(KNOWN[count] for count in sorted(untrained))
                raise ValueError(
                    f'stage "{stage}" was trained to go on from {known}, not from {asked}: train it with '
                    "model.diffusion.context_frames [1, 2]"
                )
        if trained == 1 and self.base not in given:
            options = " or ".join({1: "--image", 2: "--continue"}[count] for count in self._context_frames(self.base))
            raise ValueError(f'stage "{self.base}" got context frames in every step of its training: give it some with {options}')
        if trained == 1 and self.guidance(self.base, sampling).scale != 1:
            raise ValueError(
                f'stage "{self.base}" got context frames in every step of its training, which leaves guidance no other branch: '
                "leave out --guidance"
            )

    def _context_frames(self, stage: str) -> Sequence[int]:
        """Return the numbers of context frames that a stage accepts.

        A stage without frame prediction accepts all, since it gets context frames by the replacement method of `ddim`.
        """
        sampler = self.samplers[stage]
        return sampler.config.context_frames if sampler.denoiser.config.frame_prediction else list(KNOWN)

    def video(self, request: SampleRequest, sampling: SamplingConfig, frames: int, each_step: Callable[[], None] = lambda: None) -> Tensor:
        """Sample a video of the last stage, in as many segments as its length needs (docs/METHOD.md, section 3.7).

        Each segment is one clip. Its last `overlap` pixel frames, encoded, are the two context frames (latents) of the next segment.
        They are encoded again because the first latent of a clip stands for one pixel frame alone.

        Every stage, not only the base, gets context frames from its own last segment. The low-resolution clips overlap, so a
        super-resolution stage has already made the first frames of its segment. With them as context, texture that the low-resolution
        clip lacks continues across the boundary. A stage trained with frame prediction gets them as a condition. Any other stage gets
        them by the replacement method of `ddim`. That is enough where the low-resolution clip determines the content.

        Args:
            request: conditions, seeds and context frames of the clips.
            sampling: settings.
            frames: length in pixel frames; further frames of the last segment are dropped.
            each_step: called after every sampling step.

        Returns:
            Pixels [b 3 frames h w] in -1..1. A shorter video of that seed is equal to the first frames, bit for bit.

        Raises:
            ValueError: the base model was not trained for this, see `check`.
        """
        sampled = self.sample_segments(request, sampling, frames, each_step)
        return sampled.join(self.decode(sampled.latents, sampling))

    @torch.no_grad()
    def sample_segments(
        self, request: SampleRequest, sampling: SamplingConfig, frames: int, each_step: Callable[[], None] = lambda: None
    ) -> SampledVideo:
        """Sample a video without decoding its last segment, see `video`."""
        self.check(request, sampling, frames)
        pieces: list[Tensor] = []
        for number in range(1, self.num_segments(frames)):
            latents = self.sample(request, sampling, each_step)
            clips = {stage: self.decode(latents[stage], sampling) for stage in self.stages}
            pieces.append(clips[self.stages[-1]][:, :, self.overlap if number > 1 else 0 :])
            context_latents = {stage: self.encode(clip[:, :, -self.overlap :]) for stage, clip in clips.items()}
            request = replace(request, context_latents=context_latents, segment=number)
        last = self.sample(request, sampling, each_step)[self.stages[-1]]
        return SampledVideo(pieces, last, self.overlap if pieces else 0, frames)

    @torch.no_grad()
    def sample(self, request: SampleRequest, sampling: SamplingConfig, each_step: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
        """Sample the latents of one segment with all stages, and call `each_step` after every sampling step.

        Returns:
            Raw (de-normalised) latents [b c t h w] by stage name, float32.
        """
        made: dict[str, Tensor] = {}
        low_res: Tensor | None = None
        for number, stage in enumerate(self.stages):
            low_res = made[stage] = self.sample_stage(stage, request, sampling, low_res, number, each_step)
        return made

    @torch.no_grad()
    def sample_stage(
        self,
        stage: str,
        request: SampleRequest,
        sampling: SamplingConfig,
        low_res: Tensor | None = None,
        number: int = 0,
        each_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Sample the latents of one stage.

        Args:
            stage: its name.
            request: conditions, seeds and context frames of the clips. Context frames are returned unchanged, up to rounding.
            sampling: settings.
            low_res: raw latents of half the size [b c t h w], for super-resolution.
            number: index of the stage in the cascade; each stage has other noise.
            each_step: called after every sampling step.

        Returns:
            Raw latents [b c t h w], float32.

        Raises:
            ValueError: super-resolution gets no `low_res`, or the request lacks the prompts or labels of the model.
        """
        sampler = self.samplers[stage]
        c = sampler.denoiser.config
        layout = FrameLayout(len(request), c.size[0], 0)
        rngs = [PerSampleRNG(seed, number, torch.tensor([request.segment])) for seed in request.seeds]

        def fresh_noise() -> Tensor:
            shape = (layout.frames, c.latent_channels, *c.size[1:])
            return to_device(torch.cat([rng.randn([shape])[0] for rng in rngs]), self.device)

        noise = fresh_noise()
        condition = self._condition(c, request, layout)
        if c.super_resolution:
            if low_res is None:
                raise ValueError(f'stage "{stage}" makes clips larger; it wants the latents of the stage before')
            frames = layout.join(sampler.normalizer.normalize_clips(low_res), low_res[:0])
            low_noise = torch.cat([rng.randn([(layout.frames, *frames.shape[1:])])[0] for rng in rngs]).to(self.device)
            level = torch.full((layout.num_samples,), sampler.config.noise_aug_level, dtype=torch.int64, device=self.device)
            condition = with_low_res(condition, sampler.path, frames, low_noise, level)
        if stage in request.context_latents:
            condition = with_context(condition, sampler.normalizer.normalize_clips(request.context_latents[stage].to(self.device)))
        steps, guidance, null = sampling.steps_of(stage), self.guidance(stage, sampling), self._unconditional(request, c)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return sampler.sample(condition, noise, steps, guidance, sampling.eta, null, fresh_noise, each_step)

    def decode(self, latents: Tensor, sampling: SamplingConfig = SamplingConfig()) -> Tensor:
        """Decode raw latents [b c t h w] to pixels [b 3 T H W] in -1..1 on the CPU, one clip at a time."""
        return torch.cat([self.decode_clip(z, sampling).cpu() for z in latents.split(1)])

    @torch.no_grad()
    def decode_clip(self, latents: Tensor, sampling: SamplingConfig) -> Tensor:
        """Decode raw latents [1 c t h w] to pixels [1 3 T H W] in -1..1 on the device."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.vae.decode(latents, sampling.chunk, sampling.tile).clamp(-1, 1)

    def release_graphs(self) -> None:
        """Free the memory of the CUDA graphs of all stages."""
        for sampler in self.samplers.values():
            sampler.release_graphs()

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """Encode pixels [b 3 T H W] in -1..1 as raw latents [b c t h w], the posterior's mean, one clip at a time."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return torch.cat([self.vae.encode(clip.to(self.device)).mean for clip in clips.split(1)])

    def _denoiser(self, stage: str) -> Denoiser:
        return self.samplers[stage].denoiser

    def pixels(self, stage: str) -> tuple[int, int]:
        """Return the rows and columns of a stage's frames in pixels."""
        size, factors = self._denoiser(stage).config.size, self.vae.factors
        return size[1] * factors[1], size[2] * factors[2]

    def _condition(self, config: DenoiserConfig, request: SampleRequest, layout: FrameLayout) -> Condition:
        labels, classes = None, config.num_classes
        if classes:
            if not request.labels or max(request.labels) >= classes or min(request.labels) < 0:
                raise ValueError(f"this run makes clips of a class: give --label 0 .. {classes - 1}")
            labels = torch.tensor(request.labels, device=self.device)
        if config.text_width and len(request.prompts) != len(request):
            raise ValueError("this run makes clips from text: give --prompt or --prompts")
        condition_kept = torch.ones(layout.num_samples, dtype=torch.bool, device=self.device)
        return text_condition(self.text if config.text_width else None, request.prompts, labels, layout, condition_kept)

    def _unconditional(self, request: SampleRequest, config: DenoiserConfig) -> Callable[[Condition], Condition]:
        """Return a function that turns a condition into that of the unconditional branch: the learned null, or the negative prompt."""
        if not request.negative_prompt or not config.text_width:
            return unconditional
        assert self.text is not None
        text, mask = self.text.encode([request.negative_prompt] * len(request))
        return lambda condition: replace(
            condition.without_context(), text=text, text_mask=mask, condition_kept=torch.ones_like(condition.condition_kept)
        )
