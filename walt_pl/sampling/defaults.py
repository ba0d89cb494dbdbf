"""Defaults of the command `sample`: guidance and frame rate from the artifacts."""

import math
from dataclasses import replace
from typing import Any, Literal

from walt_pl.data.frame_rate import DEFAULT_FPS, same_rate
from walt_pl.diffusion.ddim import Guidance
from walt_pl.sampling.cascade import Cascade

GuidanceName = Literal["constant", "power-cosine"]


def stage_guidance(
    cascade: Cascade, scale: float | dict[str, float] | None, shape: GuidanceName | None, rescale: float | None
) -> dict[str, Guidance]:
    """Return the guidance of each stage: that of its artifact, with the typed options replaced.

    Args:
        cascade: the stages that run.
        scale: guidance scale, of every stage or by stage; None keeps the artifact's.
        shape: of every stage; None keeps the artifact's.
        rescale: of every stage; None keeps the artifact's.
    """
    guides = {}
    for stage in cascade.stages:
        typed = {"scale": scale.get(stage) if isinstance(scale, dict) else scale, "shape": shape, "rescale": rescale}
        changes: dict[str, Any] = {name: value for name, value in typed.items() if value is not None}
        guides[stage] = replace(cascade.guidance(stage), **changes)
    return guides


def sampling_fps(cascade: Cascade) -> float:
    """Return the training frame rate of the models in frames a second. Print a note where they have none, or several rates.

    Without a rate, return `DEFAULT_FPS`.
    """
    rates, fps = cascade.frame_rates, cascade.fps
    if fps is None:
        if cascade.clip_frames > 1:
            print(f"sample: the artifacts do not say at which rate they were trained; taking {DEFAULT_FPS:g} frames a second (--fps)")
        return DEFAULT_FPS
    if not all(same_rate(rate, fps) for rate in rates.values()):
        trained = ", ".join(f'"{stage}" at {rate:g}' for stage, rate in rates.items())
        print(
            f"sample: the stages were trained at different rates ({trained} frames a second); taking {fps:g}, that of "
            f'"{next(iter(rates))}". Train them with one data.fps, or choose with --fps'
        )
    return fps


def frame_count(seconds: float, fps: float) -> int:
    """Return the number of frames in `seconds` at `fps` frames a second, at least 1.

    Raises:
        ValueError: the product is below 0.5 or infinite.
    """
    if not 0.5 <= seconds * fps < math.inf:
        raise ValueError(f"sample: --seconds must be {1 / fps:g} (one frame at {fps:g} frames a second) or more, got {seconds:g}")
    return max(1, round(seconds * fps))
