"""Settings that training and sampling of a diffusion model share; an artifact keeps them in the section `diffusion` of model.yaml."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from walt_pl.diffusion.ddim import Guidance
from walt_pl.diffusion.path import ProbabilityPath
from walt_pl.diffusion.schedule import NoiseSchedule
from walt_pl.plain_records import build_record, shown


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise schedule, training objective and sampling defaults."""

    objective: Literal["v"] = "v"
    """Prediction of the network: the velocity (Salimans & Ho, arXiv 2202.00512)."""
    zero_terminal_snr: bool = True
    """Rescale the schedule so that the last timestep is pure noise (arXiv 2305.08891)."""
    normalize_latents: bool = True
    """Normalise latents to zero mean and unit variance per channel."""
    noise_aug_max: int = 350
    """Super-resolution: training noises the low-resolution latents at a timestep drawn from 0 .. this - 1."""
    noise_aug_level: int = 50
    """Super-resolution: sampling noises the low-resolution latents at this timestep."""
    context_frames: tuple[int, ...] = (1, 2)
    """Frame prediction: possible numbers of context frames (latent frames): 1 is an image, 2 the end of a clip."""
    guidance: Guidance = field(default_factory=Guidance)
    """Classifier-free guidance of previews, and the default of sampling."""

    def __post_init__(self) -> None:
        if not self.context_frames or not set(self.context_frames) <= {1, 2}:
            found = list(self.context_frames)
            raise ValueError(f"model.diffusion.context_frames: 1 latent frame (an image), 2 (the end of a clip) or [1, 2], got {found}")
        timesteps = self.path().num_timesteps
        for name, value in (("noise_aug_max", self.noise_aug_max), ("noise_aug_level", self.noise_aug_level + 1)):
            if not 1 <= value <= timesteps:
                raise ValueError(f"model.diffusion.{name} is a timestep of {timesteps}, got {getattr(self, name)}")

    def path(self) -> ProbabilityPath:
        """Return the probability path."""
        return NoiseSchedule(zero_terminal_snr=self.zero_terminal_snr)

    def to_plain(self) -> dict[str, Any]:
        """Return the plain values that model.yaml keeps."""
        return {**asdict(self), "context_frames": list(self.context_frames)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "DiffusionConfig":
        """Rebuild a config from the plain values of model.yaml.

        Raises:
            ValueError: a key is unknown, or a value does not fit.
        """
        unknown = sorted(shown(name).strip("'") for name in set(plain) - {one.name for one in fields(cls)})
        if unknown:
            raise ValueError(f"section diffusion of model.yaml has unknown keys: {', '.join(unknown)}; use the version that wrote it")
        return build_record(cls, plain, "section diffusion of model.yaml")
