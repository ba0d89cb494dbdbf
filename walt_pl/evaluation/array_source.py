"""Clips of a NumPy file: .npy, or one array of an .npz.

The file may come from a stranger. Its header is compared with the bytes that are there before memory is taken. Pickles are not read.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walt_pl.evaluation.clip_reading import cover_and_crop
from walt_pl.evaluation.source import ClipDraw, ClipSource, ReadClips
from walt_pl.files import file_sha256
from walt_pl.media.max_pixels import MAX_PIXELS, check_pixels
from walt_pl.media.media_file import Media
from walt_pl.media.types import MediaError, Size

MAX_COMPRESSED_BYTES = 4 << 30
"""Bytes of a compressed array of an .npz, which is held in memory. All others are mapped."""
_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Header of a member in a zip: signature, and lengths of its name and of its extra field."""


class ArraySource(ClipSource):
    """Clips uint8 [n t h w 3], or images uint8 [n h w 3], of a NumPy file.

    Args:
        text: Path of the file, as typed.

    Raises:
        ValueError: The file is none, or its array has another type or shape.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.path = Path(text)
        try:
            Media(self.path).check()
            self._name, array = _read_npz(self.path) if self.path.suffix == ".npz" else ("", _map_npy(self.path))
        # NotImplementedError: a zip that this Python cannot read. RuntimeError: an encrypted one, and MediaError.
        except (ValueError, OSError, RuntimeError, LookupError, zipfile.BadZipFile, zlib.error, EOFError, OverflowError) as error:
            message = str(error).removeprefix(f"{text}: ")
            raise ValueError(f"{text}: {message}" if isinstance(error, MediaError) else f"{text}: not clips: {message}") from error
        self._clips = array if array.ndim == 5 else array[:, None]

    def __len__(self) -> int:
        return len(self._clips)

    def facts(self) -> dict[str, Any]:
        """Return path, hash of the file, name of the array in an .npz, and its shape."""
        facts = {"kind": "array", "path": self.text, "split": None, "sha256": file_sha256(self.path), "shape": list(self._clips.shape)}
        return facts | ({"array": self._name} if self._name else {})

    def lengths(self) -> Sequence[int]:
        return [self._clips.shape[1]] * len(self)

    def names(self) -> Sequence[str]:
        return [str(number) for number in range(len(self))]

    def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: Size | None) -> ReadClips:
        clips, failures = [], {}
        for number, draw in enumerate(draws):
            clip = self._clips[draw.item, draw.start : draw.start + 1 + (frames - 1) * stride : stride]
            if len(clip) < frames:
                found = f"found {len(clip)} frames from frame {draw.start} on, wanted {frames}"
                failures[number] = f"{self.text}: clip {draw.item}: {found}"
            clips.append(None if number in failures else cover_and_crop(np.array(clip), size))
        return ReadClips(clips, failures=failures)


def _map_npy(path: Path) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        shape, order = _read_header(file, path.stat().st_size)
        return np.memmap(path, np.uint8, "r", file.tell(), shape, order)


def _read_npz(path: Path) -> tuple[str, NDArray[np.uint8]]:
    """Return the name of the one array of an .npz (or of arr_0), and its values."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist() if member.filename.endswith(".npy")}
        name = "arr_0" if "arr_0" in members else next(iter(members), "")
        if not members or (len(members) > 1 and name != "arr_0"):
            raise ValueError(f"it has the arrays {', '.join(members)[:200] or '(none)'}, wanted one, or one named arr_0")
        member = members[name]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"the array {name} is compressed in another way than by np.savez_compressed")
        stored = member.compress_type == zipfile.ZIP_STORED
        if not stored and member.file_size > MAX_COMPRESSED_BYTES:
            raise ValueError(
                f"the array {name} is compressed and has {member.file_size:,} bytes, at most {MAX_COMPRESSED_BYTES:,} wanted; "
                "write it with np.savez or np.save, and it is mapped into memory"
            )
        with archive.open(member) as file:
            shape, order = _read_header(file, member.file_size)
            if not stored:
                return name, np.frombuffer(file.read(math.prod(shape)), np.uint8).reshape(shape, order=order)
            begin = file.tell()
        return name, np.memmap(path, np.uint8, "r", _place(path, member) + begin, shape, order)


def _place(path: Path, member: zipfile.ZipInfo) -> int:
    """Return the byte of a zip at which the content of a member begins."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\3\4":
        raise ValueError(f"{member.filename} is not where the list of the zip says")
    return member.header_offset + _LOCAL_HEADER.size + int(name) + int(extra)


def _read_header(file: Any, size: int) -> tuple[tuple[int, ...], Any]:
    """Return shape and memory order of an array in NumPy's format, and leave the file at its first value.

    Args:
        file: The opened file or member.
        size: Its bytes.

    Raises:
        ValueError: It is no such array, or has another type, shape or number of bytes.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format {version} of NumPy, wanted 1.0 or 2.0")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except (SyntaxError, tokenize.TokenError, MemoryError) as error:  # NumPy parses the header as an expression of Python
        raise ValueError("its header is not one of NumPy") from error
    if dtype != np.uint8:
        hint = "; write (x * 255).round().astype('uint8') for values in 0..1" if dtype.kind == "f" else ""
        raise ValueError(f"values of type {dtype}, wanted uint8 in 0..255{hint}")
    if len(shape) not in (4, 5) or shape[-1] != 3 or min(shape) < 1:
        hint = "; transpose(0, 2, 3, 4, 1) brings the colours to the end" if len(shape) == 5 and shape[1] == 3 else ""
        raise ValueError(f"shape {list(shape)}, wanted clips [n t h w 3] or images [n h w 3]{hint}")
    check_pixels("its pictures", shape[-3], shape[-2], MAX_PIXELS)
    if math.prod(shape) > size - file.tell():
        raise ValueError(f"shape {list(shape)} has more bytes than the {size:,} of the file: it is truncated")
    return shape, "F" if fortran else "C"
