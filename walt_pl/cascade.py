"""From a prompt to pixels: text encoder, base sampler, super-resolution samplers, decoder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from walt_pl.artifact import Artifact, load
from walt_pl.blocks.compute import compute_dtype
from walt_pl.blocks.frames import Layout
from walt_pl.diffusion.chance import Chance
from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.sampler import Guidance, ddim, guided
from walt_pl.diffusion.schedule import Schedule
from walt_pl.manifest import Manifest, in_order, kind_of
from walt_pl.models.denoiser import Denoiser
from walt_pl.models.latents import LatentScale
from walt_pl.models.text import SmallTextEncoder, TextEncoder
from walt_pl.models.vae import VAE

BASE, VAE_STAGE = "base", "vae"


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

    def __post_init__(self) -> None:
        if len(self.seeds) != len(self):
            raise ValueError(f"sample: {len(self)} clips want as many seeds, got {len(self.seeds)}")

    def __len__(self) -> int:
        return len(self.labels) or len(self.prompts)

    def part(self, start: int, count: int) -> "Request":
        """``count`` of the clips, from ``start``."""
        stop = start + count
        return replace(self, prompts=self.prompts[start:stop], labels=self.labels[start:stop], seeds=self.seeds[start:stop])


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    steps: int = 50
    """Network evaluations of each stage (twice that with guidance)."""
    eta: float = 0.0
    """0 is deterministic, 1 ancestral."""
    guidance: Mapping[str, Guidance] = field(default_factory=dict)
    """By stage; stages that are not named take 1."""
    chunk: int | None = None
    """Latent frames decoded at once; null for all."""
    tile: int | None = None
    """Side in latent cells of the tiles decoded at once; null for all."""


class Cascade:
    """The models of a run, ready to sample.

    Args:
        folders: artifact folder of each stage, ``vae`` and ``base`` at least.
        device: where to run.
        dtype: of the networks' arithmetic; what the device is fastest at when not given. Noise and updates stay float32.
    """

    def __init__(self, folders: Mapping[str, Path], device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> None:
        self.device = torch.device(device)
        self.dtype = dtype or compute_dtype(self.device)
        self.stages = [stage for stage in in_order(list(folders)) if stage != VAE_STAGE]
        artifacts = {stage: load(folder, self.device) for stage, folder in folders.items()}
        self.vae: VAE = artifacts[VAE_STAGE].models["vae"]  # type: ignore[assignment]
        self.card = artifacts[VAE_STAGE].card
        self.artifacts = {stage: artifacts[stage] for stage in self.stages}
        base = next((stage for stage in self.stages if kind_of(stage) == "base"), None)
        self.text = _text_encoder(self.artifacts[base]) if base else None

    @classmethod
    def open(
        cls,
        run: str | Path,
        stages: Sequence[str] | None = None,
        allow_stale: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "Cascade":
        """The cascade of a run, all of its finished stages or those named.

        Raises:
            ManifestError: a stage is missing, stale or changed on disk.
        """
        manifest = Manifest.open(run)
        found = [stage for stage in manifest.stages() if kind_of(stage) != "vae"]
        bases = [stage for stage in found if kind_of(stage) == "base"]
        if not stages and len(bases) > 1 and BASE not in bases:
            raise ValueError(f"{run} has the base models {', '.join(bases)}; choose one: --stages {bases[0]}")
        base = bases[0] if bases else BASE  # BASE comes first in the order
        above = [stage for stage in found if stage not in bases]
        wanted = list(stages) if stages else [base, *above]
        # Base models of one run stand beside each other: one of them starts the chain.
        base = next((stage for stage in wanted if kind_of(stage) == "base"), base)
        known = in_order([*{base, *above, *(stage for stage in wanted if kind_of(stage) != "base")}])
        if in_order(wanted) != known[: len(wanted)]:
            raise ValueError(f"stages run from {base} upwards without a gap: {' '.join(known)}; got {' '.join(wanted)}")
        return cls(manifest.usable([VAE_STAGE, *wanted], allow_stale), device, dtype)

    def evaluations(self, sampling: Sampling) -> int:
        """How many sampling steps a request takes, for a progress bar."""
        return sampling.steps * len(self.stages)

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
            request: what the clips show.
            sampling: how.
            low: raw latents of half the size [b c t h w], for super-resolution.
            number: of the stage in the cascade; it keeps the noise of the stages apart.
            each_step: called after every sampling step.

        Returns:
            raw latents [b c t h w].
        """
        artifact = self.artifacts[stage]
        denoiser: Denoiser = artifact.models["denoiser"]  # type: ignore[assignment]
        settings = artifact.config["diffusion"]
        scale = LatentScale.of(self.card) if settings["normalise_latents"] else LatentScale.identity(denoiser.config.latent_channels)
        schedule = Schedule(zero_terminal_snr=settings["zero_terminal_snr"])
        c = denoiser.config
        layout = Layout(len(request), c.size[0], 0)
        chances = [Chance(seed, number, torch.zeros(1, dtype=torch.int64)) for seed in request.seeds]

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
        denoise = guided(denoiser, sampling.guidance.get(stage, Guidance()), schedule, self._null(request, denoiser))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            latents = ddim(denoise, schedule, noise, condition, sampling.steps, sampling.eta, fresh_noise, each_step)
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
        """The unconditional branch: the learned null, or the negative prompt."""
        if not request.negative_prompt or not denoiser.config.text_width:
            return Condition.without_text
        assert self.text is not None
        text, mask = self.text.encode([request.negative_prompt] * len(request))
        return lambda condition: replace(condition, text=text, text_mask=mask, keep=torch.ones_like(condition.keep))

    def _with_low(self, condition: Condition, low: Tensor, level: int, schedule: Schedule, chances: Sequence[Chance]) -> Condition:
        """The low-resolution latents [f c h w], noised at the level the stage samples with."""
        layout = condition.layout
        noise = torch.cat([chance.normal([(layout.frames, *low.shape[1:])])[0] for chance in chances]).to(self.device)
        step = torch.full((layout.samples,), level, dtype=torch.int64, device=self.device)
        return replace(condition, low=schedule.add_noise(low, noise, layout.per_frame(step)), low_step=step)


def _text_encoder(artifact: Artifact) -> TextEncoder | None:
    text = artifact.models.get("text")
    if text is None:
        return None
    assert isinstance(text, SmallTextEncoder)
    text.load_vocabulary(artifact.read("tokenizer.model"))
    return text
