"""Promises of `sample --layout vbench`: the names that VBench reads, distinct seeds, and clips of one model in a folder."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from walt_pl import files
from walt_pl.cli import sample as command
from walt_pl.cli.sample import sample
from walt_pl.cli.sample_layout import LONGEST, PlannedClip, check_layout, plan_clips, prompt_name, write_layout
from walt_pl.diffusion.ddim import Guidance

SETTINGS = {"artifacts": {"base": "ab"}, "steps": {"base": 2}, "fps": 8.0}


class Maker:
    """Makes grey clips in batches of two, and may be killed."""

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self.made: list[PlannedClip] = []

    def __call__(self, missing: Sequence[PlannedClip]) -> Iterator[torch.Tensor]:
        for start in range(0, len(missing), 2):
            if len(self.made) >= self.limit:
                raise KeyboardInterrupt
            part = missing[start : start + 2]
            self.made += part
            yield torch.zeros(len(part), 3, 2, 16, 16)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_layout_has_five_clips_of_each_prompt_with_seeds_of_their_own(tmp_path: Path) -> None:
    planned = plan_clips(tmp_path / "clips", ["a  dog, caf\u00e9.", "b", "a  dog, caf\u00e9."], seed=7)
    assert [clip.path.name for clip in planned] == [f"{name}-{i}.mp4" for name in ("a  dog, caf\u00e9.", "b") for i in range(5)]
    assert [clip.seed for clip in planned] == list(range(7, 17))
    assert {clip.prompt for clip in planned} == {"a dog, caf\u00e9.", "b"}
    said = write_layout(planned, SETTINGS, False, Maker())
    assert names(tmp_path / "clips") == sorted(clip.path.name for clip in planned)
    assert names(tmp_path) == ["clips", "clips.json"] and said.startswith(f"10 clips in {tmp_path / 'clips'};")
    record = json.loads((tmp_path / "clips.json").read_text())
    assert record["settings"] == SETTINGS and record["seeds"] == {clip.path.name: clip.seed for clip in planned}


def test_layout_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    planned, stopped, maker = plan_clips(tmp_path / "clips", ["a", "b"], 0), Maker(limit=4), Maker()
    with pytest.raises(KeyboardInterrupt):
        write_layout(planned, SETTINGS, False, stopped)
    left = tmp_path / "clips" / f".b-0.mp4.1.{files._host()}{'0' * 8}.tmp"
    left.touch()
    os.utime(left, (time.time() - 60, time.time() - 60))
    assert "(4 were there already)" in write_layout(planned, SETTINGS, False, maker)
    assert maker.made == planned[4:] and names(tmp_path / "clips") == sorted(clip.path.name for clip in planned)


@pytest.mark.parametrize(
    ("settings", "seed", "told"),
    [
        ({**SETTINGS, "artifacts": {"base": "cd"}}, 0, "another value of artifacts"),
        ({**SETTINGS, "steps": {"base": 3}}, 0, "another value of steps"),
        (SETTINGS, 1, "another seed"),
    ],
)
def test_layout_refuses_clips_of_another_model_until_overwritten(tmp_path: Path, settings: dict[str, Any], seed: int, told: str) -> None:
    write_layout(plan_clips(tmp_path / "clips", ["a"], 0), SETTINGS, False, Maker())
    planned, maker = plan_clips(tmp_path / "clips", ["a"], seed), Maker()
    with pytest.raises(ValueError, match=rf"{told}.*--overwrite true"):
        write_layout(planned, settings, False, maker)
    assert maker.made == []
    write_layout(planned, settings, True, maker)
    assert maker.made == planned and json.loads((tmp_path / "clips.json").read_text())["settings"] == settings


def test_layout_refuses_clips_without_a_record_and_a_foreign_file_in_its_place(tmp_path: Path) -> None:
    planned = plan_clips(tmp_path / "clips", ["a"], 0)
    write_layout(planned, SETTINGS, False, Maker())
    (tmp_path / "clips.json").unlink()
    with pytest.raises(ValueError, match=r"clips\.json, which says how they were made, is missing"):
        write_layout(planned, SETTINGS, False, Maker())
    (tmp_path / "clips.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="is no record of clips"):
        write_layout(planned, SETTINGS, False, Maker())
    assert (tmp_path / "clips.json").read_text() == '{"mine": 1}'


def test_prompt_name_fits_a_file_system(tmp_path: Path) -> None:
    assert prompt_name("a/b\x1bc\td") == "a_b_c_d" and prompt_name("../..") == ".._.."
    assert prompt_name("x" * LONGEST) == "x" * LONGEST and prompt_name("x" * 300) == "x" * 180
    assert len(prompt_name("\u732b" * 300).encode()) == LONGEST // 3 * 3
    write_layout(plan_clips(tmp_path / "clips", ["\u732b" * 300, "x" * LONGEST], 0), SETTINGS, False, Maker())
    with pytest.raises(ValueError, match=r"two prompts have the file name 'a_b': 'a/b' and 'a_b'"):
        plan_clips(tmp_path, ["a/b", "a_b"], 0)


def test_check_layout_wants_a_folder_with_clips_alone(tmp_path: Path) -> None:
    check_layout(f"{tmp_path}/new/", [])
    for others in (["--prompt"], ["--image", "--continue"]):
        with pytest.raises(ValueError, match=rf"--prompts FILE\), got {' and '.join(others)}"):
            check_layout(f"{tmp_path}/", others)
    with pytest.raises(ValueError, match="writes a folder"):
        check_layout(str(tmp_path / "a.mp4"), [])
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds notes\.txt"):
        check_layout(str(tmp_path), [])


def test_sample_layout_vbench_asks_the_model_for_each_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def make_clips(_: Any, request: Any, *rest: Any) -> Iterator[torch.Tensor]:
        asked.append((list(request.prompts), list(request.seeds), rest[1:]))
        yield torch.zeros(len(request), 3, 2, 16, 16)

    cascade = SimpleNamespace(stages=["base"], clip_frames=5, fps=8.0, sha256=str.upper, guidance=lambda *_: Guidance(2.0))
    monkeypatch.setattr(command.Cascade, "open", lambda *_: cascade)
    monkeypatch.setattr(command, "stage_guidance", lambda *_: {})
    monkeypatch.setattr(command, "warn_of_unseen_words", lambda *_: None)
    monkeypatch.setattr(command, "sampling_fps", lambda _: 8.0)
    monkeypatch.setattr(command, "make_clips", make_clips)
    (tmp_path / "prompts.txt").write_text("a  dog\n\nb\n")
    options: dict[str, Any] = {"prompts": str(tmp_path / "prompts.txt"), "layout": "vbench", "out": f"{tmp_path}/clips/", "device": "cpu"}
    sample(**options, seed=3, batch=4)
    sample(**options, seed=3, batch=4)
    assert asked == [(["a dog"] * 5 + ["b"] * 5, list(range(3, 13)), (4, 5))]
    assert names(tmp_path / "clips") == [f"{name}-{i}.mp4" for name in ("a  dog", "b") for i in range(5)]
    with pytest.raises(ValueError, match="takes the prompts of a file"):
        sample(prompt="a", layout="vbench", out=f"{tmp_path}/clips/", device="cpu")
