"""Read clips of files as they are measured: uint8, upright, square pixels, scaled and cropped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from walt_pl.data.index import IndexEntry
from walt_pl.data.transforms import to_size
from walt_pl.evaluation.source import ClipDraw
from walt_pl.media.contact_sheet import to_uint8
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.reading import picture_sizes, read_sizes
from walt_pl.media.spans import FrameRange
from walt_pl.media.types import Frames, MediaError, Size

WORKERS = min(4, os.cpu_count() or 1)
"""Threads that read files: decoders work outside of Python's lock."""


def read_entries(
    entries: Sequence[IndexEntry], draws: Sequence[ClipDraw], frames: int, stride: int, size: Size | None
) -> tuple[list[Tensor | None], dict[int, str]]:
    """Read a clip of each entry, in a few threads.

    Args:
        entries: Video or image of each draw.
        draws: Clips to read. An image has one frame, whatever `frames` says.
        frames: Frames of each clip.
        stride: Distance between them, in frames of the file.
        size: Rows and columns, see `cover_and_crop`.

    Returns:
        The clips in order, None where one cannot be read; and the reasons by position.
    """
    ranges = [FrameRange(frames, stride=stride, start=draw.start) for draw in draws]
    return read_ranges(entries, ranges, size)


def read_ranges(
    entries: Sequence[IndexEntry], ranges: Sequence[FrameRange], size: Size | None, options: DecodeOptions = DecodeOptions()
) -> tuple[list[Tensor | None], dict[int, str]]:
    """Read a range of frames of each entry, see `read_entries`."""

    def read(number: int) -> Tensor | str:
        entry = entries[number]
        try:
            if entry.kind == "image":
                (clip,) = picture_sizes(entry, (size,), options)
            else:
                (clip,) = read_sizes(entry, ranges[number], (size,), options)
        except MediaError as error:
            return str(error)
        return cover_and_crop(clip, size)

    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(read, range(len(entries))))
    clips = [None if isinstance(clip, str) else clip for clip in found]
    return clips, {number: reason for number, reason in enumerate(found) if isinstance(reason, str)}


def cover_and_crop(clip: Frames, size: Size | None) -> Tensor:
    """Scale a clip until it covers `size` and crop its centre (bicubic with antialias), rounded as `sample` rounds.

    Args:
        clip: uint8 [t h w 3].
        size: Rows and columns in pixels; None leaves the clip as it is.

    Returns:
        uint8 [t rows columns 3].
    """
    return torch.from_numpy(clip if size is None else to_uint8(to_size(clip, *size)))
