"""Rows of the clips of one side, from one extractor, on disk: blocks while they are computed, then one file.

Layout of a folder, named by the sha256 of its key:
    description.json            the key in plain values, for people
    blocks/b16-00000003.safetensors   rows of draws 48..63, in blocks of 16; removed once `rows.safetensors` is written
    rows.safetensors            rows of all draws, in their order

A clip that could not be read is tried again by the next command: its block counts as missing, and the other blocks are those of the
joined file.

Files are written whole, and replaced but never changed. So processes, and commands that run at once, may share a folder. A file of either
kind holds `kept` [n] (1 for a clip that was read), a float32 tensor [n d] of each name of rows (zeros where a clip was not read), `seconds`
[1], and `sums`, the CRC-32 of each tensor of rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from walt_pl.evaluation.places import leave_out_places
from walt_pl.files import remove_left_overs, whole_file, write_whole
from walt_pl.removal import TEMPORARY, remove_own
from walt_pl.untrusted import UntrustedError, parse_json

ROWS, DESCRIPTION, BLOCKS = "rows.safetensors", "description.json", "blocks"
OWN_BLOCKS = (r"b\d+-\d{8}\.safetensors",)
"""Names of the files in `blocks`."""
REASONS = 3
"""Reasons that are kept in the joined file, for clips that were not read."""
_CHUNK = 65_536
"""Rows that are checked at once."""
ABOUT = (
    "Rows that walt computed of clips, one for each, by which metrics compare them (docs/EVALUATION.md). It may be removed: the same "
    "command computes it again. The key says of which clips and by which extractor."
)


class DamagedRowsError(ValueError):
    """A file of rows is damaged, or of another evaluation. Its clips are read again."""


@dataclass(frozen=True)
class StoredRows:
    """Rows of clips, in the order of their draws."""

    rows: dict[str, Tensor]
    """By name, float32 [n d]; zeros where a clip could not be read."""
    kept: Tensor
    """True for each clip that could be read, bool [n]."""
    reasons: dict[int, str]
    """Reasons for clips that could not be read, by position; all of a block, the first ones of a joined file."""
    seconds: float
    """Wall time of reading and computing, over all starts."""
    program: dict[str, Any] = field(default_factory=dict)
    """Program and machine that computed them (`describe_program`); of rows of several commands, the last one."""


class RowStore:
    """Rows of one side from one extractor.

    Args:
        root: folder of all stores.
        key: everything that determines the rows, in plain values. Places of hashed things are for people, and change nothing.
        count: number of draws.
        batch: draws of a block.
        names: names of the rows that the extractor gives.
        program: facts of this program and machine, which are kept beside the rows.
    """

    def __init__(
        self, root: Path, key: Mapping[str, Any], count: int, batch: int, names: Sequence[str], program: Mapping[str, Any] | None = None
    ) -> None:
        self.description = {"about": ABOUT, "clips": count, "key": dict(key)}
        self.digest = hashlib.sha256(canonical_json({**leave_out_places(key), "format": 1}).encode()).hexdigest()
        self.folder = root / self.digest
        self.count = count
        self.batch = batch
        self.names = tuple(names)
        self.program = dict(program or {})
        self.joined = self.folder / ROWS
        self._replaced: tuple[int, int] | None = None
        """Joined file that is damaged, or lacks clips. It is replaced."""
        self._lacking: frozenset[int] = frozenset()
        """Blocks whose clips the joined file lacks, where it is sound."""

    def __len__(self) -> int:
        """Return the number of blocks."""
        return -(-self.count // self.batch)

    def block(self, number: int) -> range:
        """Return the positions of the draws of a block."""
        return range(number * self.batch, min((number + 1) * self.batch, self.count))

    def prepare(self) -> None:
        """Make the folder with its description, and remove what killed processes left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.description, indent=2, default=str) + "\n"
        if not (self.folder / DESCRIPTION).is_file():
            write_whole(self.folder / DESCRIPTION, text.encode())
        remove_left_overs(self.joined)
        left = {found[1] for path in (self.folder / BLOCKS).glob(".*.tmp") if (found := TEMPORARY.fullmatch(path.name))}
        for name in left:
            remove_left_overs(self.folder / BLOCKS / name)

    def is_joined(self) -> bool:
        """Return whether the rows of all draws are there. They were checked if `missing` was asked before.

        Rows that another process has joined since then count, also where clips were not read again: one command tries them once.
        """
        found = _identity(self.joined)
        return found is not None and found != self._replaced

    def missing(self, blocks: Sequence[int]) -> list[int]:
        """Return the blocks whose rows are not all there, or not as they should be; a damaged file warns."""
        wanted = list(blocks)
        if self.is_joined():
            before = _identity(self.joined)
            stored = self._read_sound(self.joined, self.count)
            if stored is not None:
                # All blocks, not those of this process alone: the first process joins them.
                self._lacking = frozenset(n for n in range(len(self)) if not stored.kept[self.block(n).start : self.block(n).stop].all())
                wanted = [number for number in blocks if number in self._lacking]
            if stored is None or self._lacking:
                self._replaced = before
        return [number for number in wanted if not self._is_whole(number)]

    def write_block(self, number: int, rows: StoredRows) -> None:
        """Write the rows of a block.

        Raises:
            OSError: it cannot be written.
        """
        tensors = {**rows.rows, "kept": rows.kept.to(torch.uint8), "seconds": torch.tensor([rows.seconds], dtype=torch.float64)}
        tensors["sums"] = torch.tensor([_crc(rows.rows[name]) for name in self.names], dtype=torch.int64)
        path = self._path(number)
        try:
            path.parent.mkdir(exist_ok=True)
            write_whole(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, self._metadata(rows.reasons)))
        except FileNotFoundError:
            if not self.is_joined():  # another command has joined the rows, and removed the blocks
                raise

    def join(self) -> None:
        """Write one file of all blocks, unless it is there, and remove the blocks.

        Raises:
            DamagedRowsError: a block is missing or damaged.
            OSError: the file cannot be written.
        """
        if not self.is_joined():
            try:
                self._write_joined()
            except (DamagedRowsError, FileNotFoundError) as error:
                if not self.is_joined():  # by another command
                    raise DamagedRowsError(
                        f"{error}; give the same command again. Several processes need one folder that all see"
                    ) from error
        remove_own(self.folder / BLOCKS, OWN_BLOCKS)

    def read(self) -> StoredRows:
        """Return the rows of all draws, mapped into memory.

        Raises:
            DamagedRowsError: the file is missing, or damaged.
        """
        return self._read(self.joined, self.count)

    def _path(self, number: int) -> Path:
        return self.folder / BLOCKS / f"b{self.batch}-{number:08d}.safetensors"

    def _metadata(self, reasons: Mapping[int, str]) -> dict[str, str]:
        told = json.dumps({str(position): reason for position, reason in reasons.items()})
        return {"key": self.digest, "reasons": told, "program": json.dumps(self.program)}

    def _is_whole(self, number: int) -> bool:
        """Return whether the rows of a block are there, of every clip."""
        path = self._path(number)
        stored = self._read_sound(path, len(self.block(number))) if _identity(path) else None
        return stored is not None and bool(stored.kept.all())

    def _read_sound(self, path: Path, count: int) -> StoredRows | None:
        """Return the rows of a file; None, with a warning, if it is damaged."""
        try:
            return self._read(path, count)
        except DamagedRowsError as error:
            warnings.warn(f"{error}: its clips are read again", stacklevel=3)
            return None

    def _read(self, path: Path, count: int) -> StoredRows:
        """Return the rows of a file.

        Raises:
            DamagedRowsError: the file is not one of this store, has other shapes, or rows that are not finite or not those written.
        """
        try:
            if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would wait for ever
                raise DamagedRowsError(f"{path} is no plain file")
            with safe_open(path, framework="pt") as file:
                metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("key") != self.digest:
                raise DamagedRowsError(f"{path} is of another evaluation")
            reasons = parse_json(metadata.get("reasons", ""), str(path))
            self._check(tensors, count)
            program = dict(parse_json(metadata.get("program", "{}"), str(path)))
            numbered = {int(position): str(reason) for position, reason in reasons.items()}
        except (OSError, SafetensorError, UntrustedError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise error if isinstance(error, DamagedRowsError) else DamagedRowsError(f"{path} is damaged ({error})") from error
        rows = {name: tensors[name] for name in self.names}
        return StoredRows(rows, tensors["kept"].bool(), numbered, float(tensors["seconds"]), program)

    def _check(self, tensors: Mapping[str, Tensor], count: int) -> None:
        """Check the tensors of a file.

        Raises:
            ValueError: they are not those that `write_block` writes.
            KeyError: one is missing.
        """
        if set(tensors) != {*self.names, "kept", "seconds", "sums"}:
            raise ValueError(f"it holds {sorted(tensors)}")
        small = {"kept": (torch.uint8, (count,)), "seconds": (torch.float64, (1,)), "sums": (torch.int64, (len(self.names),))}
        for name, (dtype, shape) in small.items():
            if tensors[name].dtype != dtype or tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name} is {tensors[name].dtype} {list(tensors[name].shape)}, wanted {dtype} {list(shape)}")
        if not math.isfinite(float(tensors["seconds"])):
            raise ValueError("its seconds are not finite")
        for name, crc in zip(self.names, tensors["sums"].tolist(), strict=True):
            rows = tensors[name]
            if rows.dtype != torch.float32 or rows.ndim != 2 or len(rows) != count:
                raise ValueError(f"{name} is {rows.dtype} {list(rows.shape)}, wanted torch.float32 [{count}, d]")
            if not all(bool(torch.isfinite(part).all()) for part in rows.split(_CHUNK)):
                raise ValueError(f"{name} has numbers that are not finite")
            if _crc(rows) != crc:
                raise ValueError(f"{name} is not as it was written")

    def _write_joined(self) -> None:
        """Write the joined file block by block: rows of a million images would not fit into memory."""
        former = self.read() if self._lacking else None
        kept, seconds = [], former.seconds if former else 0.0
        reasons: dict[int, str] = {}
        widths = dict.fromkeys(self.names, 0)
        for number, block in self._read_blocks(former):
            kept.append(block.kept)
            seconds += block.seconds
            reasons |= {self.block(number)[position]: reason for position, reason in block.reasons.items() if len(reasons) < REASONS}
            for name, rows in block.rows.items():
                widths[name] = max(widths[name], rows.shape[1])  # a block without any clip has no width
        sums = dict.fromkeys(self.names, 0)
        with whole_file(self.joined) as temporary, temporary.open("wb") as file:
            file.write(self._header(widths, dict(list(reasons.items())[:REASONS])))
            for name, width in widths.items():
                for number, block in self._read_blocks(former):
                    rows = block.rows[name]
                    if rows.shape[1] not in (0, width):
                        raise DamagedRowsError(f"{self._path(number)} has rows of {rows.shape[1]} numbers, others of {width}")
                    data = (rows if rows.shape[1] else rows.new_zeros(len(rows), width)).numpy().tobytes()
                    sums[name] = zlib.crc32(data, sums[name])
                    file.write(data)
            file.write(torch.tensor(list(sums.values()), dtype=torch.int64).numpy().tobytes())
            file.write(torch.tensor([seconds], dtype=torch.float64).numpy().tobytes())
            file.write(torch.cat(kept).to(torch.uint8).numpy().tobytes())

    def _read_blocks(self, former: StoredRows | None) -> Iterator[tuple[int, StoredRows]]:
        """Yield all blocks. Those that a former joined file has whole are parts of it, and add no seconds of their own."""
        for number in range(len(self)):
            place = self.block(number)
            if former is None or number in self._lacking:
                yield number, self._read(self._path(number), len(place))
            else:
                part = slice(place.start, place.stop)
                yield number, StoredRows({name: rows[part] for name, rows in former.rows.items()}, former.kept[part], {}, 0.0)

    def _header(self, widths: Mapping[str, int], reasons: Mapping[int, str]) -> bytes:
        """Return the beginning of a safetensors file: its length in 8 bytes, then names, types, shapes and places as JSON."""
        shapes = {name: ("F32", [self.count, width], 4 * self.count * width) for name, width in widths.items()}
        shapes |= {"sums": ("I64", [len(widths)], 8 * len(widths)), "seconds": ("F64", [1], 8), "kept": ("U8", [self.count], self.count)}
        header: dict[str, Any] = {"__metadata__": self._metadata(reasons)}
        start = 0
        for name, (dtype, shape, size) in shapes.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
            start += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def canonical_json(value: Any) -> str:
    """Return plain values as JSON that depends on nothing but the values: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return inode and time of a file, by which one that was replaced is known; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _crc(rows: Tensor) -> int:
    """Return the CRC-32 of rows [n d]."""
    crc = 0
    for part in rows.contiguous().split(_CHUNK):
        crc = zlib.crc32(part.numpy().data, crc)
    return crc
