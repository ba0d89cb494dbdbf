"""The array of images that ADM's evaluator reads: an .npz with uint8 `arr_0` [n h w 3], and class numbers `arr_1` [n]."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from walt_pl.evaluation.source import ClipDraw, ClipSource, ReadClips
from walt_pl.files import whole_file, write_whole
from walt_pl.removal import remove_own
from walt_pl.untrusted import parse_json

BLOCK_FORMAT = 2
"""Version of a kept block; 1 had no captions."""


class KeptImages(ClipSource):
    """Images of a source that makes them once: a block that was read is kept on disk, for measuring and for the array.

    Args:
        source: makes the images, without failures.
        folder: of the blocks. Blocks of other facts stay and are not read.
    """

    def __init__(self, source: ClipSource, folder: Path) -> None:
        self.source = source
        self.folder = folder

    def __len__(self) -> int:
        return len(self.source)

    def facts(self) -> dict[str, Any]:
        """Return the facts of the source."""
        return self.source.facts()

    def lengths(self) -> Sequence[int]:
        """Return the frames of each image."""
        return self.source.lengths()

    def names(self) -> Sequence[str]:
        """Return the names of the source."""
        return self.source.names()

    def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: tuple[int, int] | None) -> ReadClips:
        """Read a block from disk, or make and keep it, see `read_blocks`."""
        (read,) = self.read_blocks([draws], frames, stride, size)
        return read

    def read_blocks(
        self, blocks: Sequence[Sequence[ClipDraw]], frames: int, stride: int, size: tuple[int, int] | None
    ) -> Iterator[ReadClips]:
        """Read blocks from disk, or make and keep them.

        Raises:
            ValueError: an image of a block cannot be made.
        """
        paths = [self._path(draws, frames, stride, size) for draws in blocks]
        missing = [not path.is_file() for path in paths]
        made = self.source.read_blocks([draws for draws, lacks in zip(blocks, missing, strict=True) if lacks], frames, stride, size)
        for path, lacks in zip(paths, missing, strict=True):
            if lacks:
                self._keep(path, next(made))
            kept = load_file(path)
            captions = parse_json(kept["captions"].numpy().tobytes(), str(path))
            yield ReadClips(list(kept["clips"]), captions, labels=kept["labels"].tolist())

    def _path(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: tuple[int, int] | None) -> Path:
        asked = {"format": BLOCK_FORMAT, "facts": self.source.facts(), "draws": draws, "frames": frames, "stride": stride, "size": size}
        return self.folder / f"{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()}.safetensors"

    def _keep(self, path: Path, made: ReadClips) -> None:
        found = [clip for clip in made.clips if clip is not None]
        if len(found) < len(made.clips):
            raise ValueError(f"evaluate: {len(made.clips) - len(found)} images cannot be made: {'; '.join(made.failures.values())}")
        labels = torch.tensor(made.labels or [-1] * len(found), dtype=torch.int64)
        self.folder.mkdir(parents=True, exist_ok=True)
        captions = torch.frombuffer(bytearray(json.dumps(list(made.captions)).encode()), dtype=torch.uint8)
        write_whole(path, save({"clips": torch.stack(found), "labels": labels, "captions": captions}))

    def remove(self) -> None:
        """Remove the blocks."""
        remove_own(self.folder, (r"[0-9a-f]{64}\.safetensors",))


def write_npz(path: Path, source: ClipSource, draws: Sequence[ClipDraw], batch: int, size: tuple[int, int] | None = None) -> None:
    """Write the images of a source as an array, block by block: 50,000 images of 256 x 256 are 9.8 GB.

    Args:
        path: of the .npz, written whole.
        source: of images of one size.
        draws: at least one.
        batch: draws of a block.
        size: rows and columns; None leaves the source's own.

    Raises:
        ValueError: a clip has more than one frame, cannot be read, or has another size than the first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    labels: list[int] = []
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            shape: tuple[int, ...] = ()
            for pixels, of_block in _read_images(source, draws, batch, size):
                if not shape:
                    shape = pixels.shape[1:]
                    described = {"descr": "|u1", "fortran_order": False, "shape": (len(draws), *shape)}
                    np.lib.format.write_array_header_1_0(member, described)
                if pixels.shape[1:] != shape:
                    raise ValueError(f"{path}: wanted images of one size, found {list(shape[:2])} and {list(pixels.shape[1:3])}")
                member.write(np.ascontiguousarray(pixels).tobytes())
                labels += of_block
        with archive.open("arr_1.npy", "w") as member:
            np.lib.format.write_array(member, np.array(labels, np.int64))


def _read_images(
    source: ClipSource, draws: Sequence[ClipDraw], batch: int, size: tuple[int, int] | None
) -> Iterator[tuple[np.ndarray[Any, Any], list[int]]]:
    """Yield the pixels, uint8 [b h w 3], and the labels of each block.

    Raises:
        ValueError: a clip has more than one frame, or cannot be read.
    """
    for start in range(0, len(draws), batch):
        part = draws[start : start + batch]
        read = source.read(part, 1, 1, size)
        clips = [clip for clip in read.clips if clip is not None]
        if len(clips) < len(part):
            raise ValueError(f"evaluate: {len(part) - len(clips)} images cannot be made: {'; '.join(read.failures.values())}")
        yield torch.cat(clips).numpy(), list(read.labels or [-1] * len(part))
