"""The writer of checkpoints, on a line of two numbers."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

import walt_pl.training.callbacks.checkpoints as writer
from tests.helpers.environment import ROOT
from walt_pl.runs.checkpoint import Checkpoint, finalize_checkpoint, folder_name, read_state
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.hyperparameters import Hyperparameters
from walt_pl.training.callbacks.reseed import Reseed
from walt_pl.training.callbacks.text_progress import TextProgress


class Line(L.LightningModule):
    """Validates to values that are given, and notes the learning rate and what dropout left of ones."""

    def __init__(self, values: tuple[float, ...] = (), lr: float = 0.1) -> None:
        super().__init__()
        self.line, self.dropout = nn.Linear(1, 1), nn.Dropout(0.5)
        self.values, self.lr = values, lr
        self.rates: list[float] = []
        self.masks: list[Tensor] = []
        self.validated = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.masks.append(self.dropout(torch.ones(64)))
        loss = self.line(batch).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated += 1
        if self.values:
            self.log("val/loss", self.values[self.global_step - 1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, lambda step: 0.9**step), "interval": "step"}}


class Batch(torch.Tensor):
    global_batch_index = torch.zeros(1, dtype=torch.int64)


class Numbers(L.LightningDataModule):
    videos_per_batch, images_per_batch = 2, 1

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.ones(40, 1), batch_size=2, collate_fn=lambda rows: torch.stack(rows).as_subclass(Batch))

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.zeros(5, 1))


class At(L.Callback):
    """Does something at the end of a step, before the writer comes."""

    def __init__(self, step: int, what: Any, hook: str = "on_train_batch_end") -> None:
        setattr(self, hook, lambda trainer, *_: what() if trainer.global_step == step else None)


def train(folder: Path, steps: int, module: Line | None = None, *extra: L.Callback, resume: bool = False, **options: Any) -> L.Trainer:
    newest = Checkpoint.newest(folder) if resume else None
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        callbacks=[*extra, EMA(decay=0.5), Checkpoints(str(folder), **{"every_n_train_steps": 1, "every_n_minutes": 0, **options})],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        default_root_dir=folder,
    )
    if newest is not None:
        trainer.ckpt_path = str(newest.state)
    trainer.fit(module or Line(), Numbers())
    return trainer


def kept(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in Checkpoint.all(folder)]


def test_checkpoints_keeps_the_last_ones_and_the_best(tmp_path: Path) -> None:
    train(tmp_path, 6, Line((3.0, 1.0, 2.0, 5.0, 4.0, 6.0)), keep=2, monitor="val/loss")
    assert kept(tmp_path) == [2, 5, 6]
    assert Checkpoint.at(tmp_path / "step=00000002").metrics == {"val/loss": 1.0}
    assert Checkpoint.at(tmp_path / "step=00000006").samples == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=00000002", "step=00000005", "step=00000006"]


def test_checkpoints_writes_the_best_one_off_schedule(tmp_path: Path) -> None:
    train(tmp_path, 6, Line((3.0, 4.0, 2.0, 5.0, 9.0, 6.0)), every_n_train_steps=0, keep=1, monitor="val/loss", mode="max")
    assert kept(tmp_path) == [5, 6]


@pytest.mark.parametrize("mine, first", [(None, 3), (3, None), (3, 5)])
def test_checkpoints_refuses_ranks_that_would_start_at_different_steps(mine: int | None, first: int | None, tmp_path: Path) -> None:
    """All of them ask, also one that has nothing to go on from: the others would wait for it."""
    if mine is not None:
        train(tmp_path, mine)
    newest = Checkpoint.newest(tmp_path)
    strategy = SimpleNamespace(broadcast=lambda _: first, checkpoint_io=None)
    trainer: Any = SimpleNamespace(strategy=strategy, ckpt_path=newest and str(newest.state), callbacks=[], global_rank=8)
    with pytest.raises(ValueError, match=r"rank 8 finds (none|step=00000003) and rank 0 .* in .*; all machines must see the same folder"):
        Checkpoints(str(tmp_path)).setup(trainer, Line(), "fit")


def test_checkpoints_every_n_minutes_works_as_every_n_train_steps(tmp_path: Path) -> None:
    train(tmp_path / "always", 3, every_n_train_steps=0, every_n_minutes=1e-9, keep=9)
    assert kept(tmp_path / "always") == [1, 2, 3]
    train(tmp_path / "never", 3, every_n_train_steps=0, every_n_minutes=60, keep=9)
    assert kept(tmp_path / "never") == [3], "the last step is always written"


def test_checkpoints_every_n_minutes_removes_none_of_every_n_train_steps(tmp_path: Path) -> None:
    train(tmp_path, 7, every_n_train_steps=3, every_n_minutes=1e-9, keep=1)
    assert kept(tmp_path) == [6, 7]
    train(tmp_path / "long", 5, every_n_train_steps=3, every_n_minutes=1e-9, keep=1)
    assert kept(tmp_path / "long") == [3, 5]


def test_checkpoints_starting_removes_later_ones_of_another_training(tmp_path: Path) -> None:
    train(tmp_path, 5, keep=9)
    (tmp_path / f"{folder_name(6)}.part").mkdir()
    (tmp_path / "step=00000005" / "checkpoint.json").unlink()
    train(tmp_path, 2, keep=9, every_n_train_steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=00000002"]


def test_checkpoints_removes_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    train(tmp_path / "run", 3, keep=9)
    for step in (1, 3):
        moved = (tmp_path / "run" / folder_name(step)).rename(tmp_path / folder_name(step))
        (tmp_path / "run" / moved.name).symlink_to(moved)
    train(tmp_path / "run", 2, keep=1, every_n_train_steps=2)
    assert kept(tmp_path / "run") == [2] and len(list((tmp_path / "run").iterdir())) == 1
    assert kept(tmp_path) == [1, 3]


# ---- A full disk -----------------------------------------------------------------------------------------------------


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_a_state(state: Any, file: Any) -> None:
    file.write(b"half")
    no_space()


PLACES = {"state": (torch, "save", half_a_state), "averages": (EMA, "save", no_space), "sync": (writer, "finalize_checkpoint", no_space)}


@pytest.mark.parametrize("place", PLACES)
def test_checkpoints_on_a_full_disk_warns_and_training_continues(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the writing fails: the training goes on, what was there stays, no part is left, and each failure is told."""
    full = At(2, lambda: monkeypatch.setattr(*PLACES[place]))
    room = At(4, monkeypatch.undo)
    with pytest.warns(UserWarning) as told:
        trainer = train(tmp_path, 5, None, full, room, keep=9)
    assert trainer.global_step == 5
    failed = [str(warning.message) for warning in told if "could not be written" in str(warning.message)]
    assert [said.split(":")[0] for said in failed] == ["step 2", "step 3"]
    assert all("No space left on device" in said and "step=00000001 stays" in said for said in failed)
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder_name(step) for step in (1, 4, 5)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine does not let us mount a small disk ({mounted.stderr.strip()}); the test above fails by hand")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_checkpoints_on_a_real_full_disk_loses_nothing(small_disk: Path) -> None:
    with pytest.warns(UserWarning, match="No space left on device"):
        trainer = train(small_disk, 20, keep=99)
    assert trainer.global_step == 20
    before = kept(small_disk)
    assert before == list(range(1, len(before) + 1)) and 2 <= len(before) < 20
    assert all(read_state(checkpoint.state)["global_step"] == checkpoint.step for checkpoint in Checkpoint.all(small_disk))
    assert not list(small_disk.glob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    train(small_disk, 20, resume=True, keep=99)
    assert kept(small_disk) == list(range(1, 21)), "with room it goes on from the last one that was whole"


# ---- The end is announced ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_checkpoints_saves_and_stops_on_a_signal(number: signal.Signals, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, 9, None, At(3, lambda: os.kill(os.getpid(), number)), every_n_train_steps=0)
    assert stopped.value.code == 128 + number
    assert kept(tmp_path) == [3]
    assert signal.getsignal(number) == before
    assert train(tmp_path, 9, resume=True).global_step == 9


def test_checkpoints_stops_on_a_signal_that_the_program_before_had_blocked(tmp_path: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with pytest.raises(SystemExit) as stopped:
            # In a program that starts so, every thread blocks it. Here only the one that trains does.
            train(tmp_path, 9, None, At(3, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)), every_n_train_steps=0)
        assert stopped.value.code == 128 + signal.SIGTERM and kept(tmp_path) == [3]
    finally:
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one that still waits is dropped
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGTERM, handler)


