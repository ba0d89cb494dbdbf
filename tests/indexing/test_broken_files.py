"""Damaged videos: whatever is in a file, reading it ends, and ends in frames or in an error that names it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.damage import mutated, mutation, originals
from tests.helpers.environment import ROOT

CHILD = """
import faulthandler, json, sys
from pathlib import Path
from tests.helpers.clips import entry_of
from walt_pl.media.probing import Probe, probe
from walt_pl.media.reading import read_clip
from walt_pl.media.spans import FrameRange
from walt_pl.media.types import MediaError

for path in map(Path, sys.argv[1:]):
    faulthandler.dump_traceback_later(60, exit=True)
    found = probe(path)
    said = [found.reason]
    for decoder in {"", found.decoder}:
        for span in (FrameRange(17), FrameRange(5, start=20), FrameRange(5, fps=4, start=0.5)):
            entry = entry_of(path, Probe(), frames=found.frames, fps=found.fps, decoder=decoder, variable_rate=found.variable_rate)
            try:
                clip = read_clip(entry, span, (32, 32))
                assert clip.shape[0] == span.frames and clip.shape[3] == 3, clip.shape
            except MediaError as error:
                assert str(error).startswith(f"{path}: "), error
                said.append(str(error))
    print(json.dumps({"path": str(path), "frames": found.frames, "decoder": found.decoder, "said": said}), flush=True)
"""


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_probe_of_mutated_files_never_crashes_and_each_error_names_its_file(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(count)
    (tmp_path / "whole").mkdir()
    files = originals(tmp_path / "whole")
    paths = []
    for number in range(count):
        source = files[number % len(files)]
        paths.append(tmp_path / f"{number:03}{source.suffix}")
        paths[-1].write_bytes(mutation(source.read_bytes(), rng))
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


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_joint_loader_loses_only_files_damaged_after_indexing_and_names_them(tmp_path: Path, count: int) -> None:
    found = mutated(tmp_path, count)
    assert found["each by its own name"] and found["each one named"]
    assert found["a training that goes on: failed by name"] > count // 3, "most of the damage is found"
    assert found["workers that crashed or hung"] == 0
    assert found["training after it: failed"] <= count // 20, "the doctor decodes what training decodes"
