"""From a prompt, an image or a clip to pixels: text encoder, base sampler, super-resolution samplers, decoder, and round again."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from walt_pl.blocks.compute import compute_dtype
from walt_pl.blocks.frames import Layout
from walt_pl.data.transforms import to_size
from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.ddim import Guidance, ddim, guided
from walt_pl.diffusion.rng import Chance
from walt_pl.diffusion.schedule import Schedule
from walt_pl.media.types import Frames
from walt_pl.models.denoiser import Denoiser
from walt_pl.models.latent_normalizer import LatentScale
from walt_pl.models.vae import VAE
from walt_pl.runs.artifact import Artifact, load
from walt_pl.runs.manifest import Manifest, in_order, kind_of
from walt_pl.text.features import HASHES, recorded
from walt_pl.text.pretrained_encoder import FrozenTextEncoder
from walt_pl.text.small_encoder import SmallTextEncoder, TextEncoder

BASE, VAE_STAGE = "base", "vae"
KNOWN = {1: "an image", 2: "the end of a clip"}
"""What a number of given latent frames is: the first latent of a clip is one pixel frame, each further one is f_t of them."""


@dataclass(frozen=True)
class Request:
    """Clips to make."""

    prompts: Sequence[str] = ()
    """One clip each; ignored by class-conditional models."""
    labels: Sequence[int] = ()
    """One clip each, for class-conditional models."""
    negative_prompt: str = ""
    """What the unconditional branch is told instead of nothing."""
    seeds: Sequence[int] = ()
    """One for each clip: the noise of a clip does not depend on the others of its batch."""
    past: Mapping[str, Tensor] = field(default_factory=dict)
    """By stage: raw latents [b c 1|2 h w] of the frames that the clips begin with. A stage that is not named is given none."""
    round: int = 0
    """Which piece of a longer video this is: the pieces' noise differs."""

    def __post_init__(self) -> None:
        if len(self.seeds) != len(self):
            raise ValueError(f"sample: {len(self)} clips want as many seeds, got {len(self.seeds)}")

    def __len__(self) -> int:
        return len(self.labels) or len(self.prompts)

    def part(self, start: int, count: int) -> "Request":
        """``count`` of the clips, from ``start``."""
        stop = start + count
        past = {stage: latents[start:stop] for stage, latents in self.past.items()}
        return replace(self, prompts=self.prompts[start:stop], labels=self.labels[start:stop], seeds=self.seeds[start:stop], past=past)


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    steps: int | Mapping[str, int] = 50
    """Network evaluations (twice that with guidance), of every stage or by stage; stages that are not named take 50."""
    eta: float = 0.0
    """0 is deterministic, 1 ancestral."""
    guidance: Mapping[str, Guidance] = field(default_factory=dict)
    """By stage; stages that are not named take that of their artifact."""
    chunk: int | None = None
    """Latent frames decoded at once; null for all."""
    tile: int | None = None
    """Side in latent cells of the tiles decoded at once; null for all."""

    def steps_of(self, stage: str) -> int:
        """Network evaluations of a stage."""
        return self.steps if isinstance(self.steps, int) else self.steps.get(stage, 50)


