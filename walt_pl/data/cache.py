"""Latents that are computed once: shards of float16 on disk that workers map into memory.

A cache is a folder with `meta.json` and files `00000.f16`, `00001.f16`, ... of `SHARD_ROWS` rows each. A row is the raw (not
normalised) posterior mean of one view of one clip or image. float16 keeps 11 bits of a latent, far below the noise of the
smallest diffusion timestep, at half the size of float32. After its rows a shard has the CRC-32 of each row, 4 bytes.

Item n of the cache has the rows n * views to (n + 1) * views - 1. Where the cache does not hold just the first items of a
list, `items.i64` lists its items, ascending. Workers map that file, too.

`meta.json` holds the key (everything that the latents depend on) and the shape of a row. Per shard it holds the SHA-256 and the
files that could not be read. A cache with another key is rebuilt, never read. `meta.json` has the hash of its own content, and is read
like a stranger's file (cache_meta.py): one that is damaged counts as missing.

Bytes that change on disk are found when their row is read: its CRC takes 8 microseconds (20 KiB, 3.5 GB/s). The row then counts
as unreadable, and the message names it. Hashing whole shards instead would read the whole cache once in every worker of every
rank. `python -m walt_pl cache` compares the SHA-256 of every shard and computes damaged ones again.
"""

import hashlib
import os
import re
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from walt_pl.data.batch import DataError, JointBatch, Kind, Sample, SampleRef, SampleSource, collate
from walt_pl.data.cache_meta import check_rows, dump_meta, plain_values, read_meta, version_of
from walt_pl.data.transforms import ClipTransform
from walt_pl.data.workers import Answer, Workers
from walt_pl.files import file_sha256, is_temporary_of, write_whole
from walt_pl.lock import hold_lock

SHARD_ROWS = 256
_FORMAT = 2
_CRC = np.dtype("<u4")
_ITEM = np.dtype("<i8")
_MAPS = 4096
"""Shards that a process keeps mapped; Linux allows 65,530 maps in all."""
_SKIPPED = "quarantined: "
_MEND = "python -m walt_pl cache --config EXPERIMENT"

Encode = Callable[[Tensor], Tensor]
"""Function from pixels [b 3 t h w] in -1..1 to posterior means [b c t' h' w']."""


@dataclass
class Shard:
    """The entry of one file of the cache in `meta.json`."""

    sha256: str
    broken: dict[int, str] = field(default_factory=dict)
    """Row -> why its file could not be read; the row holds zeros."""


