"""Curves on a disk that fills up."""

import subprocess
import time
from pathlib import Path

import lightning as L
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import walt_pl.training.logger
from tests.helpers.environment import ROOT, full_disk
from tests.training.callbacks.test_checkpoints import Line, Numbers
from walt_pl.training.callbacks.save_config import SaveConfig
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


class Fails(L.Callback):
    """Ends a training in `setup`, or at its first step."""

    def __init__(self, hook: str) -> None:
        self.hook = hook

    def setup(self, *_: object, **__: object) -> None:
        if self.hook == "setup":
            raise ValueError("no such data")

    def on_train_batch_start(self, *_: object) -> None:
        raise ValueError("no memory")


@pytest.mark.parametrize(("hook", "left"), [("setup", False), ("step", True)])
def test_resilient_tensorboard_logger_leaves_no_folder_of_a_start_that_fails_in_setup(hook: str, left: bool, tmp_path: Path) -> None:
    """A training that had begun keeps its configuration, and an earlier start its curves."""
    work = tmp_path / "training" / "vae"
    for start in ("version_0", "version_1"):
        trainer = L.Trainer(
            max_steps=3,
            accelerator="cpu",
            logger=ResilientTensorBoardLogger(str(work), name="logs"),
            callbacks=[SaveConfig("trainer: {}"), Fails(hook)],
            **dict.fromkeys(["enable_progress_bar", "enable_model_summary", "enable_checkpointing"], False),
        )
        with pytest.raises(ValueError, match=r"no such data|no memory"):
            trainer.fit(Line((1.0,) * 200), Numbers())
        assert work.exists() is left
        if left:
            assert (work / "logs" / start / "config.yaml").is_file()


@pytest.mark.parametrize(("more", "host"), [((), "127.0.0.1"), (("ARGS=--host 0.0.0.0",), "0.0.0.0")])
def test_make_tensorboard_listens_on_this_machine_alone_unless_told(more: tuple[str, ...], host: str) -> None:
    command = subprocess.run(["make", "-n", "tensorboard", *more], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = next(line for line in command.splitlines() if "tensorboard.main" in line).split()
    assert words[len(words) - words[::-1].index("--host")] == host, "the last one counts"
