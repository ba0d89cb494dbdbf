"""`python -m walt_pl index`, as a user types it."""

import csv
import shutil
from pathlib import Path

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
    used = r'no video of split "train" can be used.*16 too short \(fewer than 33 frames\)'
    with pytest.raises(SystemExit, match=f"(?s)would stop.*{used}.*file by file: python -m walt_pl index {index} --report --config"):
        main(["index", str(index), "--config", str(tmp_path / "long" / "vae.yaml")])
    assert "set.long-vae.csv" in capsys.readouterr().out
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