class LatentCache:
    """The latents of some clips (or images) of a split, `views` of each.

    Args:
        folder: Folder of the cache, which may not exist yet.
        key: Everything that the latents depend on, as plain values: hashes of the autoencoder and the index, split, clip transform.
        count: Number of clips or images.
        views: Fixed views of each.
        items: Their numbers in their list, ascending; the first `count` if not set.
    """

    def __init__(self, folder: Path, key: Mapping[str, object], count: int, views: int = 1, items: NDArray[np.int64] | None = None) -> None:
        self.folder = folder
        # It is compared with the key that comes back from meta.json.
        self.key = plain_values({**key, "count": count, "views": views, "format": _FORMAT, "dtype": "float16"})
        if items is not None:
            assert len(items) == count
            self.key["items"] = hashlib.sha256(_item_bytes(items)).hexdigest()
        self.rows = count * views
        self.views = views
        self.shape: tuple[int, ...] = ()
        """[c t h w] of a row; empty until the cache is built or opened."""
        self.shards: list[Shard | None] = [None] * -(-self.rows // SHARD_ROWS)
        self._items = items
        self._stale: dict[str, object] = {}
        self._maps: dict[int, tuple[NDArray[np.float16], NDArray[np.uint32]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would be a copy of the file. Workers map the file themselves.
        return {**self.__dict__, "_maps": {}, "_items": None}

    def build(
        self,
        source: SampleSource,
        kind: Kind,
        encode: Callable[[], Encode],
        batch_size: int,
        readers: int = 0,
        skip: Mapping[int, str] | None = None,
        verify: bool = True,
        timeout: float = 60.0,
    ) -> None:
        """Compute every shard that is missing, stale or damaged. Do nothing if there is none.

        Every shard is written to a temporary file and renamed, so that an interrupted build continues where it stopped.

        Args:
            source: Reads the clips. Its clip transform has the cache's views.
            kind: Kind of the list that is cached.
            encode: Returns the encoder. It is called only if something must be computed.
            batch_size: Clips encoded together.
            readers: Processes that decode ahead while the encoder runs. With 0, this process decodes, and a decoder that crashes ends it.
            skip: Items that must not be read (the quarantine), with the reasons. A shard with an item that is free again is computed again.
            verify: Compare the SHA-256 of every shard. Without it, damage is found when a row is read.
            timeout: Seconds that a reader may spend on one file.

        Raises:
            DataError: None of the files of the first shard can be read.
            ValueError: A latent does not fit float16.
            OSError: The disk is full.
        """
        skip, before = skip or {}, version_of(self.folder / "meta.json")
        self._load(verify)
        if not self._missing(skip) and self._has_items():
            return  # also where the disk is read-only
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.folder / ".lock", work=f"latents {self.folder}"):
            if version_of(self.folder / "meta.json") != before:  # another process has built it meanwhile
                self._load(verify)
            self._build_missing(source, kind, encode, batch_size, readers, skip, timeout)

    def _build_missing(
        self,
        source: SampleSource,
        kind: Kind,
        encode: Callable[[], Encode],
        batch_size: int,
        readers: int,
        skip: Mapping[int, str],
        timeout: float,
    ) -> None:
        if self._items is not None and not self._has_items():
            _write(self.folder / "items.i64", _item_bytes(self._items))
        missing = self._missing(skip)
        if not missing:
            return
        for number in missing:
            self.shards[number] = None
        self._write_meta()
        self._remove_left_overs()
        run = encode()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # Without a terminal, rich would print an empty line for the bar.
        bar = Progress(*columns, transient=True, disable=not sys.stdout.isatty())
        with bar, _reading(_Skipping(source, skip), self._batches(missing, kind, batch_size), readers, timeout) as answers:
            total = sum(len(self._rows_of(number)) for number in missing)
            task = bar.add_task(f"latents {self.folder.parent.name}/{self.folder.name}", total=total)
            for number in missing:
                batches = islice(answers, -(-len(self._rows_of(number)) // batch_size))
                self._build_shard(number, batches, run, lambda rows: bar.advance(task, rows))

    def open(self) -> None:
        """Make a finished cache readable.

        Raises:
            DataError: The cache is missing, stale or unfinished.
        """
        self._load(verify=False)
        missing = sum(shard is None for shard in self.shards)
        if "vae" in self._stale:
            before, now = str(self._stale["vae"])[:12], str(self.key["vae"])[:12]
            raise DataError(
                f"{self.folder} has latents of another autoencoder ({before}, wanted {now}). It was trained again while this stage "
                "started: type the same command again, which computes the latents of the new one"
            )
        if missing:
            raise DataError(
                f"{self.folder}: {missing} of {len(self.shards)} shards of latents are missing. They are built by rank "
                "zero before training; does data.cache_dir lie on a disk that every machine sees?"
            )
        if not self._has_items():
            raise DataError(f"{self.folder / 'items.i64'} is damaged: {_MEND} writes it again")

    def read(self, item: int, epoch: int) -> tuple[Tensor, str]:
        """Return the latent of an item in one epoch.

        Args:
            item: Number of the clip or image in its list.
            epoch: Number of earlier passes over the list; view = epoch mod views.

        Returns:
            The raw posterior mean, float32 [c t h w], and an empty string. If there is no latent: zeros and the reason.
        """
        row = self._place(item) * self.views + epoch % self.views
        number, place = divmod(row, SHARD_ROWS)
        shard = self.shards[number]
        assert shard is not None, "read before build or open"
        rows, sums = self._map_shard(number)
        if zlib.crc32(rows[place]) == sums[place]:
            return torch.from_numpy(rows[place].astype(np.float32)), shard.broken.get(row, "")
        damage = f"{self._file(number)}: row {place} has changed since it was written (CRC-32): {_MEND} computes it again"
        return torch.zeros(self.shape, dtype=torch.float32), damage

    def _place(self, item: int) -> int:
        """Return the position of an item among the items of the cache."""
        if "items" not in self.key:
            return item
        if self._items is None:
            self._items = np.memmap(self.folder / "items.i64", dtype=_ITEM, mode="r")
        place = int(np.searchsorted(self._items, item))
        assert self._items[place] == item, f"item {item} is not in {self.folder}"
        return place

    def _map_shard(self, number: int) -> tuple[NDArray[np.float16], NDArray[np.uint32]]:
        """Return rows and checksums of a shard."""
        if number not in self._maps:
            if len(self._maps) == _MAPS:
                self._maps.pop(next(iter(self._maps)))
            shape = (len(self._rows_of(number)), *self.shape)
            rows = np.memmap(self._file(number), dtype=np.float16, mode="r", shape=shape)
            sums = np.memmap(self._file(number), dtype=_CRC, mode="r", offset=rows.nbytes, shape=shape[:1])
            self._maps[number] = (rows, sums)
        return self._maps[number]

    def _has_items(self) -> bool:
        """Return whether the file that lists the items is there and whole, or not needed."""
        if "items" not in self.key:
            return True
        path = self.folder / "items.i64"
        whole = path.is_file() and path.stat().st_size == self.rows // self.views * _ITEM.itemsize
        return whole and hashlib.sha256(path.read_bytes()).hexdigest() == self.key["items"]

    def _missing(self, skip: Mapping[int, str]) -> list[int]:
        """Return the numbers of the shards to compute."""
        return [number for number, shard in enumerate(self.shards) if shard is None or self._is_free_again(shard, skip)]

    def _is_free_again(self, shard: Shard, skip: Mapping[int, str]) -> bool:
        return any(why.startswith(_SKIPPED) and self._item(row // self.views) not in skip for row, why in shard.broken.items())

    def _item(self, place: int) -> int:
        return place if self._items is None else int(self._items[place])

    def _rows_of(self, number: int) -> range:
        return range(number * SHARD_ROWS, min(self.rows, (number + 1) * SHARD_ROWS))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.f16"

    def _batches(self, numbers: Sequence[int], kind: Kind, batch_size: int) -> Iterator[list[SampleRef]]:
        """Yield the batches to read for some shards, in order. Every shard begins with a new batch."""
        for number in numbers:
            rows = self._rows_of(number)
            draws = [SampleRef(kind, self._item(row // self.views), row % self.views, row) for row in rows]
            yield from (draws[start : start + batch_size] for start in range(0, len(draws), batch_size))

    def _load(self, verify: bool) -> None:
        self._maps.clear()
        self._stale = {}
        self.shards = [None] * len(self.shards)
        meta = self._read_meta()
        if meta is None:
            return
        self.shape = tuple(meta["shape"])
        for number, entry in enumerate(meta["shards"]):
            if entry is not None and self._is_whole(number, entry["sha256"], verify):
                self.shards[number] = Shard(entry["sha256"], {int(row): why for row, why in entry["broken"].items()})

    def _read_meta(self) -> dict[str, Any] | None:
        """Return `meta.json`. If it is damaged or belongs to other latents, warn and return None."""
        path = self.folder / "meta.json"
        if not os.path.lexists(path):
            return None
        try:
            meta = read_meta(path, self.rows)
            key = meta["key"]
            changed = [name for name in sorted({*key, *self.key}) if key.get(name) != self.key.get(name)]
            self._stale = {name: key.get(name) for name in changed}
            if changed:
                warnings.warn(f"{self.folder} is stale ({', '.join(changed)[:200]} changed): not used", stacklevel=4)
                return None
            check_rows(meta["shards"], [self._rows_of(number) for number in range(len(self.shards))], path)
        except ValueError as error:
            warnings.warn(f"{error}: the latents are computed anew", stacklevel=4)
            return None
        return meta

    def _is_whole(self, number: int, sha256: str, verify: bool) -> bool:
        path = self._file(number)
        if not path.is_file() or path.stat().st_size != len(self._rows_of(number)) * (int(np.prod(self.shape)) * 2 + _CRC.itemsize):
            return False
        if not verify:
            return True
        found = file_sha256(path, fresh=True)
        if found != sha256:
            told = f"{path}: SHA-256 {found[:12]}..., but meta.json says {sha256[:12]}...: damaged, this shard is rebuilt"
            warnings.warn(told, stacklevel=5)
        return found == sha256

    def _build_shard(self, number: int, answers: Iterator[Answer], encode: Encode, advance: Callable[[int], None]) -> None:
        parts: list[NDArray[np.float16]] = []
        broken: dict[int, str] = {}
        for batch, failures in answers:
            parts.append(_encode_batch(batch, encode))
            lost = batch.global_batch_index[batch.weight == 0].tolist()
            broken |= {row: failure.reason for row, failure in zip(lost, failures, strict=True)}
            advance(len(batch.paths))
        rows = np.concatenate(parts)
        if number == 0 and len(broken) == len(rows):
            reasons = list(dict.fromkeys(broken.values()))[:10]
            raise DataError("\n  ".join([f"{self.folder}: none of the first {len(rows)} files can be read:", *reasons]))
        self.shape = rows.shape[1:]
        data = rows.tobytes() + np.array([zlib.crc32(row) for row in rows], _CRC).tobytes()
        _write(self._file(number), data)
        self.shards[number] = Shard(hashlib.sha256(data).hexdigest(), broken)
        self._write_meta()

    def _remove_left_overs(self) -> None:
        """Remove half-written, stale and damaged files, to free their space. Files that no cache writes stay."""
        whole = {self._file(number).name for number, shard in enumerate(self.shards) if shard is not None}
        for path in self.folder.iterdir():
            written = re.match(r"\.?(\d{5,}\.f16|meta\.json|items\.i64)", path.name)
            is_shard = re.fullmatch(r"\d{5,}\.f16", path.name) is not None and path.name not in whole
            if (is_shard or (written is not None and is_temporary_of(path.name, written[1]))) and path.is_file():
                path.unlink()

    def _write_meta(self) -> None:
        shards = [None if shard is None else {"sha256": shard.sha256, "broken": shard.broken} for shard in self.shards]
        _write(self.folder / "meta.json", dump_meta({"key": self.key, "shape": self.shape, "shards": shards}))


class _Skipping:
    """Read samples, except those of some items."""

    def __init__(self, source: SampleSource, skip: Mapping[int, str]) -> None:
        self._source = source
        self._skip = skip

    def __getitem__(self, draw: SampleRef) -> Sample:
        if draw.item in self._skip:
            return self.replace_failed(draw, _SKIPPED + self._skip[draw.item])
        return self._source[draw]

    def replace_failed(self, draw: SampleRef, reason: str) -> Sample:
        return self._source.replace_failed(draw, reason)


@contextmanager
def _reading(source: SampleSource, steps: Iterable[Sequence[SampleRef]], readers: int, timeout: float) -> Iterator[Iterator[Answer]]:
    """Yield batches of samples in order. With readers, processes read them ahead."""
    if not readers:
        yield (collate([source[draw] for draw in draws]) for draws in steps)
        return
    workers = Workers(source, readers, timeout)
    try:
        yield workers.read(steps)
    finally:
        workers.close()


def _encode_batch(batch: JointBatch, encode: Encode) -> NDArray[np.float16]:
    latents = encode(batch.videos if len(batch.videos) else batch.images).float().cpu()
    with np.errstate(over="ignore"):  # the error below names the file
        rows = latents.numpy().astype(np.float16, order="C")  # encoders may leave channels last
    rows[(batch.weight == 0).numpy()] = 0
    if not np.isfinite(rows).all():
        largest = float(latents.abs().max())
        raise ValueError(
            f"latents of {batch.paths[0]} and the {len(batch.paths) - 1} files after it do not fit float16: largest value "
            f"{largest:g}, at most 65504 wanted. The autoencoder has diverged; train it again with a larger KL weight"
        )
    return rows


def _item_bytes(items: NDArray[np.int64]) -> bytes:
    return items.astype(_ITEM).tobytes()


def _write(path: Path, data: bytes) -> None:
    """Write a file of a cache whole.

    Raises:
        OSError: The disk is full. The message says how much was to be written and how much is free.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free >> 20
        raise OSError(
            f"{path}: cannot write {len(data) >> 20} MiB of latents ({error}; {free} MiB free). Make room, or set "
            "data.cache_dir to another disk; the same command goes on from here"
        ) from error


def encode_batch_size(clip_transform: ClipTransform, kind: Kind) -> int:
    """Return the number of clips to encode together: 16 clips of 17 frames at 32 px, and as many pixels at other sizes."""
    frames = clip_transform.frames if kind == "video" else 1
    rows, columns = clip_transform.shape(clip_transform.size)
    return min(256, max(1, 16 * 17 * 32**2 // (frames * rows * columns)))