class Cascade:
    """The models of a run, ready to sample.

    Args:
        folders: artifact folder of each stage: ``vae``, which alone encodes and decodes, and to sample ``base`` and what follows it.
        device: where to run.
        dtype: of the networks' arithmetic; what the device is fastest at when not given. Noise and updates stay float32.
        text_encoder: where a pretrained text encoder lies, if not where the base's training found it.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        text_encoder: str | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype or compute_dtype(self.device)
        self.stages = [stage for stage in in_order(list(folders)) if stage != VAE_STAGE]
        artifacts = {stage: load(folder, self.device) for stage, folder in folders.items()}
        self.vae: VAE = artifacts[VAE_STAGE].models["vae"]  # type: ignore[assignment]
        self.card = artifacts[VAE_STAGE].card
        self.artifacts = {stage: artifacts[stage] for stage in self.stages}
        self.base = next((stage for stage in self.stages if kind_of(stage) == "base"), BASE)
        self.text = _text_encoder(self.artifacts[self.base], self.device, text_encoder) if self.base in self.artifacts else None
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
    ) -> "Cascade":
        """The cascade of a run, all of its finished stages or those named.

        Raises:
            ManifestError: a stage is missing, stale or changed on disk.
        """
        manifest = Manifest.open(run)
        finished = [name for name, stage in manifest.stages().items() if stage.artifact is not None]
        found = [stage for stage in finished if kind_of(stage) != "vae"]
        bases = [stage for stage in found if kind_of(stage) == "base"]
        if not stages and len(bases) > 1 and BASE not in bases:
            raise ValueError(f"{run} has the base models {', '.join(bases)}; choose one: --stages {bases[0]}")
        base = bases[0] if bases else BASE  # BASE comes first in the order
        above = [stage for stage in found if stage not in bases]
        wanted = list(stages) if stages else [base, *above]
        # Base models of one run stand beside each other: one of them starts the chain.
        base = next((stage for stage in wanted if kind_of(stage) == "base"), base)
        known = in_order([*{base, *above, *(stage for stage in wanted if kind_of(stage) == "super_resolution")}])
        if in_order(wanted) != known[: len(wanted)]:
            raise ValueError(f"stages run from {base} upwards without a gap: {' '.join(known)}; got {' '.join(wanted)}")
        return cls(manifest.usable([VAE_STAGE, *wanted], allow_stale), device, dtype, text_encoder)

    def _check_chain(self) -> None:
        """Super-resolution doubles the size of the stage before, and was trained with the text encoder of the run's ``base``."""
        for low, high in itertools.pairwise(self.stages):
            small, large = (self._denoiser(stage).config.size for stage in (low, high))
            if large != (small[0], 2 * small[1], 2 * small[2]):
                raise ValueError(
                    f'stage "{high}" makes latents of {large} from half of that, but "{low}" makes {small}; '
                    "choose the base that fits with --stages, e.g. --stages base_9x16,sr1"
                )
        if len(self.stages) > 1 and self.base not in (BASE, self.stages[-1]) and isinstance(self.text, SmallTextEncoder):
            raise ValueError(f'super-resolution was trained with the words of "{BASE}", not of "{self.base}": take --stages {self.base}')

    @property
    def clip_frames(self) -> int:
        """Pixel frames that the base model makes at once."""
        return 1 + (self._denoiser(self.base).config.size[0] - 1) * self.vae.config.factors[0]

    @property
    def overlap(self) -> int:
        """Pixel frames that two latents stand for: what the next piece of a long video is given."""
        return 1 + self.vae.config.factors[0]

    @property
    def frame_rates(self) -> dict[str, float]:
        """Frames a second of the videos that each stage was trained on, for the stages whose artifact knows it, in their order."""
        known = {stage: artifact.config.get("video") for stage, artifact in self.artifacts.items()}
        return {stage: video["fps"] for stage, video in known.items() if video is not None}

    @property
    def fps(self) -> float | None:
        """Frames a second of the clips: the base decides how they move, so its rate, or that of the first stage which knows one."""
        return next(iter(self.frame_rates.values()), None)

    def rounds(self, frames: int) -> int:
        """How many pieces a video of so many frames is made of."""
        new = max(1, self.clip_frames - self.overlap)  # models of so few frames are refused by `check`
        return 1 + math.ceil(max(0, frames - self.clip_frames) / new)

    def evaluations(self, sampling: Sampling, frames: int) -> int:
        """How many sampling steps a video of so many frames takes, for a progress bar."""
        return sum(sampling.steps_of(stage) for stage in self.stages) * self.rounds(frames)

    def past(self, pictures: Frames, name: str, crop: bool = False) -> dict[str, Tensor]:
        """What the stages are given of an image, or of the end of a clip.

        A super-resolution stage that makes larger frames than the pictures is given none: enlarged pictures are no examples of its size.

        Args:
            pictures: uint8 [t h w 3], one frame or ``overlap`` of them.
            name: of the file, for errors.
            crop: cut the middle out of pictures of another aspect.

        Returns:
            stage name -> raw latents [1 c 1|2 h w].

        Raises:
            ValueError: pictures of another aspect (a hundredth of a side is let go), where ``crop`` is not set.
        """
        sizes = {stage: self._pixels(stage) for stage in self.stages}
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

    def guidance(self, stage: str, sampling: Sampling = Sampling()) -> Guidance:
        """Return the guidance of a stage: that of ``sampling``, else that of the artifact, else none (scale 1)."""
        return sampling.guidance.get(stage) or Guidance(**self.artifacts[stage].config.get("guidance", {}))

    def check(self, request: Request, sampling: Sampling, frames: int) -> None:
        """Compare what is asked of the stages with the past that they were given in training.

        Raises:
            ValueError: one was not trained for this.
        """
        longer = {2} if frames > self.clip_frames else set()
        given = {stage: {past.shape[2]} for stage, past in request.past.items()}
        trained = self.artifacts[self.base].config.get("frame_prediction")
        if trained is None and (longer or self.base in given):
            raise ValueError(
                f'stage "{self.base}" was trained without frame prediction: it can neither go on from an image or a clip nor make more '
                f"than {self.clip_frames} frames; train it as experiments/shapes/frame_prediction.yaml does"
            )
        for stage in self.stages:
            known = self.artifacts[stage].config.get("frame_prediction")
            past_frames = known["past_frames"] if known else list(KNOWN)  # a stage without it sees the past as its own frames
            untrained = (given.get(stage, set()) | longer) - set(past_frames)
            if untrained:
                able = " or ".join(KNOWN[count] for count in past_frames)
                asked = " or ".join(KNOWN[count] for count in sorted(untrained))
                raise ValueError(
                    f'stage "{stage}" was trained to go on from {able}, not from {asked}: train it with model.past_frames [1, 2]'
                )
        if trained is None:
            return
        if trained["always"] and self.base not in given:
            options = " or ".join({1: "--image", 2: "--continue"}[known] for known in trained["past_frames"])
            raise ValueError(f'stage "{self.base}" was given a past in every step of its training: give it one with {options}')
        if trained["always"] and self.guidance(self.base, sampling).scale != 1:
            raise ValueError(
                f'stage "{self.base}" was given a past in every step of its training, so guidance has no null: leave out --guidance'
            )

    @torch.no_grad()
    def video(self, request: Request, sampling: Sampling, frames: int, each_step: Callable[[], None] = lambda: None) -> Tensor:
        """Pixels of the last stage, in as many rounds as the length takes (SPEC section 3, "Long video").

        A round samples a clip; its last ``overlap`` pixel frames, encoded, are the two latents that the next round begins with, and what
        comes after them is new. They are encoded again because the first latent of a clip stands for one frame alone.

        Every stage is given its own last round, not only the base: the small clips overlap, so the frames that a super-resolution stage
        begins a round with are already made, and texture that the small clip does not hold goes on over the seam. A stage trained with
        frame prediction is told of them; any other sees them where its own frames would be (see :func:`ddim`), which serves a stage whose
        content the small clip decides.

        Args:
            request: what the clips show, and what they begin with.
            sampling: how.
            frames: length; what the last round makes beyond it is cut off.
            each_step: called after every sampling step.

        Returns:
            [b 3 frames h w] in -1..1. The first frames are those of a shorter video of the same seed, bit for bit.

        Raises:
            ValueError: the base model was not trained for this, see :meth:`check`.
        """
        self.check(request, sampling, frames)
        pieces: list[Tensor] = []
        last = self.rounds(frames) - 1
        for number in range(last + 1):
            latents = self.sample(request, sampling, each_step)
            wanted = self.stages if number < last else self.stages[-1:]
            clips = {stage: self.decode(latents[stage], sampling) for stage in wanted}
            pieces.append(clips[self.stages[-1]][:, :, self.overlap if number else 0 :])
            if number < last:
                past = {stage: self.encode(clip[:, :, -self.overlap :]) for stage, clip in clips.items()}
                request = replace(request, past=past, round=number + 1)
        return torch.cat(pieces, dim=2)[:, :, :frames]

    @torch.no_grad()
    def sample(self, request: Request, sampling: Sampling, each_step: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
        """Normalised latents after each stage.

        Returns:
            stage name -> raw (de-normalised) latents [b c t h w], float32.
        """
        made: dict[str, Tensor] = {}
        low: Tensor | None = None
        for number, stage in enumerate(self.stages):
            low = made[stage] = self.refine(stage, request, sampling, low, number, each_step)
        return made

    @torch.no_grad()
    def refine(
        self,
        stage: str,
        request: Request,
        sampling: Sampling,
        low: Tensor | None = None,
        number: int = 0,
        each_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Run one stage.

        Args:
            stage: its name.
            request: what the clips show. Frames that it gives come back as they are, to rounding.
            sampling: how.
            low: raw latents of half the size [b c t h w], for super-resolution.
            number: of the stage in the cascade; it keeps the noise of the stages apart.
            each_step: called after every sampling step.

        Returns:
            raw latents [b c t h w].
        """
        artifact = self.artifacts[stage]
        denoiser = self._denoiser(stage)
        settings = artifact.config["diffusion"]
        scale = LatentScale.of(self.card) if settings["normalise_latents"] else LatentScale.identity(denoiser.config.latent_channels)
        schedule = Schedule(zero_terminal_snr=settings["zero_terminal_snr"])
        c = denoiser.config
        layout = Layout(len(request), c.size[0], 0)
        chances = [Chance(seed, number, torch.tensor([request.round])) for seed in request.seeds]

        def fresh_noise() -> Tensor:
            shape = (layout.frames, c.latent_channels, *c.size[1:])
            return torch.cat([chance.normal([shape])[0] for chance in chances]).to(self.device)

        noise = fresh_noise()
        condition = self._condition(denoiser, request, layout)
        if c.super_resolution:
            if low is None:
                raise ValueError(f'stage "{stage}" makes clips larger; it wants the latents of the stage before')
            level = int(artifact.config["super_resolution"]["low_noise"])
            condition = self._with_low(condition, layout.join(scale.normalise_clips(low), low[:0]), level, schedule, chances)
        if stage in request.past:
            condition = _with_past(condition, scale.normalise_clips(request.past[stage].to(self.device)))
        denoise = guided(denoiser, self.guidance(stage, sampling), schedule, self._null(request, denoiser))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            latents = ddim(denoise, schedule, noise, condition, sampling.steps_of(stage), sampling.eta, fresh_noise, each_step)
        return layout.split(scale.denormalise(latents))[0]

    @torch.no_grad()
    def decode(self, latents: Tensor, sampling: Sampling = Sampling()) -> Tensor:
        """Raw latents [b c t h w] to pixels [b 3 T H W] in -1..1, one clip at a time."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            clips = [self.vae.decode(z, sampling.chunk, sampling.tile).clamp(-1, 1).cpu() for z in latents.split(1)]
        return torch.cat(clips)

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """Pixels [b 3 T H W] in -1..1 to raw latents, the posterior's mean, one clip at a time."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return torch.cat([self.vae.encode(clip.to(self.device)).mean for clip in clips.split(1)])

    def _denoiser(self, stage: str) -> Denoiser:
        return self.artifacts[stage].models["denoiser"]  # type: ignore[return-value]

    def _pixels(self, stage: str) -> tuple[int, int]:
        """Rows and columns of pixels that a stage makes."""
        size, factors = self._denoiser(stage).config.size, self.vae.config.factors
        return size[1] * factors[1], size[2] * factors[2]

    def _condition(self, denoiser: Denoiser, request: Request, layout: Layout) -> Condition:
        keep = torch.ones(layout.samples, dtype=torch.bool, device=self.device)
        labels, classes = None, denoiser.config.classes
        if classes:
            if not request.labels or max(request.labels) >= classes or min(request.labels) < 0:
                raise ValueError(f"this run makes clips of a class: give --label 0 .. {classes - 1}")
            labels = torch.tensor(request.labels, device=self.device)
        if not denoiser.config.text_width:
            return Condition(layout, keep, labels=labels)
        assert self.text is not None
        if len(request.prompts) != len(request):
            raise ValueError("this run makes clips from text: give --prompt or --prompts")
        text, mask = self.text.encode(request.prompts)
        known = torch.tensor([bool(prompt.strip()) for prompt in request.prompts], device=self.device)
        return Condition(layout, keep & known, text=text, text_mask=mask, labels=labels)

    def _null(self, request: Request, denoiser: Denoiser) -> Callable[[Condition], Condition]:
        """The unconditional branch: the learned null, or the negative prompt, and nothing of the past.

        Text and past are one condition with one scale. Training drops them independently, so it has seen this null often (no text, no past:
        9 % of the samples) and the one that keeps the past hardly (1 %). Two scales (InstructPix2Pix, arXiv 2211.09800) would lean on that
        rare branch and take three evaluations a step; Stable Video Diffusion drops its image and all else at once, too.
        """
        if not request.negative_prompt or not denoiser.config.text_width:
            return lambda condition: condition.without_text().without_past()
        assert self.text is not None
        text, mask = self.text.encode([request.negative_prompt] * len(request))
        return lambda condition: replace(condition.without_past(), text=text, text_mask=mask, keep=torch.ones_like(condition.keep))

    def _with_low(self, condition: Condition, low: Tensor, level: int, schedule: Schedule, chances: Sequence[Chance]) -> Condition:
        """The low-resolution latents [f c h w], noised at the level the stage samples with."""
        layout = condition.layout
        noise = torch.cat([chance.normal([(layout.frames, *low.shape[1:])])[0] for chance in chances]).to(self.device)
        step = torch.full((layout.samples,), level, dtype=torch.int64, device=self.device)
        return replace(condition, low=schedule.add_noise(low, noise, layout.per_frame(step)), low_step=step)


def _with_past(condition: Condition, past: Tensor) -> Condition:
    """Normalised latents [b c 1|2 h w] as the first frames of the clips."""
    layout, count = condition.layout, past.shape[2]
    clips = F.pad(past, (0, 0, 0, 0, 0, layout.frames - count))
    return condition.with_past(layout.join(clips, clips[:0]), torch.full((layout.samples,), count, device=past.device))


def _text_encoder(artifact: Artifact, device: torch.device, path: str | None) -> TextEncoder | None:
    frozen = recorded(artifact, path, "--text-encoder", artifact.path.parent / "cache" / HASHES)
    if frozen is not None:
        return FrozenTextEncoder(frozen, device)
    text = artifact.models.get("text")
    if text is None:
        return None
    assert isinstance(text, SmallTextEncoder)
    text.load_vocabulary(artifact.read("tokenizer.model"))
    return text
