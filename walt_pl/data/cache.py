"""Latents computed once: shards of float16 on disk that workers map into memory.

A cache is a folder with `meta.json` and raw files `00000.f16`, `00001.f16`, ... of `SHARD_ROWS` rows each. A row is the
raw (not normalised) posterior mean of one view of one clip or image, `row = item * views + view`. float16 keeps 11 bits
of a latent, far below the noise of the smallest diffusion step, at half the size of float32.

`meta.json` holds the key (whatever the latents depend on), the shape of a row, and per shard its SHA-256 and the files
that could not be read. A cache with another key is rebuilt, never read.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import Dataset

from walt_pl.data.batch import DataError, Draw, Kind, Sample
from walt_pl.data.index import Entry
from walt_pl.data.transforms import Framing, PixelDataset

SHARD_ROWS = 256
_FORMAT = 1

Encode = Callable[[Tensor], Tensor]
"""Pixels [b 3 t h w] in -1..1 to posterior means [b c t' h' w']."""


@dataclass
class Shard:
    """What `meta.json` says of one file of the cache."""

    sha256: str
    broken: dict[int, str] = field(default_factory=dict)
    """Row -> why its file could not be read; the row holds zeros."""


class LatentCache:
    """The latents of the first `count` clips (or images) of a split, `views` of each.

    Args:
        folder: Where the cache lies or will lie.
        key: What the latents depend on, as plain values: hashes of the autoencoder and the index, split, framing.
        count: Clips or images.
        views: Fixed views of each.
    """

    def __init__(self, folder: Path, key: Mapping[str, object], count: int, views: int = 1) -> None:
        self.folder = folder
        self.key = {**key, "count": count, "views": views, "format": _FORMAT, "dtype": "float16"}
        self.rows = count * views
        self.views = views
        self.shape: tuple[int, ...] = ()
        """[c t h w] of a row; empty until the cache is built or opened."""
        self.shards: list[Shard | None] = [None] * -(-self.rows // SHARD_ROWS)
        self._maps: dict[int, NDArray[np.float16]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is a copy of the file; workers map it themselves.
        return {**self.__dict__, "_maps": {}}

    def build(self, dataset: PixelDataset, kind: Kind, encode: Callable[[], Encode], batch_size: int, readers: int = 1) -> None:
        """Computes every shard that is missing, stale or damaged; does nothing when there is none.

        Every shard is written to a temporary file and renamed, so that an interrupted build goes on where it stopped.

        Args:
            dataset: Reads the clips; its framing has the cache's views.
            kind: Which of its lists is cached.
            encode: Gives the encoder; called only when something has to be computed.
            batch_size: Clips encoded together.
            readers: Threads that decode ahead while the encoder runs.

        Raises:
            RuntimeError: If not one file of the first shard can be read.
            ValueError: If a latent does not fit float16.
            OSError: If the disk is full.
        """
        self._load(verify=True)
        missing = [number for number, shard in enumerate(self.shards) if shard is None]
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_meta()
        self._remove_left_overs()
        run = encode()
        bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True)
        with bar, ThreadPoolExecutor(max(1, readers)) as pool:
            total = sum(len(self._rows_of(number)) for number in missing)
            task = bar.add_task(f"latents {self.folder.parent.name}/{self.folder.name}", total=total)
            for number in missing:
                samples = _read_ahead(pool, dataset, self._draws(number, kind), batch_size)
                self._build_shard(number, samples, run, lambda rows: bar.advance(task, rows))

    def open(self) -> None:
        """Makes a finished cache readable.

        Raises:
            RuntimeError: If the cache is missing, stale or unfinished.
        """
        self._load(verify=False)
        missing = sum(shard is None for shard in self.shards)
        if missing:
            raise DataError(
                f"{self.folder}: {missing} of {len(self.shards)} shards of latents are missing. They are built by rank "
                "zero before training; does data.cache_dir lie on a disk that every machine sees?"
            )

    def read(self, item: int, pass_number: int) -> tuple[Tensor, str]:
        """Gives the latent that a pass over the data sees.

        Args:
            item: Number of the clip or image.
            pass_number: How often the data was gone through; view = pass mod views.

        Returns:
            The raw posterior mean, float32 [c t h w], and why the file could not be read (empty when it could).
        """
        row = item * self.views + pass_number % self.views
        number, place = divmod(row, SHARD_ROWS)
        if number not in self._maps:
            shape = (len(self._rows_of(number)), *self.shape)
            self._maps[number] = np.memmap(self._file(number), dtype=np.float16, mode="r", shape=shape)
        shard = self.shards[number]
        assert shard is not None, "read before build or open"
        return torch.from_numpy(self._maps[number][place].astype(np.float32)), shard.broken.get(row, "")

    def _rows_of(self, number: int) -> range:
        return range(number * SHARD_ROWS, min(self.rows, (number + 1) * SHARD_ROWS))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.f16"

    def _draws(self, number: int, kind: Kind) -> list[Draw]:
        return [Draw(kind, row // self.views, row % self.views, row) for row in self._rows_of(number)]

    def _load(self, verify: bool) -> None:
        self._maps.clear()
        self.shards = [None] * len(self.shards)
        meta = self._read_meta()
        if meta is None:
            return
        self.shape = tuple(meta["shape"])
        for number, entry in enumerate(meta["shards"]):
            if entry is not None and self._is_whole(number, entry["sha256"], verify):
                self.shards[number] = Shard(entry["sha256"], {int(row): why for row, why in entry["broken"].items()})

    def _read_meta(self) -> dict[str, Any] | None:
        """Gives `meta.json`, or None (and says so) where it belongs to other latents."""
        path = self.folder / "meta.json"
        if not path.is_file():
            return None
        try:
            meta: dict[str, Any] = json.loads(path.read_text())
            key = meta["key"]
        except (ValueError, KeyError, TypeError):
            warnings.warn(f"{path} is damaged: the latents are computed anew", stacklevel=4)
            return None
        changed = [name for name in sorted({*key, *self.key}) if key.get(name) != self.key.get(name)]
        if changed:
            warnings.warn(f"{self.folder} is stale ({', '.join(changed)} changed): not used", stacklevel=4)
            return None
        return meta

    def _is_whole(self, number: int, sha256: str, verify: bool) -> bool:
        path = self._file(number)
        if not path.is_file() or path.stat().st_size != len(self._rows_of(number)) * int(np.prod(self.shape)) * 2:
            return False
        if not verify:
            return True
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            warnings.warn(
                f"{path}: SHA-256 {found[:12]}..., but meta.json says {sha256[:12]}...: damaged, this shard is rebuilt",
                stacklevel=5,
            )
        return found == sha256

    def _build_shard(self, number: int, batches: Iterator[list[Sample]], encode: Encode, advance: Callable[[int], None]) -> None:
        parts: list[NDArray[np.float16]] = []
        broken: dict[int, str] = {}
        for samples in batches:
            latents = _encode_batch(samples, encode)
            parts.append(latents)
            broken |= {sample.draw.slot: sample.failure for sample in samples if sample.failure}
            advance(len(samples))
        rows = np.concatenate(parts)
        if number == 0 and len(broken) == len(rows):
            reasons = list(dict.fromkeys(broken.values()))[:10]
            raise DataError("\n  ".join([f"{self.folder}: none of the first {len(rows)} files can be read:", *reasons]))
        self.shape = rows.shape[1:]
        data = rows.tobytes()
        _write_whole(self._file(number), data)
        self.shards[number] = Shard(hashlib.sha256(data).hexdigest(), broken)
        self._write_meta()

    def _remove_left_overs(self) -> None:
        """Frees the space of half-written, stale and damaged files."""
        whole = {self._file(number) for number, shard in enumerate(self.shards) if shard is not None}
        for path in [*self.folder.glob("*.tmp"), *self.folder.glob("*.f16")]:
            if path not in whole:
                path.unlink()

    def _write_meta(self) -> None:
        shards = [None if shard is None else {"sha256": shard.sha256, "broken": shard.broken} for shard in self.shards]
        meta = {"key": self.key, "shape": self.shape, "shards": shards}
        _write_whole(self.folder / "meta.json", json.dumps(meta, indent=1).encode())


def _read_ahead(pool: ThreadPoolExecutor, dataset: PixelDataset, draws: Sequence[Draw], batch_size: int) -> Iterator[list[Sample]]:
    """Gives batches of samples in order, with the next batch being decoded while one is in use."""
    batches = iter([draws[start : start + batch_size] for start in range(0, len(draws), batch_size)])
    ahead = [[pool.submit(dataset.__getitem__, draw) for draw in batch] for batch in islice(batches, 1)]
    while ahead:
        now = ahead.pop(0)
        ahead += [[pool.submit(dataset.__getitem__, draw) for draw in batch] for batch in islice(batches, 1)]
        yield [future.result() for future in now]


def _encode_batch(samples: Sequence[Sample], encode: Encode) -> NDArray[np.float16]:
    latents = encode(torch.stack([sample.content for sample in samples])).float().cpu()
    for row, sample in enumerate(samples):
        if sample.failure:
            latents[row] = 0
    with np.errstate(over="ignore"):  # told below, with the file
        rows = latents.numpy().astype(np.float16)
    if not np.isfinite(rows).all():
        largest = float(latents.abs().max())
        raise ValueError(
            f"latents of {samples[0].path} and the {len(samples) - 1} files after it do not fit float16: largest value "
            f"{largest:g}, at most 65504 wanted. The autoencoder has diverged; train it again with a larger KL weight"
        )
    return rows


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free >> 20
        raise OSError(
            f"{path}: cannot write {len(data) >> 20} MiB of latents ({error}; {free} MiB free). Make room, or set "
            "data.cache_dir to another disk; the same command goes on from here"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


class LatentDataset(Dataset[Sample]):
    """Reads clips and images as latents from caches, by `Draw`.

    Args:
        videos: Entries of the clips.
        images: Entries of the images.
        caches: An opened cache for each kind that is drawn.
        low_caches: The same at the low size (super-resolution), or None.
    """

    def __init__(
        self,
        videos: Sequence[Entry],
        images: Sequence[Entry],
        caches: Mapping[Kind, LatentCache],
        low_caches: Mapping[Kind, LatentCache] | None = None,
    ) -> None:
        self.videos = videos
        self.images = images
        self.caches = caches
        self.low_caches = low_caches

    def __getitem__(self, draw: Draw) -> Sample:
        """Reads the latent [c t h w] of one clip or image, with its low-resolution twin where there is one."""
        entry = (self.videos if draw.kind == "video" else self.images)[draw.item]
        content, failure = self.caches[draw.kind].read(draw.item, draw.pass_number)
        low = None
        if self.low_caches is not None:
            low, low_failure = self.low_caches[draw.kind].read(draw.item, draw.pass_number)
            failure = failure or low_failure
        return Sample(draw, content, low, entry.caption, entry.label, str(entry.path), failure, "latents")


def encode_batch_size(framing: Framing, kind: Kind) -> int:
    """How many clips to encode together: 16 of 17 frames at 32 px, and as many pixels at other sizes."""
    frames = framing.frames if kind == "video" else 1
    rows, columns = framing.shape(framing.size)
    return min(256, max(1, 16 * 17 * 32**2 // (frames * rows * columns)))
