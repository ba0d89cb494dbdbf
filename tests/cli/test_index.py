"""`python -m walt_pl index`, as a user types it."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.environment import ROOT, Walt
from walt_pl.cli.experiment_data import data_of
from walt_pl.cli.main import main
from walt_pl.data.index import write_index
from walt_pl.media.writing import write_image

CONFIG = ROOT / "experiments" / "shapes" / "vae.yaml"


def test_index_command_reports_findings_and_what_an_experiment_uses(walt: Walt, painted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(painted.parent / "train", tmp_path / "clips"))
    (folder / "videos" / "00003.mp4").write_bytes(b"words " * 99)
    out = tmp_path / "data" / "mine.parquet"
    said = walt("index", str(folder), "--out", str(out), "--val", "0.3", "--workers", "2", "--report", "--config", str(CONFIG)).said
    assert "36 rows, 36 of them new; 36 files examined (layout folder)" in said
    counts = {cells[1].strip(): cells[2:-1] for line in said.splitlines() if len(cells := line.split("│")) == 9}
    assert {"split train", "split val", "all", "folder ../clips/images", "folder ../clips/videos"} == counts.keys()
    assert sum(int(cell) for cell in counts["all"][:3]) == 36 and int(counts["all"][-1]) >= 1
    assert "corrupt" in said and "clips/videos/00003.mp4" in said and "no caption" in said
    assert "train: " in said and "videos used" in said and "quarantined" in said
    findings = list(csv.DictReader(out.with_suffix(".report.csv").open()))
    assert [row["path"] for row in findings if row["finding"] == "corrupt"] == ["../clips/videos/00003.mp4"]
    used = {row["path"]: row for row in csv.DictReader((out.parent / "mine.shapes-vae.csv").open())}
    assert len(used) == 36 and used["../clips/videos/00003.mp4"]["reason"].startswith("quarantined: corrupt: ")
    assert {row["bucket"] for row in used.values() if row["used"] == "yes"} == {"64 x 64"}


def test_index_command_moves_clips_between_splits_only_if_that_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        write_image(tmp_path / "set" / f"{number}.png", np.full((8, 8, 3), number, np.uint8))
    command = ["index", str(tmp_path / "set"), "--out", str(tmp_path / "i.parquet"), "--workers", "1"]
    main(command)
    with pytest.raises(SystemExit, match=r"would move from train to val, the first: set/.*\n.*\n.*--allow-moves"):
        main([*command, "--val", "0.5"])
    capsys.readouterr()
    main([*command, "--val", "0.5", "--allow-moves"])
    assert "split val" in capsys.readouterr().out


def test_index_command_writes_the_reasons_when_no_clip_can_be_used(
    painted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = Path(shutil.copy(painted, tmp_path / "set.parquet"))
    (tmp_path / "long").mkdir()
    (tmp_path / "long" / "vae.yaml").write_text(f"extends: [{CONFIG}]\ndata: {{frames: 33}}\n")
    with pytest.raises(SystemExit, match=r'would stop with:\n.*no video of split "train" can be used$'):
        main(["index", str(index), "--config", str(tmp_path / "long" / "vae.yaml")])
    said = capsys.readouterr().out
    assert "set.long-vae.csv" in said and "16 too short (fewer than 33 frames)" in said
    videos = [row for row in csv.DictReader((tmp_path / "set.long-vae.csv").open()) if row["kind"] == "video"]
    assert {(row["split"], row["used"], row["reason"]) for row in videos} == {
        ("train", "no", "too short"),
        ("val", "no", "too short"),
        ("unseen", "no", 'no video of split "unseen" is read'),
    }


@pytest.mark.parametrize("stage", ["vae", "base_l"])
def test_experiment_ucf101_trains_on_the_splits_of_its_lists(stage: str, tmp_path: Path) -> None:
    clip = {"kind": "video", "frames": 60, "fps": 25.0, "width": 320, "height": 240, "caption": "", "label": 0, "bytes": 1}
    write_index([{**clip, "path": f"{split}.avi", "split": split} for split in ("test", "train")], tmp_path / "index.parquet")
    data = data_of(ROOT / "experiments" / "ucf101" / f"{stage}.yaml", tmp_path / "index.parquet")
    data.setup("fit")
    assert data.counts() == {"train_videos": 1, "train_images": 0} and data.val_dataloader() == []


def rows(kind: str, count: int, split: str = "train", **changes: Any) -> list[dict[str, Any]]:
    """Return rows of an index, whose files nobody reads."""
    place = f"{split}-{kind}-{'-'.join(map(str, changes.values()))}"
    row = {"kind": kind, "frames": 17 if kind == "video" else 1, "fps": 8.0, "width": 64, "height": 64, "split": split, "bytes": 1}
    return [{**row, "caption": "a", "label": -1, **changes, "path": f"{place}-{number}"} for number in range(count)]


Used = dict[str, tuple[str, str, str]]
"""Use, bucket and reason of each clip and image."""
Report = Callable[..., tuple[str, str, Used]]


@pytest.fixture
def report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Report:
    """Report the use that an experiment makes of rows: the printed lines, the error, and the table."""

    def run(entries: list[dict[str, Any]], data: str, *words: str) -> tuple[str, str, Used]:
        write_index(entries, tmp_path / "set.parquet")
        (tmp_path / "exp").mkdir(exist_ok=True)
        (tmp_path / "exp" / "vae.yaml").write_text(f"extends: [{CONFIG}]\ndata: {{{data}}}\n")
        error = ""
        try:
            main(["index", str(tmp_path / "set.parquet"), "--config", str(tmp_path / "exp" / "vae.yaml"), *words])
        except SystemExit as stop:
            error = str(stop)
        with (tmp_path / "set.exp-vae.csv").open() as file:
            found = {row["path"]: (row["used"], row["bucket"], row["reason"]) for row in csv.DictReader(file)}
        return capsys.readouterr().out, error, found

    return run


WHOLE, SHORT = ("yes", "64 x 64", ""), ("no", "", "too short")


@pytest.mark.parametrize(("there", "key"), [("video", "image_stacks_per_batch"), ("image", "videos_per_batch")])
def test_index_command_gives_each_clip_its_own_reason_where_the_split_lacks_a_kind(report: Report, there: str, key: str) -> None:
    lacking = "image" if there == "video" else "video"
    entries = [*rows(there, 2), *rows("video", 1, "val"), *(rows("video", 1, frames=3) if there == "video" else [])]
    printed, error, found = report(entries, "image_stacks_per_batch: 1")
    (problem,) = error.split("\n")[1:]
    assert error.startswith("error: training would stop with:\n")
    assert f'split "train" has no {lacking}s, but the batch wants 4; set data.{key} to 0, or add {lacking}s' in problem
    own = {f"train-{there}--0": WHOLE, f"train-{there}--1": WHOLE, "val-video--0": WHOLE}
    assert found == own | ({"train-video-3-0": SHORT} if there == "video" else {})
    assert f"train: 2 of {3 if there == 'video' else 2} {there}s used" in printed and f"train: 0 of 0 {lacking}s used" in printed


def test_index_command_config_takes_overrides_as_fit_does(report: Report) -> None:
    entries = [*rows("video", 2), *rows("video", 1, "val")]
    for words in (["--data.image_stacks_per_batch", "0"], ["--data.image-stacks-per-batch=0"]):
        printed, error, found = report(entries, "image_stacks_per_batch: 1", *words)
        assert error == "" and set(found.values()) == {WHOLE} and "images used" not in printed
    _, error, found = report(entries, "image_stacks_per_batch: 0", "--data.frames", "33", "--data.val_videos=0")
    assert found["train-video--0"] == SHORT and found["val-video--0"] == ("no", "", 'no video of split "val" is read')


def test_index_command_config_with_shards_reports_the_validation_of_the_index_alone(report: Report) -> None:
    entries = [*rows("video", 2), *rows("video", 1, "val")]
    printed, error, found = report(entries, 'image_stacks_per_batch: 0, shards: {video: "a-{0..1}.tar"}')
    assert error == "" and "train: videos are streamed from a-{0..1}.tar (data.shards), not read from this index" in printed
    assert found["val-video--0"] == WHOLE and found["train-video--0"] == ("no", "", 'no video of split "train" is read')


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{index} --data.fps 8", "--data.fps changes a key of an experiment: give --config experiments/EXP/STAGE.yaml as well"),
        ("{index} --config {config} --data.index {index}", "--data.index is the index that this command reads or writes: leave it out"),
        ("{index} --config {config} --data.frmes 8", r"--data.frmes: there is no such key; did you mean --data.frames\?"),
        ("{index} --config {config} --data.frames", "--data.frames needs a value"),
        ("{index} --config {config} --data.frames many", "--data.frames: found many, wanted a whole number"),
        ("{index} --config {config} --reprot", r"--reprot: there is no such key; did you mean --report\?"),
        ("{index} --overrides a", "--overrides: there is no such key"),
    ],
)
def test_index_command_refuses_overrides_that_change_nothing(words: str, said: str, tmp_path: Path) -> None:
    write_index(rows("video", 1), tmp_path / "set.parquet")
    with pytest.raises(SystemExit, match=said):
        main(["index", *words.format(index=tmp_path / "set.parquet", config=CONFIG).split()])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "{index} --val 0.9 --split foo",
            r"--split, --val: only with a source .*set\.parquet is an index, .*walt index SOURCE --out",
        ),
        ("{index} --layout folder", "--layout: only with a source"),
        ("{index} --root {folder}", "--root: only with a source"),
        ("{index} --fold 2", "--fold: only with a source"),
        ("{index} --allow-moves --report", "--allow-moves: only with a source"),
        ("{index} --out {folder}/b.parquet", r"set\.parquet is an index, which stays where it is: leave out --out .*b\.parquet"),
        ("{index} --seed 3", "--seed: only for shapes"),
        ("{index} --aspect 1.75", "--aspect: only for shapes"),
        ("{folder} --videos 3 --images 4", "--videos, --images: only for shapes, .*type: walt index shapes"),
        ("shapes --val 0.1 --out {folder}/shapes", "--val: only with a source of files .shapes has its own splits"),
    ],
)
def test_index_command_refuses_options_that_change_nothing(words: str, said: str, tmp_path: Path) -> None:
    write_index(rows("video", 1), tmp_path / "set.parquet")
    content = (tmp_path / "set.parquet").read_bytes()
    with pytest.raises(SystemExit, match=said):
        main(["index", *words.format(index=tmp_path / "set.parquet", folder=tmp_path).split()])
    assert (tmp_path / "set.parquet").read_bytes() == content and not (tmp_path / "shapes").exists()


def test_index_command_of_an_index_alone_takes_options_of_examining(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "set" / "a.png", np.zeros((8, 8, 3), np.uint8))
    index = str(tmp_path / "i.parquet")
    main(["index", str(tmp_path / "set"), "--out", index, "--workers", "1"])
    main(["index", index, "--out", index, "--val", "0", "--report", "--max-pixels", "60", "--seconds", "9", "--workers", "1"])
    assert "too large" in capsys.readouterr().out


def test_index_command_says_once_that_no_size_has_both_kinds(report: Report) -> None:
    images = [*rows("image", 1, height=400), *rows("image", 1, width=20)]
    entries = [*rows("video", 2, width=400), *images, *rows("video", 1, "val", width=300)]
    _, error, found = report(entries, "crop: null, sizes: [], buckets: [[64, 300], [300, 64]]")
    (problem,) = error.split("\n")[1:]
    assert 'no size of data.buckets has both videos and images of split "train"; give data.buckets a size that both fit' in problem
    assert found == {
        "train-video-400-0": ("yes", "64 x 300", ""),
        "train-video-400-1": ("yes", "64 x 300", ""),
        "train-image-400-0": ("yes", "300 x 64", ""),
        "train-image-20-0": ("no", "", "smaller than every size of data.buckets"),
        "val-video-300-0": ("yes", "64 x 300", ""),
    }


def test_index_command_names_the_split_that_the_index_does_not_have(report: Report) -> None:
    _, error, found = report(rows("video", 2), "image_stacks_per_batch: 0")
    assert 'nothing in split "val"' in error and "--data.val_videos 0" in error and set(found.values()) == {WHOLE}
    _, error, found = report(rows("video", 2, "val", frames=3), "image_stacks_per_batch: 0")
    assert 'nothing in split "train"' in error and set(found.values()) == {SHORT}
    assert 'no video of split "val" can be used; data.val_videos 0 trains without it' in error


def test_index_command_of_streamed_clips_reports_validation_alone(report: Report, tmp_path: Path) -> None:
    shards = f"image_stacks_per_batch: 0, shards: {{video: '{tmp_path}/a-{{0..3}}.tar'}}"
    printed, error, found = report([*rows("video", 1), *rows("video", 1, "val")], shards)
    assert error == "" and "train: videos are streamed from" in printed and "train: 1" not in printed
    assert found == {"train-video--0": ("no", "", 'no video of split "train" is read'), "val-video--0": WHOLE}


def test_index_command_keeps_the_reasons_of_a_quarantine_of_everything(report: Report, tmp_path: Path) -> None:
    listed = "path,offset,begin,end,reason\ntrain-video--0,,,,mine: dark\ntrain-video--1,,,,mine: dull\n"
    (tmp_path / "set.quarantine.csv").write_text(listed)
    _, error, found = report([*rows("video", 2), *rows("image", 1), *rows("video", 1, "val")], "image_stacks_per_batch: 1")
    assert error.endswith('no video of split "train" can be used')
    assert found["train-video--1"] == ("no", "", "quarantined: mine: dull") and found["train-image--0"] == WHOLE
