"""The frame rate that an artifact keeps in the section `video` of model.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from walt_pl.plain_records import build_record, check_range

MAX_FPS = 1000.0
"""Most frames a second of a stored rate."""
MIN_FPS = 0.001
"""Fewest frames a second of a stored rate."""


@dataclass(frozen=True)
class VideoSection:
    """The section `video` of model.yaml."""

    fps: float

    def __post_init__(self) -> None:
        check_range(self.fps, "fps", MAX_FPS, MIN_FPS)


def trained_fps(section: Mapping[str, Any], where: str) -> float:
    """Return the frames a second of the training.

    Raises:
        UntrustedError: the section has no such rate.
    """
    return build_record(VideoSection, section, f'{where}: section "video" of model.yaml').fps
