"""metrics.csv: the rows of the project's own logger, with limits, and honest about damage."""

from pathlib import Path

import numpy as np
import pytest

from walt_pl.report import csv_file
from walt_pl.report.csv_file import read_csv_file
from walt_pl.report.training_logs import read_training
from walt_pl.training.csv_logger import ResilientCSVLogger


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    return {tag: list(zip(curve.steps, curve.values, strict=True)) for tag, curve in read_csv_file(path).curves.items()}


def test_read_csv_file_lets_the_later_row_of_a_repeated_step_count(tmp_path: Path) -> None:
    """The second start goes on from a checkpoint of step 10, and appends to the file of the first one."""
    first = ResilientCSVLogger(str(tmp_path), "logs", goes_on=False)
    for step, loss in ((9, 1.0), (19, 0.5), (29, 0.25)):
        first.log_metrics({"train/loss": loss}, step)
    first.log_metrics({"val/loss": float("nan")}, 19)
    again = ResilientCSVLogger(str(tmp_path), "logs", goes_on=True)
    again.log_metrics({"train/loss": 0.75}, 19)
    found = read_training(tmp_path).curves
    assert list(found) == ["train/loss", "val/loss"]
    assert (found["train/loss"].steps.tolist(), found["train/loss"].values.tolist()) == ([9, 19], [1.0, 0.75])
    assert found["val/loss"].steps.tolist() == [19] and np.isnan(found["val/loss"].values).all()


def test_read_csv_file_leaves_out_a_row_that_a_kill_has_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,a\n9,1.5\n19,7.")
    assert curves(path) == {"a": [(9, 1.5)]} and read_csv_file(path).problems == []


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (b"19,x", "could not convert"),
        (b"19", "a row has 1 values for 2 columns"),
        (b"1e3,1", "invalid literal"),
        (b"9999999999999999999,1", "too large|too big"),
        (b"\xff,1", "can't decode"),
        (b"19,\x00", "could not convert|NUL"),
    ],
)
def test_read_csv_file_keeps_the_rows_before_the_damage(tmp_path: Path, row: bytes, told: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,a\n9,1.5\n" + row + b"\n29,3\n")
    found = read_csv_file(path)
    (problem,) = found.problems
    assert problem.startswith("metrics.csv is damaged (") and any(part in problem for part in told.split("|"))
    assert row.startswith(b"\xff") or curves(path) == {"a": [(9, 1.5)]}


def test_read_training_of_a_file_without_a_whole_number_has_no_curve(tmp_path: Path) -> None:
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    (tmp_path / "logs" / "version_0" / "metrics.csv").write_text("step,train/loss\n9,x\n")
    found = read_training(tmp_path)
    assert found.curves == {} and len(found.problems) == 1


def test_read_csv_file_limits_bytes_and_tags_and_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(f"a,step,{'b' * 101},c,d\n1,9,2,3,4\n")
    monkeypatch.setattr(csv_file, "MAX_TAGS", 2)
    assert curves(path) == {"a": [(9, 1.0)], "c": [(9, 3.0)]}
    assert [problem.partition(" ")[2].split(":")[0] for problem in read_csv_file(path).problems] == [
        "has a tag of more than 100 characters",
        "has more than 2 tags",
    ]
    (tmp_path / "link").symlink_to(path)
    assert "is not a plain file" in read_csv_file(tmp_path / "link").problems[0]
    monkeypatch.setattr(csv_file, "MAX_CSV_BYTES", 20)
    assert "has more than 20 bytes" in read_csv_file(path).problems[0]
    assert read_csv_file(tmp_path / "none").problems == []
