"""Attack the readers of media: hostile images and videos in a folder, in a tar shard, and in rows of an index that a stranger wrote."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from tests.attack.outcome import Outcome, Verdict, count_of
from tests.helpers.clips import counting_clip, encode
from tests.helpers.environment import ROOT
from tests.helpers.hostile_media import HARMLESS, fake_programs, write_hostile_media, write_hostile_shard
from walt_pl.data.index import IndexEntry
from walt_pl.data.index_table import read_table
from walt_pl.media.extensions import kind_of
from walt_pl.media.reading import picture_sizes, read_image, read_last_frames, read_sizes
from walt_pl.media.spans import FrameRange
from walt_pl.media.types import MediaError
from walt_pl.media.writing import write_video

FLIPPED = 60
MOST_FRAMES = 100
"""Most frames that a reader takes of a file; the sound ones have 20 at most."""
Size = tuple[int, int, int]
"""Frames, rows and columns."""
SECONDS = 20
"""Time limit of a file, for the doctor and for a reader."""


def attack(random: Random, share: float, folder: Path) -> Iterator[Outcome]:
    """Index hostile media, read them as rows of an index say, and look for processes and connections that they started."""
    secret, media = folder / "secret.mp4", folder / "media"
    media.mkdir()
    write_video(secret, counting_clip(20), 8)
    mark = folder / "ran"
    environment = {**os.environ, "PATH": str(fake_programs(folder / "bin", mark)), "PYTHONPATH": str(ROOT)}
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        names = write_hostile_media(media, secret, port)
        for name in set(names) - (chosen := set(random.sample(names, count_of(len(names), share)))):
            (media / name).unlink()
        flipped = _flip(media, random, count_of(FLIPPED, share))
        found = _index(str(media), folder / "media.parquet", environment)
        read = _read([media / name for name in sorted(chosen) + flipped], environment)
        yield from (_judge(name, found.get(f"media/{name}"), read[str(media / name)][0], name in HARMLESS) for name in sorted(chosen))
        indexed = _sizes(folder / "media.parquet")
        for name in flipped:
            error, size = read[str(media / name)]
            yield _judge_flipped(f"{name}: bits flipped", found.get(f"media/{name}"), error, indexed.get(f"media/{name}"), size)
        members = write_hostile_shard(folder / "shard.tar", [media / name for name in sorted(chosen)])
        shard = _index(str(folder / "shard.tar"), folder / "shard.parquet", environment)
        said = [reason for reason in shard.values() if reason]
        every = len(said) == len(members)
        yield Outcome(f"{len(members)} members of a shard", "named" if every else "wrong", "" if every else f"{len(said)} findings: {said}")
        try:
            address = server.accept()[1]
            yield Outcome("connection", "wrong", f"a decoder connected from {address}")
        except BlockingIOError:
            yield Outcome("connection", "refused", "no connection to the local socket")
    yield Outcome("process", "wrong" if mark.exists() else "refused", "no program was started" if not mark.exists() else f"{mark} exists")


def _flip(folder: Path, random: Random, count: int) -> list[str]:
    """Write files that each differ from a sound one in a few bits, and return their names."""
    encode(folder / "whole.mp4", counting_clip(20), "libx264")
    encode(folder / "whole.mkv", counting_clip(20), "libx264")
    encode(folder / "whole.avi", counting_clip(20), "mpeg4")
    for ending in ("jpg", "png", "webp", "bmp", "tiff"):
        Image.fromarray(counting_clip(1)[0]).save(folder / f"whole.{ending}")
    whole = sorted(folder.glob("whole.*"))
    names = []
    for number in range(count):
        source = whole[number % len(whole)]
        content = bytearray(source.read_bytes())
        for _ in range(random.choice([1, 4, 16])):
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        names.append(f"flipped-{number}{source.suffix}")
        (folder / names[-1]).write_bytes(content)
    for path in whole:
        path.unlink()
    return names


def _index(source: str, out: Path, environment: dict[str, str]) -> dict[str, str]:
    """Index a source, and return the finding of each row by its path (and place in a shard), "" for a sound one."""
    command = [sys.executable, "-m", "walt_pl", "index", source, "--out", str(out), "--workers", "2", "--seconds", str(SECONDS)]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise AssertionError(f"index ended with {done.returncode}: {done.stderr[-2000:]}")
    table = read_table(out)
    places = zip(table["path"].to_pylist(), table["offset"].to_pylist(), strict=True)
    found = {f"{path}{offset if offset >= 0 else ''}": "" for path, offset in places}
    with out.with_suffix(".quarantine.csv").open() as rows:
        for row in csv.DictReader(rows):
            found[row["path"] + (row["offset"] if int(row["offset"]) >= 0 else "")] = row["reason"]
    return found


def _sizes(index: Path) -> dict[str, Size]:
    """Return the size of each file that the doctor could decode."""
    table = read_table(index)
    sizes = zip(*(table[name].to_pylist() for name in ("path", "frames", "height", "width")), strict=True)
    return {path: tuple(size) for path, *size in sizes}


def _read(paths: Sequence[Path], environment: dict[str, str]) -> dict[str, tuple[str, Size | None]]:
    """Read files in other processes. A dead process counts for the file it was reading.

    Returns:
        Path -> the error, "" for a picture, and the size of what was read whole, None if it could not be.
    """
    found: dict[str, tuple[str, Size | None]] = {}
    while left := [str(path) for path in paths if str(path) not in found]:
        command = [sys.executable, "-c", "import sys; from tests.attack.media import read_each; read_each(sys.argv[1:])", *left]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=3000, check=False)
        answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        found |= {path: (error, size and tuple(size)) for path, error, size in answers}
        if done.returncode:
            dead = next(path for path in left if path not in found)
            found[dead] = (f"wrong: the process ended with {done.returncode}: {done.stderr[-300:]}", None)
    return found


def read_each(paths: Sequence[str]) -> None:
    """Read files as a row of a stranger's index says, and as `sample` reads them, and print the error and size of each as JSON."""
    for path in map(Path, paths):
        signal.alarm(2 * SECONDS)  # ends the process, also inside native code
        size = path.stat().st_size if path.is_file() else 1
        entry = IndexEntry(path, "video", 12, 8.0, 96, 64, "", -1, "train", size, decoder="decord")
        said, size_read = [], None
        started = time.monotonic()
        reads: list[Callable[[], Any]]
        if kind_of(path.name) == "image":
            reads = [partial(picture_sizes, entry, [(32, 32)]), partial(read_image, path)]
        else:
            reads = [partial(read_sizes, entry, FrameRange(5), [(32, 32)]), partial(read_last_frames, path, MOST_FRAMES)]
        for read in reads:
            try:
                frames = read()
                size_read = frames.shape[:3] if read is reads[-1] else None
            except MediaError as error:
                said.append(str(error) if str(error).startswith(str(path)) else f"wrong: the error does not name the file: {error}")
            except Exception as error:
                said.append(f"wrong: {type(error).__name__}: {error}")
        text = next((text for text in said if text.startswith("wrong")), said[0] if len(said) == 2 else "")
        if time.monotonic() - started > SECONDS:
            text = f"wrong: {time.monotonic() - started:.0f} s"
        print(json.dumps([str(path), text, size_read]), flush=True)


def _judge(name: str, finding: str | None, error: str, harmless: bool) -> Outcome:
    """Return the outcome of one file.

    Args:
        name: of the attack.
        finding: of the doctor; None where the file is no item of the index.
        error: of a reader; "" where it gave pictures.
        harmless: whether the file may be read, see `HARMLESS`.
    """
    if error.startswith("wrong") or (not harmless and (finding == "" or not error)):
        return Outcome(name, "wrong", f"doctor: {finding!r}; reader: {error!r}")
    verdict: Verdict = "named" if finding else "refused" if error else "unharmed"
    return Outcome(name, verdict, finding or error or "decoded within the limits")


def _judge_flipped(name: str, finding: str | None, error: str, indexed: Size | None, read: Size | None) -> Outcome:
    """Return the outcome of a file with flipped bits: the doctor names it, or it holds as many frames as the index says, of that size."""
    if finding == "" and indexed != read and not error.startswith("wrong"):
        return Outcome(name, "wrong", f"the index says {indexed}, a reader gave {read}: {error}")
    return _judge(name, finding, error, harmless=True)