IDLE, STARTED_ONE = SimpleNamespace(procs=[]), SimpleNamespace(procs=["process"])
"""Launchers of Lightning: under torchrun or SLURM, and one that has started a process."""


@pytest.mark.parametrize(
    ("launcher", "local_rank", "code"),
    [(None, 0, 143), (IDLE, 0, 143), (IDLE, 1, 143), (STARTED_ONE, 0, 143), (STARTED_ONE, 1, 0)],
)
def test_checkpoints_stop_exit_code_of_a_rank_is_what_its_launcher_needs(launcher: Any, local_rank: int, code: int, tmp_path: Path) -> None:
    """Lightning's launcher takes every other code of the ranks that it has started for a crash."""
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher), local_rank=local_rank, global_step=3)
    with pytest.raises(SystemExit) as stopped:
        Checkpoints(str(tmp_path))._stop(trainer, signal.SIGTERM)
    assert stopped.value.code == code


def test_checkpoints_ranks_wait_for_the_last_words_of_rank_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=None), local_rank=1, global_step=3)
    callback, waited = Checkpoints(str(tmp_path)), []
    monkeypatch.setattr(writer, "max_on_host", lambda *values: waited.append(values) or list(values))
    callback.on_exception(trainer, Line(), RuntimeError("another error: the other ranks may be gone"))
    assert waited == []
    with pytest.raises(SystemExit) as stopped:
        callback._stop(trainer, signal.SIGTERM)
    waited.clear()
    callback.on_exception(trainer, Line(), stopped.value)
    assert waited == [(0,)]

    def fail(*values: int) -> list[int]:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(writer, "max_on_host", fail)
    callback.on_exception(trainer, Line(), stopped.value)  # the exit code stays that of the signal
    with pytest.raises(SystemExit) as stopped:  # also where a rank was lost right after the checkpoint
        callback._stop(trainer, signal.SIGUSR1)
    assert stopped.value.code == 128 + signal.SIGUSR1


