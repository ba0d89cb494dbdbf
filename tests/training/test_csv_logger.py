"""One CSV file for all starts of a training."""

import csv
import os
from pathlib import Path

import lightning as L
import pytest

from tests.helpers.environment import full_disk
from tests.training.callbacks.test_checkpoints import Line, Numbers
from walt_pl.training.callbacks.save_config import SaveConfig
from walt_pl.training.csv_logger import ResilientCSVLogger


def rows(start: Path) -> list[tuple[int, str, str]]:
    """Return step, loss and validation loss of each row of a file."""
    with (start / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), row["train/loss"], row.get("val/loss", "-")) for row in csv.DictReader(file)]


def test_resilient_csv_logger_of_a_training_that_goes_on_appends_in_order(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    first = ResilientCSVLogger(str(tmp_path), "logs", goes_on=False)
    for step in (0, 1):
        first.log_metrics({"train/loss": 0.5 + step}, step)
    with (logs / "version_0" / "metrics.csv").open("ab") as file:
        file.write(b"2,7.")  # a kill within a row
    for start, step in ((1, 2), (2, 3)):
        again = ResilientCSVLogger(str(tmp_path), "logs", goes_on=True)
        assert again.log_dir == str(logs / f"version_{start}"), "its own folder for its configuration"
        again.log_metrics({"train/loss": 0.5 + step}, step)
        again.log_metrics({"val/loss": 0.25}, step)
        again.finalize("success")
        (logs / f"version_{start}").mkdir(exist_ok=True)
    expected = [(0, "0.5", ""), (1, "1.5", ""), (2, "2.5", ""), (2, "", "0.25"), (3, "3.5", ""), (3, "", "0.25")]
    assert rows(logs / "version_0") == expected
    other = ResilientCSVLogger(str(tmp_path), "logs", goes_on=False)
    other.log_metrics({"train/loss": 9.0}, 0)
    assert rows(logs / "version_0") == expected and rows(logs / "version_3") == [(0, "9.0", "-")]


def test_resilient_csv_logger_of_two_trainings_through_lightning_has_all_rows(tmp_path: Path) -> None:
    for goes_on in (False, True):
        trainer = L.Trainer(
            max_steps=3,
            accelerator="cpu",
            logger=ResilientCSVLogger(str(tmp_path), "logs", goes_on),
            callbacks=[SaveConfig("trainer: {}")],
            log_every_n_steps=1,
            **dict.fromkeys(["enable_progress_bar", "enable_model_summary", "enable_checkpointing"], False),
        )
        trainer.fit(Logged((1.0,) * 200), Numbers())
    with (tmp_path / "logs" / "version_0" / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [0, 1, 2, 0, 1, 2]
    assert sorted(path.relative_to(tmp_path / "logs").as_posix() for path in tmp_path.rglob("*.*")) == [
        "version_0/config.yaml",
        "version_0/metrics.csv",
        "version_1/config.yaml",
    ]


class Logged(Line):
    """Logs a value in each step."""

    def on_train_batch_start(self, *_: object) -> None:
        self.log("train/loss", 1.0)


@pytest.mark.parametrize("new_column", [False, True])
def test_resilient_csv_logger_on_a_full_disk_warns_and_leaves_whole_rows(new_column: bool, tmp_path: Path) -> None:
    curves = ResilientCSVLogger(str(tmp_path), "logs", goes_on=False)
    curves.log_metrics({"train/loss": 1.0}, 0)
    file = tmp_path / "logs" / "version_0" / "metrics.csv"
    before = file.read_bytes()
    with pytest.warns(UserWarning, match=r"no curves for .*; training goes on; make room in .*version_0"), full_disk(len(before) + 3):
        curves.log_metrics({"val/loss" if new_column else "train/loss": 2.0}, 10)
        assert file.read_bytes() == before
        curves.log_metrics({"train/loss": 3.0}, 20)  # not tried
    curves._paused_until = 0.0  # ten minutes later
    curves.log_metrics({"train/loss": 4.0}, 30)
    assert [row[:2] for row in rows(file.parent)] == [(0, "1.0"), (10, "" if new_column else "2.0"), (30, "4.0")]


def test_resilient_csv_logger_leaves_no_folder_of_a_start_without_a_value(tmp_path: Path) -> None:
    logger = ResilientCSVLogger(str(tmp_path / "base"), "logs", goes_on=False)
    assert os.path.isdir(logger.experiment.log_dir)
    logger.finalize("failed")
    assert not (tmp_path / "base").exists()
