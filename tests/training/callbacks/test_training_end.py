"""The end of a training and a stop before it, on a line of two numbers."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer

from tests.training.callbacks.test_checkpoints import Line, Numbers, kept
from walt_pl.runs.checkpoint import Checkpoint, read_state
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.export import ExportArtifact
from walt_pl.training.callbacks.training_end import has_reached_end, is_out_of_time, render_metrics

EPOCH = 20
"""Steps of an epoch of `Numbers`."""


class OutOfTime(L.Callback):
    """Lets trainer.max_time be over at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step - 1:
            for timer in (callback for callback in trainer.callbacks if isinstance(callback, Timer)):  # type: ignore[attr-defined]
                timer._offset += 7200


def train(folder: Path, *more: L.Callback, resume: bool = False, **options: Any) -> L.Trainer:
    newest = Checkpoint.newest(folder) if resume else None
    trainer = L.Trainer(
        **{"max_epochs": -1, "accelerator": "cpu", "devices": 1, "val_check_interval": 5, "check_val_every_n_epoch": None, **options},
        callbacks=[*more, Checkpoints(str(folder), every_n_train_steps=0, every_n_minutes=0)],
        **dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False),
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    if newest is not None:
        trainer.ckpt_path = str(newest.state)
    trainer.fit(Line((1.0,) * 200), Numbers())
    return trainer


HOUR = "00:01:00:00"
ENDS: dict[str, tuple[Callable[[], list[L.Callback]], dict[str, Any], int, bool]] = {
    "max_steps": (list, {"max_steps": 7}, 7, True),
    "max_epochs": (list, {"max_epochs": 1}, EPOCH, True),
    "early stopping": (lambda: [EarlyStopping("val/loss", patience=1)], {"max_steps": 50}, 10, True),
    "early stopping with time left": (lambda: [EarlyStopping("val/loss", patience=1)], {"max_steps": 50, "max_time": HOUR}, 10, True),
    "max_steps with time left": (list, {"max_steps": 7, "max_time": HOUR}, 7, True),
    "max_time": (lambda: [OutOfTime(3)], {"max_steps": 7, "max_time": HOUR}, 3, False),
    "max_time at the last step": (lambda: [OutOfTime(7)], {"max_steps": 7, "max_time": HOUR}, 7, True),
    "max_time without an end": (lambda: [OutOfTime(3)], {"max_steps": -1, "max_time": HOUR}, 3, False),
    "max_time in the last epoch": (lambda: [OutOfTime(3)], {"max_epochs": 1, "max_time": HOUR}, 3, False),
    "max_time at the end of the last epoch": (lambda: [OutOfTime(EPOCH)], {"max_epochs": 1, "max_time": HOUR}, EPOCH, True),
    "no data": (list, {"max_steps": 7, "limit_train_batches": 0}, 0, False),
}


@pytest.mark.parametrize("name", ENDS)
def test_has_reached_end_tells_an_end_from_a_stop(name: str, tmp_path: Path) -> None:
    callbacks, options, steps, ended = ENDS[name]
    trainer = train(tmp_path, *callbacks(), **options)
    assert trainer.global_step == steps
    assert has_reached_end(trainer) is ended
    assert is_out_of_time(trainer) is any(isinstance(callback, OutOfTime) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    assert kept(tmp_path) == ([steps] if steps else [])


def test_checkpoints_at_max_time_is_within_the_epoch_and_the_next_start_has_its_own_time(tmp_path: Path) -> None:
    """Lightning counts the epoch that max_time cut off as complete, and restores the time of earlier starts."""
    train(tmp_path, OutOfTime(3), max_epochs=1, max_time=HOUR)
    state = read_state(tmp_path / "step=00000003" / "state.ckpt")
    assert state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 0
    assert state["callbacks"]["Timer"]["time_elapsed"]["train"] > 7200
    again = train(tmp_path, resume=True, max_epochs=1, max_time=HOUR)
    assert again.global_step == EPOCH and has_reached_end(again)


def test_export_artifact_takes_the_figures_of_the_checkpoint_where_no_step_was_left(tmp_path: Path) -> None:
    """Such a training was killed between its last step and its artifact."""
    train(tmp_path, max_steps=5)
    trainer: Any = SimpleNamespace(callback_metrics={}, callbacks=[Checkpoints(str(tmp_path))], global_step=5)
    export = ExportArtifact(tmp_path, "vae", {}, "")
    assert export._metrics(trainer) == {"val/loss": 1.0}
    trainer.callback_metrics = {"val/loss": torch.tensor(0.5), "train/loss": torch.tensor(2.0)}
    assert export._metrics(trainer) == {"val/loss": 0.5}
    trainer.callback_metrics, trainer.global_step = {}, 6
    assert export._metrics(trainer) == {}


@pytest.mark.parametrize(("started", "when"), [(False, "before the first step"), (True, "while the artifact was written")])
def test_export_artifact_says_what_to_type_after_ctrl_c(
    started: bool, when: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside of the steps, Ctrl-C is an exception, and nothing is recorded."""
    trainer: Any = SimpleNamespace(is_global_zero=True)
    export = ExportArtifact(tmp_path, "vae", {}, "")
    export._started = started
    export.on_exception(trainer, Line(), KeyboardInterrupt())
    assert capsys.readouterr().out == f"stopped {when}; the same command goes on from there\n"
    assert not list(tmp_path.iterdir())


def test_render_metrics_sorts_names_leaves_out_single_timesteps_and_says_when_there_are_none() -> None:
    figures = {"val/psnr": 31.234567, "val/loss_050": 0.25, "val/loss": 0.5, "val/loss_950": 0.75}
    assert render_metrics(figures) == "last validation: val/loss 0.5  val/psnr 31.23"
    assert render_metrics({}) == "last validation: none in this start"
