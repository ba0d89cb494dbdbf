"""Damaged videos: whatever is in a file, reading it ends, and ends in frames or in an error that names it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.data.clips import B_FRAMES, OPEN, VP9, counting_clip, encode

CHILD = """
import faulthandler, json, sys
from pathlib import Path
from tests.data.clips import entry_of
from walt_pl.data.video import MediaError, Probe, Span, probe, read_clip

for path in map(Path, sys.argv[1:]):
    faulthandler.dump_traceback_later(60, exit=True)
    found = probe(path)
    said = [found.reason]
    for decoder in {"", found.decoder}:
        for span in (Span(17), Span(5, start=20), Span(5, fps=4, start=0.5)):
            entry = entry_of(path, Probe(), frames=found.frames, fps=found.fps, decoder=decoder, variable_rate=found.variable_rate)
            try:
                clip = read_clip(entry, span, (32, 32))
                assert clip.shape[0] == span.frames and clip.shape[3] == 3, clip.shape
            except MediaError as error:
                assert str(error).startswith(f"{path}: "), error
                said.append(str(error))
    print(json.dumps({"path": str(path), "frames": found.frames, "decoder": found.decoder, "said": said}), flush=True)
"""


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The same file with bytes flipped, a piece cut out of it or off its end, or two pieces swapped."""
    data = bytearray(content)
    kind = rng.integers(4)
    if kind == 0:
        for place in rng.integers(len(data), size=2 ** int(rng.integers(9))):
            data[place] ^= int(rng.integers(1, 256))
    elif kind == 1:
        del data[int(rng.integers(len(data))) :]
    elif kind == 2:
        start = int(rng.integers(len(data)))
        del data[start : start + int(rng.integers(1, len(data) // 4))]
    else:
        length = int(rng.integers(1, len(data) // 4))
        first, second = sorted(int(place) for place in rng.integers(len(data) - length, size=2))
        data[first : first + length], data[second : second + length] = data[second : second + length], data[first : first + length]
    return bytes(data)


def originals(folder: Path) -> list[Path]:
    clip = counting_clip(40)
    encode(folder / "a.mp4", clip, "libx264", **B_FRAMES)
    encode(folder / "b.mkv", clip, "libx264", **OPEN)
    encode(folder / "c.avi", clip, "mpeg4", g="12")
    encode(folder / "d.webm", clip, "libvpx-vp9", **VP9)
    encode(folder / "e.mpg", clip, "mpeg2video", rate=25, g="12", bf="2")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_mutated_files_neither_crash_nor_hang_and_each_error_names_its_file(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(count)
    (tmp_path / "whole").mkdir()
    files = originals(tmp_path / "whole")
    paths = []
    for number in range(count):
        source = files[number % len(files)]
        paths.append(tmp_path / f"{number:03}{source.suffix}")
        paths[-1].write_bytes(mutated(source.read_bytes(), rng))
    command = [sys.executable, "-c", CHILD, *map(str, [*files, *paths])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60 + 5 * count, check=False)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["path"] for result in results] == command[3:], (
        f"{command[3 + len(results)]} ended the process with {done.returncode}: {done.stderr[-2000:]}"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for result in results[: len(files)]:
        assert result["said"] == [""] and result["frames"] == 40, "the whole files are sound"
    damaged = [result for result in results[len(files) :] if result["said"][0]]
    assert len(damaged) > count // 3, "most of the damage is found"
    assert all(result["frames"] == 0 and result["decoder"] == "" for result in damaged)
