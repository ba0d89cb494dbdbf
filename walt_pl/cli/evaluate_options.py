"""Options of `walt evaluate`, and the values of the protocol that a run determines where nobody typed them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from walt_pl.data.frame_rate import same_rate, trained_rate
from walt_pl.data.index import IndexEntries
from walt_pl.data.transforms import ClipTransform
from walt_pl.evaluation.given_frames import context_frames
from walt_pl.metrics.protocol import PRESETS
from walt_pl.sampling.cascade import Cascade

DEFAULT_FRAMES = 16
"""Frames of a measured sample without a preset: those of the published protocols. W.A.L.T makes 17."""
DEFAULT_CLIPS = 2048
"""Most clips of each side without a preset."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation by metrics, as they were typed."""

    run: Path
    metric: str | None = None
    preset: str | None = None
    extractor: str | dict[str, str] | None = None
    extractor_kind: str | None = None
    extractor_sha256: str | dict[str, str] | None = None
    split: str | None = None
    clips: int | None = None
    frames: int | None = None
    stride: int | None = None
    folds: int | None = None
    resize: str | None = None
    seed: int = 0
    batch: int = 16
    npz: Path | None = None

    def __post_init__(self) -> None:
        for name in ("clips", "frames", "stride", "folds", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"evaluate: --{name} must be at least 1, got {value}")

    def protocol_changes(self, derived: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the protocol that differ from the preset, or from the defaults.

        Args:
            derived: values that follow from the run. They count where there is no preset. Where they, or the preset, take every real
                clip (real_clips None), --clips counts the samples alone.
        """
        names = ("split", "clips", "frames", "stride", "folds", "resize")
        typed = {name: value for name in names if (value := getattr(self, name)) is not None}
        base = derived if self.preset is None else {"real_clips": PRESETS[self.preset].real_clips} if self.preset in PRESETS else {}
        if self.clips is not None and base.get("real_clips", self.clips) is not None:
            typed["real_clips"] = self.clips
        return typed if self.preset else {**derived, **typed}


def trained_stride(videos: IndexEntries, clip_transform: ClipTransform) -> int:
    """Return the distance between frames of a file at which a model was trained.

    Raises:
        ValueError: it was trained at a rate of which the rates of the files are no multiple.
    """
    if clip_transform.fps is None or not len(videos):
        return clip_transform.stride
    rate = trained_rate(videos, np.arange(len(videos)), replace(clip_transform, fps=None, stride=1))
    stride = max(1, round(rate / clip_transform.fps)) if rate else 0
    if not rate or not same_rate(rate / stride, clip_transform.fps):
        found = f"{rate:g} a second" if rate else "of different or unknown rates"
        raise ValueError(
            f"evaluate: the model was trained at {clip_transform.fps:g} frames a second, and the frames of the files are {found}: give the "
            "distance between frames with --stride"
        )
    return stride


def sample_protocol(cascade: Cascade, stride: int) -> dict[str, Any]:
    """Return the values of a protocol for the samples of a cascade: its frames and size, and given frames where it needs them.

    Images are compared with every image of the split, as ADM's evaluator does.
    """
    frames = min(DEFAULT_FRAMES, cascade.clip_frames)
    given = context_frames(cascade)
    return {
        "frames": frames,
        "stride": stride,
        **({"real_clips": None} if frames == 1 else {}),
        "size": cascade.pixels(cascade.stages[-1]),
        "context_frames": given,
        "paired": given > 0,
    }