def test_checkpoints_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    """The first one is answered while the step is still being computed."""
    with subprocess.Popen([sys.executable, "-c", TWICE, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and kept(tmp_path) == [1, 2], "the third step is lost"
    assert "Ctrl-C: a checkpoint is written after this step. Ctrl-C again ends at once" in said and "stopped by SIGINT" not in said


TWICE = """
import os, signal, sys
from pathlib import Path
from tests.training.callbacks.test_checkpoints import At, train
press = lambda: os.kill(os.getpid(), signal.SIGINT)
train(Path(sys.argv[1]), 9, None, At(2, lambda: (press(), press()), hook="on_train_batch_start"))
"""


def test_checkpoints_on_a_signal_does_not_wait_for_validation(tmp_path: Path) -> None:
    module = Line((1.0,) * 9)
    told = At(2, lambda: os.kill(os.getpid(), signal.SIGTERM), hook="on_validation_start")
    with pytest.raises(SystemExit):
        train(tmp_path, 9, module, told, every_n_train_steps=0)
    assert module.validated == 5 + 1, "the first is whole, the second ends after a batch"
    assert kept(tmp_path) == [3]


# ---- What a checkpoint must not decide -----------------------------------------------------------------------------------


def test_hyperparameters_of_the_command_line_win_and_the_moments_stay(tmp_path: Path) -> None:
    train(tmp_path, 3, Line(lr=0.1), Hyperparameters())
    module = Line(lr=0.5)
    trainer = train(tmp_path, 5, module, Hyperparameters(), resume=True)
    assert module.rates == pytest.approx([0.5 * 0.9**3, 0.5 * 0.9**4])
    assert next(iter(trainer.optimizers[0].state.values()))["step"] == 5
    again = Line(lr=0.1)
    train(tmp_path / "same", 3, Line(lr=0.1), Hyperparameters())
    train(tmp_path / "same", 5, again, Hyperparameters(), resume=True)
    unbroken = Line(lr=0.1)
    train(tmp_path / "unbroken", 5, unbroken, Hyperparameters())
    assert again.rates == unbroken.rates[3:], "to the last bit, where nothing was changed"


def test_reseed_gives_equal_dropout_after_a_restart(tmp_path: Path) -> None:
    whole, begun, resumed = Line(), Line(), Line()
    train(tmp_path / "whole", 6, whole, Reseed(7))
    train(tmp_path / "two", 3, begun, Reseed(7))
    torch.rand(5)
    train(tmp_path / "two", 6, resumed, Reseed(7), resume=True)
    masks = [*begun.masks, *resumed.masks]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(masks, whole.masks, strict=True))
    assert not torch.equal(whole.masks[0], whole.masks[1])


def test_text_progress_prints_a_line_a_minute_and_the_last_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 20))
    fake = SimpleNamespace(monotonic=lambda: next(clock), strftime=time.strftime)
    monkeypatch.setattr("walt_pl.training.callbacks.text_progress.time", fake)
    with warnings.catch_warnings(action="ignore"):
        train(tmp_path, 9, None, TextProgress(), every_n_train_steps=0)
    lines = [line for line in capsys.readouterr().out.splitlines() if "step " in line]
    assert len(lines) == 4
    assert "step 1/9  20.00 s a step  0:02:40 left  train/loss" in lines[0]
    assert "step 4/9" in lines[1] and "step 7/9" in lines[2] and "step 9/9" in lines[3]


def test_checkpoints_unfinished_part_is_never_a_checkpoint(tmp_path: Path) -> None:
    part = tmp_path / f"{folder_name(1)}.part"
    part.mkdir()
    torch.save({}, part / "state.ckpt")
    assert Checkpoint.newest(tmp_path) is None
    finalize_checkpoint(part, 1, 1, "single", 1, {})
    assert kept(tmp_path) == [1]
