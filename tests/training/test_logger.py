"""Curves on a disk that fills up."""

import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import walt_pl.training.logger
from tests.helpers.environment import full_disk
from walt_pl.training.logger import ResilientTensorBoardLogger


def test_resilient_tensorboard_logger_on_a_full_disk_warns_and_resumes_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walt_pl.training.logger, "RETRY", 0.5)
    curves = ResilientTensorBoardLogger(tmp_path, name="logs")
    curves.log_metrics({"train/loss": 1.0}, 0)
    curves.save()
    with pytest.warns(UserWarning, match=r"no curves for .*File too large.*; training goes on; make room in .*version_0"), full_disk(3000):
        for step in range(1, 500):
            curves.log_metrics({"train/loss": 1.0 / step}, step)
            curves.save()
        assert len(list(Path(curves.log_dir).glob("events*"))) < 5, "it is not tried at each step: each try is a file"
    time.sleep(0.6)
    curves.log_metrics({"train/loss": 0.25}, 600)
    curves.finalize("success")
    events = [EventAccumulator(str(file)).Reload() for file in Path(curves.log_dir).glob("events*")]
    seen = {event.step for one in events if "train/loss" in one.Tags()["scalars"] for event in one.Scalars("train/loss")}
    assert {0, 1, 600} <= seen


def test_resilient_tensorboard_logger_refuses_a_value_that_is_not_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not supported"):
        ResilientTensorBoardLogger(tmp_path, name="logs").log_metrics({"train/loss": "high"}, 0)  # type: ignore[dict-item]
