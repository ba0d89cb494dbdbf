"""The protocol of a source of clips: a folder, an index, an array, the samples of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class ClipDraw(NamedTuple):
    """One clip of a source."""

    item: int
    """Index of the video or image in its source."""
    start: int
    """First frame."""


@dataclass(frozen=True)
class Drawn:
    """The clips that a protocol takes of a source, in order: fold after fold."""

    draws: Sequence[ClipDraw]
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of videos that are not used, by reason."""


@dataclass(frozen=True)
class ReadClips:
    """Clips that were read or made, in the order of their draws."""

    clips: Sequence[Tensor | None]
    """uint8 [t h w 3] of each; None where it could not be read."""
    captions: Sequence[str] = ()
    labels: Sequence[int] = ()
    originals: Sequence[Tensor | None] | None = None
    """The real clip that each belongs to, where the source knows it (reconstructions, continued clips)."""
    failures: dict[int, str] = field(default_factory=dict)
    """Reason for each clip that is None, by position in `clips`. It names the file."""


class ClipSource(ABC):
    """Clips that are measured."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of videos or images."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what identifies the clips, for card and cache: kind, path, split, hash of the index or of the files, ..."""

    @abstractmethod
    def lengths(self) -> Sequence[int]:
        """Return the number of frames of each video; 1 for an image, 0 for a video that cannot be read."""

    def kinds(self) -> Sequence[str]:
        """Return "video" or "image" for each; without a method of its own, a source of one frame is an image."""
        return ["image" if length == 1 else "video" for length in self.lengths()]

    def left_out(self) -> dict[str, int]:
        """Return the number of files that are not among the videos and images, by reason."""
        return {}

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Return the name of each video or image, by which pairs are found."""

    @abstractmethod
    def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: tuple[int, int] | None) -> ReadClips:
        """Read or make clips. One that cannot be read is None, and has a reason.

        Args:
            draws: clips to read.
            frames: frames of each.
            stride: distance between them, in frames of the file.
            size: rows and columns that each is scaled to cover and centrally cropped to; None leaves the file's own.
        """

    def read_blocks(
        self, blocks: Sequence[Sequence[ClipDraw]], frames: int, stride: int, size: tuple[int, int] | None
    ) -> Iterator[ReadClips]:
        """Read or make the clips of several blocks, one after the other. Arguments as in `read`; a source may work ahead."""
        for draws in blocks:
            yield self.read(draws, frames, stride, size)
