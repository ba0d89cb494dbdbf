"""Read TensorBoard's event files with limits: curves of numbers, and the places of pictures.

An event file may be damaged or a stranger's. TensorBoard's own reader takes the length of a record from the file, and keeps every picture
in memory. Here records have a largest size, pictures stay in the file until one is asked for, and damage ends the file with a sentence.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from walt_pl.untrusted import UntrustedError, open_plain

MAX_RECORD_BYTES = 64 << 20
"""Bytes of a record. The largest is a preview of about 2 MB."""
MAX_RECORDS = 5_000_000
"""Records that are read of a file; later ones are left out."""
MAX_TAGS = 200
"""Tags that are kept of a file; values of further ones are left out."""
MAX_TAG = 100
"""Characters of a tag; longer ones are left out."""
MAX_PICTURES = 10_000
"""Pictures that are kept of a file; later ones are left out."""
CHECKED_BYTES = 1 << 16
"""Records up to this size are compared with their checksum at once, larger ones when their picture is read: it takes 0.1 s for each MB."""
_HEAD = struct.Struct("<QI")


@dataclass
class Curve:
    """Values of one tag in the order of the file. Arrays of numbers take a tenth of the memory of lists."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))


@dataclass(frozen=True)
class PicturePlace:
    """The record of an event file that holds a picture."""

    file: Path
    offset: int
    tag: str
    step: int


@dataclass
class EventFile:
    """The content of an event file, or of its part before the damage."""

    curves: dict[str, Curve] = field(default_factory=dict)
    pictures: list[PicturePlace] = field(default_factory=list)
    began: float | None = None
    """Time of the first event in seconds since 1970."""
    ended: float | None = None
    """Time of the last event in seconds since 1970."""
    problems: list[str] = field(default_factory=list)
    """A sentence for each reason why something of the file is missing."""


def read_event_file(path: Path) -> EventFile:
    """Return the content of an event file. A damaged file gives what lies before the damage, and a problem."""
    found = EventFile()
    try:
        with open_plain(path) as file:
            for number, (offset, data) in enumerate(_records(file)):
                if number == MAX_RECORDS:
                    found.problems.append(f"{path.name} has more than {MAX_RECORDS:,} records: later ones are left out.")
                    break
                _add(found, path, offset, _parse(data))
    except FileNotFoundError:
        found.problems.append(f"{path.name} was removed meanwhile.")
    except (UntrustedError, OSError) as error:
        found.problems.append(f"{path.name} is damaged ({error}): its values up to there are shown.")
    return found


def read_picture(place: PicturePlace) -> bytes:
    """Return the bytes of a picture, after its checksum was compared.

    Raises:
        UntrustedError: the record is damaged or gone.
    """
    try:
        with open_plain(place.file) as file:
            file.seek(place.offset)
            event = _parse(_record(file, checked_bytes=MAX_RECORD_BYTES) or b"")
    except OSError as error:
        raise UntrustedError(f"{place.file.name} cannot be read ({error})") from None
    for value in event.summary.value:
        if value.HasField("image") and value.tag == place.tag:
            return value.image.encoded_image_string
    raise UntrustedError(f"{place.file.name} has changed meanwhile")


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the bytes of each record.

    Raises:
        UntrustedError: a record is cut, too large or has another checksum.
    """
    while True:
        offset = file.tell()
        data = _record(file, CHECKED_BYTES)
        if data is None:
            return
        yield offset, data


def _record(file: BinaryIO, checked_bytes: int) -> bytes | None:
    """Return the bytes of the record at the place of the file; None at its end. Larger ones than `checked_bytes` are not compared."""
    offset, head = file.tell(), file.read(_HEAD.size)
    if not head:
        return None
    where = f"the record at byte {offset:,}"
    if len(head) < _HEAD.size:
        raise UntrustedError(f"{where} is cut off")
    length, checksum = _HEAD.unpack(head)
    if masked_crc32c(head[:8]) != checksum:
        raise UntrustedError(f"{where} has another checksum")
    if length > MAX_RECORD_BYTES:
        raise UntrustedError(f"{where} says {length:,} bytes, at most {MAX_RECORD_BYTES:,} are read")
    data = file.read(length)
    checksum_of_data = file.read(4)
    if len(data) < length or len(checksum_of_data) < 4:
        raise UntrustedError(f"{where} is cut off")
    if length <= checked_bytes and masked_crc32c(data) != int.from_bytes(checksum_of_data, "little"):
        raise UntrustedError(f"{where} has another checksum")
    return data


def _parse(data: bytes) -> Event:
    try:
        return Event.FromString(data)
    except Exception as error:  # DecodeError of protobuf, a package that tensorboard brings
        raise UntrustedError(f"a record is no event ({error})") from None


def _add(found: EventFile, path: Path, offset: int, event: Event) -> None:
    if found.began is None:
        found.began = event.wall_time
    found.ended = event.wall_time
    for value in event.summary.value:
        kind = value.WhichOneof("value")
        if kind not in ("simple_value", "image"):
            continue
        if len(value.tag) > MAX_TAG:
            _tell_once(found, f"{path.name} has a tag of more than {MAX_TAG} characters: its values are left out.")
        elif kind == "image":
            if len(found.pictures) < MAX_PICTURES:
                found.pictures.append(PicturePlace(path, offset, value.tag, event.step))
            else:
                _tell_once(found, f"{path.name} has more than {MAX_PICTURES:,} pictures: later ones are left out.")
        elif value.tag in found.curves or len(found.curves) < MAX_TAGS:
            curve = found.curves.setdefault(value.tag, Curve())
            curve.steps.append(event.step)
            curve.values.append(value.simple_value)
        else:
            _tell_once(found, f"{path.name} has more than {MAX_TAGS} tags: values of further ones are left out.")


def _tell_once(found: EventFile, problem: str) -> None:
    if problem not in found.problems:
        found.problems.append(problem)
