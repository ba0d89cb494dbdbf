"""Attack the index, the cache of latents and the sources of an index: damaged files, and hostile items, members and rows.

Files that pyarrow parses are opened in a process of their own: a crash is an outcome.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.attack.outcome import Outcome, count_of
from walt_pl.data.batch import DataError, Sample, SampleRef
from walt_pl.data.cache import LatentCache
from walt_pl.data.index import Index, write_index
from walt_pl.data.index_table import read_table
from walt_pl.indexing.isolated_pool import LostJob, run_isolated
from walt_pl.media.writing import write_image

INDEX_ATTACKS, CACHE_ATTACKS = 100, 60
ITEMS = 150  # of the cache: two shards
Answer = tuple[str, str, list[Any]]
"""Kind of the end ("read", "refused", "error"), messages, and what was read."""


def attack(random: Random, share: float, folder: Path) -> Iterator[Outcome]:
    """Run the attacks on the index, then those on the cache, then hostile sources."""
    yield from _attack_index(random, count_of(INDEX_ATTACKS, share), folder / "index")
    yield from _attack_cache(random, count_of(CACHE_ATTACKS, share), folder / "cache")
    names = random.sample(sorted(HOSTILE), count_of(len(HOSTILE), share))
    with ThreadPoolExecutor(2) as two:  # each waits for a process
        yield from two.map(lambda name: _attack_source(name, folder / "sources" / name.replace(" ", "-")), names)


def damage(random: Random, file: Path) -> str:
    """Flip a bit of a file, or cut it off, and say it in words."""
    data = bytearray(file.read_bytes())
    position = random.randrange(len(data))
    if random.random() < 0.2:
        file.write_bytes(data[:position])
        return f"{file.name} cut off at byte {position:,}"
    bit = random.randrange(8)
    data[position] ^= 1 << bit
    file.write_bytes(data)
    return f"{file.name} byte {position:,} bit {bit}"


# ---- The index -------------------------------------------------------------------------------------------------------


def _attack_index(random: Random, count: int, folder: Path) -> Iterator[Outcome]:
    same = {"kind": "video", "frames": 17, "fps": 8.0, "width": 64, "height": 48, "split": "train"}
    rows = [{**same, "path": f"{n}.mp4", "caption": f"caption {random.random()}", "label": n, "bytes": n} for n in range(500)]
    write_index(rows, folder / "whole" / "index.parquet")
    wanted = read_index(folder / "whole")
    cases: dict[Path, str] = {}
    for number in range(count):
        case = folder / str(number)
        shutil.copytree(folder / "whole", case)
        file = case / random.choice(["index.parquet", "index.parquet", "index.arrow", "index.arrow", "index.sha256"])
        cases[case] = damage(random, file)
    for case, answer in run_isolated(read_index, list(cases), 1, 60.0):
        yield _judge(cases[case], answer, wanted[2])


def read_index(folder: Path) -> Answer:
    """Read all rows of an index, as a start and as `index` do."""

    def read() -> list[Any]:
        entries = [replace(entry, path=Path(entry.path.name)) for entry in Index(folder / "index.parquet", "train").videos]
        return [*map(repr, entries), read_table(folder / "index.parquet")["caption"].to_pylist()]

    return _answer(read)


def _answer(read: Callable[[], list[Any]]) -> Answer:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            kind, said, found = "read", "", read()
        except (ValueError, DataError) as error:
            kind, said, found = "refused", str(error), []
        except Exception as error:
            kind, said, found = "error", f"{type(error).__name__}: {error}", []
    return kind, "; ".join([*(str(warning.message) for warning in caught), said]).strip("; "), found


def _judge(attack: str, answer: Answer | LostJob, wanted: list[Any]) -> Outcome:
    if isinstance(answer, LostJob):
        return Outcome(attack, "wrong", f"{answer.finding}: {answer.reason}")
    kind, said, found = answer
    if kind == "refused" and len(said.splitlines()) <= 5 and len(said) < 2000:
        return Outcome(attack, "refused", said)
    if kind == "read" and found == wanted:
        return Outcome(attack, "fell back" if said else "unharmed", said)
    return Outcome(attack, "wrong", said or "other rows in silence")


# ---- The cache -------------------------------------------------------------------------------------------------------


class _Source:
    """A source of constant pictures; every tenth cannot be read."""

    def __getitem__(self, draw: SampleRef) -> Sample:
        pixels = torch.full((3, 1, 4, 4), draw.item / ITEMS)
        return Sample(draw, pixels, None, "", -1, f"{draw.item}.png", "" if draw.item % 10 else "corrupt: made so", "pixels")

    def replace_failed(self, draw: SampleRef, reason: str) -> Sample:
        return replace(self[draw], failure=reason)


def _cache(folder: Path) -> LatentCache:
    return LatentCache(folder, {"vae": "0" * 64}, ITEMS, views=2, items=np.arange(ITEMS) * 3)


def _encode(pixels: Tensor) -> Tensor:
    return pixels[:, :, :, :2, :2] + torch.arange(4).reshape(2, 2)


def read_cache(folder: Path) -> Answer:
    """Read all rows of a cache."""

    def read() -> list[Any]:
        cache = _cache(folder)
        cache.open()
        rows = [cache.read(item * 3, view) for item in range(ITEMS) for view in range(2)]
        return [(content.numpy().tobytes(), failure) for content, failure in rows]

    return _answer(read)


def _attack_cache(random: Random, count: int, folder: Path) -> Iterator[Outcome]:
    _cache(folder / "whole").build(_Source(), "image", lambda: _encode, 16)
    wanted = read_cache(folder / "whole")[2]
    for number in range(count):
        case = folder / str(number)
        shutil.copytree(folder / "whole", case)
        said = damage(random, case / random.choice(["00000.f16", "00001.f16", "meta.json", "items.i64"]))
        answer = read_cache(case)
        kind, _, found = answer
        named = [failure for (_, failure), (_, before) in zip(found, wanted, strict=False) if failure != before]
        good = kind == "read" and all(row == before or "CRC-32" in row[1] for row, before in zip(found, wanted, strict=True))
        yield Outcome(said, "named", named[0]) if good and named else _judge(said, answer, wanted)


# ---- Sources ---------------------------------------------------------------------------------------------------------


def _attack_source(name: str, folder: Path) -> Outcome:
    """Index a source with one hostile item. The good one must be indexed, and the hostile one be named."""
    folder.mkdir(parents=True)
    source = folder / "source"
    source.mkdir()
    write_image(source / "good.png", np.zeros((16, 16, 3), np.uint8))
    found = HOSTILE[name](source)
    out = folder / "index.parquet"
    command = [sys.executable, "-m", "walt_pl", "index", str(found), "--out", str(out), "--workers", "1", "--seconds", "20"]
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    except subprocess.TimeoutExpired:
        return Outcome(name, "wrong", "no end in 120 s")
    said = (done.stdout + done.stderr).strip()
    if done.returncode or "Traceback" in said:
        return Outcome(name, "wrong", said[-600:])
    kind, problem, rows = _answer(lambda: list(Index(out, "train").images))
    if kind != "read" or not any(row.frames == 1 for row in rows):
        return Outcome(name, "wrong", f"the good item is not indexed: {problem} {said[-400:]}")
    told = [line for line in done.stdout.splitlines()[1:] if line.strip()]
    return Outcome(name, "named" if told else "wrong", f"{time.monotonic() - started:.0f} s: {' '.join(told)[:300]}")


def _caption(write: Callable[[Path], object]) -> Callable[[Path], Path]:
    """Return a source whose image `bad.png` has a hostile caption file."""

    def make(source: Path) -> Path:
        shutil.copy(source / "good.png", source / "bad.png")
        write(source / "bad.txt")
        return source

    return make


def _folder(write: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(source: Path) -> Path:
        write(source)
        return source

    return make


def _rows(*lines: str, name: str = "rows.jsonl", first: str = '{"path": "good.png"}') -> Callable[[Path], Path]:
    """Return a table with a good row and hostile ones."""

    def make(source: Path) -> Path:
        table = source / name
        table.write_bytes("\n".join([first, *lines, ""]).encode("utf-8", "surrogateescape"))
        return table

    return make


def _csv(text: str) -> Callable[[Path], Path]:
    return _rows(text, name="rows.csv", first="path,caption\ngood.png,a")


def _long_line(source: Path) -> Path:
    table = _rows()(source)
    with table.open("r+b") as file:
        file.truncate(300 << 20)
    with table.open("ab") as file:
        file.write(b'\n{"path": "good.png"}\n')
    return table


def _member(header: Callable[[tarfile.TarInfo], object], content: bytes = b"", behind: bytes = b"") -> Callable[[Path], Path]:
    """Return a shard with a good sample, and behind it a member whose header is changed."""

    def make(source: Path) -> Path:
        path = source / "shard.tar"
        with tarfile.open(path, "w") as shard:
            shard.add(source / "good.png", "good.png")
        member = tarfile.TarInfo("bad.json")
        member.size = len(content)
        header(member)
        end = _end_of_members(path)
        raw = member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        whole = path.read_bytes()[:end] + raw + content + bytes(-len(content) % 512) + behind
        path.write_bytes(whole + bytes(1024))
        return path

    return make


def _end_of_members(path: Path) -> int:
    with tarfile.open(path) as shard:
        last = shard.getmembers()[-1]
    return last.offset_data + -(-last.size // 512) * 512


def _sized(size: int, kind: bytes = tarfile.REGTYPE, name: str = "bad.png") -> Callable[[tarfile.TarInfo], object]:
    def change(member: tarfile.TarInfo) -> None:
        member.size, member.type, member.name = size, kind, name

    return change


def _named(name: str) -> Callable[[tarfile.TarInfo], object]:
    return lambda member: setattr(member, "name", name)


def _with_pax(headers: dict[str, str]) -> Callable[[Path], Path]:
    def make(source: Path) -> Path:
        path = source / "shard.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as shard:
            shard.add(source / "good.png", "good.png")
            member = tarfile.TarInfo("bad.png")
            member.pax_headers = headers
            shard.addfile(member)
        return path

    return make


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "caption that is a pipe": _caption(os.mkfifo),
    "caption that is a link to itself": _caption(lambda path: path.symlink_to(path)),
    "caption that is a link to nothing": _caption(lambda path: path.symlink_to("nothing")),
    "caption that is a device": _caption(lambda path: path.symlink_to("/dev/zero")),
    "caption that is a link out of the source": _caption(lambda path: path.symlink_to("/etc/hostname")),
    "caption of 2 GB": _caption(lambda path: (path.touch(), os.truncate(path, 2 << 30))),
    "caption that is not UTF-8": _caption(lambda path: path.write_bytes(b"\xff\xfe\xed\xa0\x80")),
    "clip that is a pipe": _folder(lambda source: os.mkfifo(source / "a.mp4")),
    "clip that is a link to itself": _folder(lambda source: (source / "a.mp4").symlink_to(source / "a.mp4")),
    "clip that is a device": _folder(lambda source: (source / "a.mp4").symlink_to("/dev/zero")),
    "clip whose name is not UTF-8": _folder(lambda source: (source / "\udcff.png").write_bytes(b"words")),
    "table that is a pipe beside clips": _folder(lambda source: os.mkfifo(source / "a.csv")),
    "label 10^30": _rows(json.dumps({"path": "bad.png", "label": 10**30})),
    "label of 9000 digits": _rows('{"path": "bad.png", "label": "' + "9" * 9000 + '"}'),
    "label of several lines": _rows(json.dumps({"path": "bad.png", "label": "a\nb"})),
    "lone surrogate in a caption": _rows('{"path": "bad.png", "caption": "\\ud800"}'),
    "lone surrogate in a path": _rows('{"path": "\\ud800.png"}'),
    "lone surrogate in a split": _rows('{"path": "bad.png", "split": "\\udcff"}'),
    "split of several lines": _rows('{"path": "bad.png", "split": "a\\nb"}'),
    "null byte in a path": _rows('{"path": "a\\u0000.png"}'),
    "deep JSON in a row": _rows('{"path": "bad.png", "caption": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "line of 300 MB": _long_line,
    "second 1e400": _rows(json.dumps({"path": "bad.mp4", "begin": "0", "end": "1e400"})),
    "path that is a device": _rows(json.dumps({"path": "/dev/zero", "kind": "video"})),
    "enormous field": _csv("bad.png," + "x" * 200_000),
    "null byte in a CSV": _csv("a\0.png,a"),
    "deep JSON in a member": _member(_named("good.json"), b"[" * 100_000),
    "lone surrogate in a member": _member(_named("good.json"), b'{"caption": "\\ud800"}'),
    "label 10^30 in a member": _member(_named("good.cls"), b"1" + b"0" * 30),
    "caption of 2 MB in a member": _member(_named("good.txt"), b"x" * (2 << 20)),
    "100,000 captions in a row": _rows(json.dumps({"path": "bad.png", "caption": ["a"] * 100_000})),
    "100,000 captions in a member": _member(_named("good.json"), json.dumps({"caption": ["a"] * 100_000}).encode()),
    "number for a caption in a member": _member(_named("good.json"), b'{"caption": 5, "split": [1]}'),
    "member of 2^60 bytes": _member(_sized(1 << 60)),
    "member of -512 bytes": _member(_sized(-512)),
    "long name of 2^40 bytes": _member(_sized(1 << 40, tarfile.GNUTYPE_LONGNAME)),
    "PAX header of 2^40 bytes": _member(_sized(1 << 40, tarfile.XHDTYPE)),
    "PAX size of -512": _with_pax({"size": "-512"}),
    "PAX size of 10^30": _with_pax({"size": str(10**30)}),
    "PAX sparse map without an end": _with_pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 60)}),
    "damaged header": _member(_named("bad.png"), b"", bytes(100) + b"\xff" * 412),
}
"""Sources with one hostile item beside a good one, each with the name of the attack."""
