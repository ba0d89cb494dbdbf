"""Write checkpoints on schedule and on SIGTERM/SIGUSR1/SIGINT. A failed write warns; it never stops training."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning as L
import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import callbacks
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from safetensors import SafetensorError

from walt_pl.removal import describe_left, remove_own
from walt_pl.runs.checkpoint import (
    CARD,
    PART,
    STATE,
    Checkpoint,
    CheckpointError,
    Strategy,
    finalize_checkpoint,
    folder_name,
    read_state,
    recovery_hint,
    update_metrics,
    write_state,
)
from walt_pl.runs.checkpoint import steps as folders
from walt_pl.runs.finite import NonFiniteError
from walt_pl.runs.run_files import CHECKPOINT_FILES
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.training_end import validation_metrics
from walt_pl.training.strategies.reduction import max_on_host
from walt_pl.training.strategies.shards import non_finite
from walt_pl.training.strategies.zero import ZeROStrategy

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that schedulers send before they end a job, and Ctrl-C."""
INTERRUPTED = "\nCtrl-C: a checkpoint is written after this step. Ctrl-C again ends at once; steps since the last checkpoint are lost.\n"


class StateFile(TorchCheckpointIO):
    """Checkpoint IO for strategies that write one file, state.ckpt."""

    failure: OSError | None = None
    """Error of the last write, None if it succeeded."""

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}
        self.instead: dict[Path, Path] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        written = write_state(checkpoint, path)  # `Checkpoints._write` reads both attributes
        self.failure = written if isinstance(written, OSError) else None
        self.hashes = {} if isinstance(written, OSError) else {str(path): written}

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_state(self.instead.get(Path(path), path))


class Checkpoints(callbacks.Checkpoint):
    """Keep the last checkpoints and the best one (see walt_pl/runs/checkpoint.py for their content).

    A training that trainer.max_time or another callback ends has a checkpoint of its last step. trainer.max_time counts from each start.
    trainer.fast_dev_run writes and removes none.

    On SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) a last checkpoint is written after the current step, and the program ends with 128 + the
    signal's number. A second SIGINT ends it at once. A full disk causes a warning and does not stop the training; earlier checkpoints
    stay. Weights or averages that are nan or infinite end the training without a checkpoint. No later step repairs them, and their
    checkpoints would replace the last good ones.

    Args:
        dirpath: folder of the checkpoints; by default in the training folder of the stage.
        every_n_train_steps: optimiser steps between two checkpoints; 0 for none.
        every_n_minutes: minutes between two checkpoints; 0 for none.
        keep: number of last checkpoints that stay. The last one on schedule (`every_n_train_steps`) stays beside them.
        monitor: a validation metric such as val/loss, or one of the callback metrics such as metrics/fvd. The checkpoint with its best
            value stays beside the last ones; null for none.
        mode: whether the lowest (`min`) or the highest value (`max`) is the best; null for that of the metric.
        retry_minutes: minutes in which the artifact is tried again, once a minute, when the disk is full at the end of the training.

    Raises:
        ValueError: `every_n_train_steps`, `every_n_minutes` or `retry_minutes` is negative, or `keep` is below 1.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_train_steps: int = 100,
        every_n_minutes: float = 30.0,
        keep: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        retry_minutes: float = 10.0,
    ) -> None:
        for name, value, least in (
            ("every_n_train_steps", every_n_train_steps, 0),
            ("every_n_minutes", every_n_minutes, 0),
            ("keep", keep, 1),
            ("retry_minutes", retry_minutes, 0),
        ):
            if value < least:
                raise ValueError(f"checkpoint.{name} must be at least {least}, got {value}")
        self.folder = Path(dirpath) if dirpath else Path("checkpoints")
        self.every_n_train_steps = every_n_train_steps
        self.every_n_minutes = every_n_minutes
        self.keep = keep
        self.monitor = monitor
        self.mode = mode or "min"
        self.retry_minutes = retry_minutes
        self._file = StateFile()
        self._start: Checkpoint | None = None
        self._saved = self._seen = self._signal = 0
        self.before_save: list[Callable[[], None]] = []
        self._written = 0.0
        self._cut_short = self._is_global_zero = self._has_stopped = False
        self._former: dict[signal.Signals, Any] = {}

    # ---- Start of the training -----------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Set the checkpoint IO before anything is read, and take the checkpoint that rank zero has checked and chosen.

        Raises:
            ValueError: this rank does not find the checkpoint of rank zero.
        """
        trainer.strategy.checkpoint_io = self._file
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).name == STATE:
            self._start = Checkpoint.at(Path(trainer.ckpt_path).parent)
        mine = self._start.step if self._start else None
        first = trainer.strategy.broadcast(mine)
        if first != mine and not self._take_earlier(trainer, first):
            found = ["none" if step is None else folder_name(step) for step in (mine, first)]
            raise ValueError(
                f"checkpoint to go on from: rank {trainer.global_rank} finds {found[0]} and rank 0 {found[1]} in {self.folder}; all "
                "machines must see the same folder: put the run (--run) on a file system that they share"
            )
        if self._start is None:
            return
        for averages in _ema_callbacks(trainer):
            averages.load(self._start.path)

    def _take_earlier(self, trainer: L.Trainer, step: int | None) -> bool:
        """Take rank zero's checkpoint in place of a later one. Rank zero compares hashes and may have found the later one damaged.

        Returns:
            True if this rank finds that checkpoint.
        """
        if self._start is None or step is None or step > self._start.step:
            return False
        try:
            chosen = Checkpoint.at(self._start.path.with_name(folder_name(step)))
        except CheckpointError:
            return False
        self._file.instead[self._start.state] = chosen.state  # Lightning keeps the path that it was started with
        trainer.ckpt_path = str(chosen.state)
        self._start = chosen
        return True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._file.instead.clear()  # training writes a good checkpoint of that name
        self._saved = self._seen = trainer.global_step
        self._written = time.monotonic()
        self._signal = 0
        self._is_global_zero = trainer.is_global_zero
        # Lightning's handler waits for the other ranks at any point of the code. Ours sets a flag that is read after each step.
        self._former = {number: signal.signal(number, self._record_signal) for number in SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a program that starts a training may block them, and a child inherits that
        if self._start is not None:
            self._check_finite(trainer, pl_module, f"{self._start.path} is of no use")
        if trainer.is_global_zero:
            self._remove_later(trainer.global_step)

    def _remove_later(self, step: int) -> None:
        """Remove unfinished checkpoints and those of later steps; the later ones belong to another training.

        Args:
            step: step at which this training starts.
        """
        parts = [path for path in self.folder.glob(f"step=*{PART}") if re.fullmatch(r"step=\d{8,}", path.stem)]
        for path in [*folders(self.folder), *parts]:
            if path.suffix == PART or int(path.name[5:]) > step:
                rank_zero_info(f"removing {path}: training starts at step {step}")
                _remove(path)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Forget the time of earlier starts: with it, a command with trainer.max_time that goes on would stop at once.

        Also set the path of rank zero's choice again, which Lightning has replaced by the one that this rank was started with.
        """
        if self._start is not None and self._file.instead:
            trainer.ckpt_path = str(self._start.state)
        checkpoint.get("callbacks", {}).pop(callbacks.Timer.__qualname__, None)

    def _record_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == number:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if number == signal.SIGINT and self._is_global_zero:
            os.write(2, INTERRUPTED.encode())  # print could have been interrupted itself, and refuses a second entry
        self._signal = number

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()
        if self._has_stopped:  # torchrun and srun may kill all ranks when one has ended: rank zero prints its last message first
            with suppress(RuntimeError):  # another rank has ended already, and the exit code stays that of the signal
                max_on_host(0)

    def is_stopping(self) -> bool:
        """Return whether a signal has asked this process to end."""
        return self._signal != 0

    def _restore_handlers(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    # ---- Schedule ------------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if not self._former or step == self._seen:  # a trial, or gradients are still being accumulated
            return
        self._seen = step
        # A checkpoint inside the epoch. After Lightning has ended the epoch, it would count an unfinished one as complete.
        due, told = max_on_host(self._is_time_due(trainer) or _is_stopping(trainer), self._signal)
        if due or told or step == trainer.max_steps or (self.every_n_train_steps and step % self.every_n_train_steps == 0):
            self.save(trainer, pl_module)
        if told:
            self._stop(trainer, told)

    def stop_if_asked(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save this step and end the training if a signal has asked for it; all ranks call it."""
        if told := max_on_host(self._signal)[0]:
            self.save(trainer, pl_module)
            self._stop(trainer, told)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Stop the validation after a signal, so that the scheduler need not wait for its end."""
        if self._former and max_on_host(self._signal)[0]:
            self._cut_short = True
            raise StopIteration  # ends Lightning's validation loop; the training ends after the next training step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        cut_short, self._cut_short = self._cut_short, False
        if not cut_short:
            self.record(trainer, pl_module, validation_metrics(trainer))

    def record(self, trainer: L.Trainer, pl_module: L.LightningModule, metrics: Mapping[str, float]) -> None:
        """Record metrics with the checkpoint of this step. If they are the best and it has none, save one; all ranks call it."""
        if not self._former:
            return
        if trainer.strategy.broadcast(self._saved != trainer.global_step and self._is_best(metrics)):
            self.save(trainer, pl_module, metrics)
        elif trainer.is_global_zero and self._saved == trainer.global_step:
            self._record_metrics(trainer.global_step, metrics)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step when a limit of epochs or another callback ended the training.

        The artifact is still to be written. With this checkpoint, a kill before that loses no step.
        """
        if self._former and self._saved != trainer.global_step:
            self.save(trainer, pl_module)

    def _is_time_due(self, trainer: L.Trainer) -> bool:
        return trainer.is_global_zero and 0 < self.every_n_minutes * 60 <= time.monotonic() - self._written

    def _stop(self, trainer: L.Trainer, told: int) -> None:
        name = signal.Signals(told).name
        last = Checkpoint.newest(self.folder)
        safe = f"{last.path} stays" if last else "there is no checkpoint"
        where = f"everything is in {last.path}" if last and last.step == trainer.global_step else f"which could not be saved, and {safe}"
        rank_zero_info(f"stopped by {name} after step {trainer.global_step}, {where}; the same command goes on")
        self._has_stopped = True
        # Processes that Lightning has started exit with 0: it takes another code for a crash, and kills rank zero. torchrun's are none.
        started_by_lightning = bool(getattr(trainer.strategy.launcher, "procs", ()))
        with suppress(RuntimeError):  # another rank has been lost since, and the exit code stays that of the signal
            started_by_lightning = bool(max_on_host(started_by_lightning)[0])
        raise SystemExit(0 if started_by_lightning and trainer.local_rank else 128 + told)

    # ---- Saving --------------------------------------------------------------------------------------------------------

    def save(self, trainer: L.Trainer, pl_module: L.LightningModule, metrics: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint of this step; all ranks call it. A failure causes a warning, and the part is removed.

        Raises:
            NonFiniteError: weights or averages are nan or infinite.
        """
        step = trainer.global_step
        if self._saved == step:
            return
        for call in self.before_save:
            call()
        self._check_finite(trainer, pl_module, f"step {step}: training ends without a checkpoint")
        self._written = time.monotonic()
        part = self.folder / f"{folder_name(step)}{PART}"
        failures: list[str] = []
        with _collect_failures(failures):
            if trainer.is_global_zero:
                _remove(part)
                part.mkdir(parents=True)
        hashes: dict[str, str] = {}
        if self._all_succeeded(failures):
            hashes = self._write(trainer, pl_module, part, failures)
        if self._all_succeeded(failures):
            hashes = _gather_hashes(hashes)
            with _collect_failures(failures):
                if trainer.is_global_zero:
                    samples, strategy = samples_seen(trainer), _strategy(trainer)
                    finalize_checkpoint(part, step, samples, strategy, trainer.world_size, metrics or {}, hashes)
        if self._all_succeeded(failures):
            self._saved = step
            if trainer.is_global_zero:
                self._prune()
        elif trainer.is_global_zero:
            _remove(part)
            last = Checkpoint.newest(self.folder)
            rank_zero_warn(
                f"step {step}: the checkpoint could not be written ({'; '.join(failures) or 'on another rank'}); training goes on, and "
                f"{f'{last.path} stays' if last else 'there is none yet'}; make room in {self.folder}"
            )

    def _check_finite(self, trainer: L.Trainer, pl_module: L.LightningModule, told: str) -> None:
        """Check weights and averages; all ranks call it.

        Raises:
            NonFiniteError: weights or averages are nan or infinite; on all ranks.
        """
        found = non_finite(pl_module)
        for averages in () if found else _ema_callbacks(trainer):
            average = averages.non_finite(pl_module)
            found = average and f"in the averages {average}"
        if found:
            raise NonFiniteError(f"{told}: {found}; {recovery_hint(self.folder, trainer.global_step)}")

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, part: Path, failures: list[str]) -> dict[str, str]:
        """Write state and averages into a part, and return the hashes of the files that this rank hashed meanwhile, by relative name."""
        writer = trainer.strategy if isinstance(trainer.strategy, ZeROStrategy) else self._file
        writer.failure = None
        trainer.save_checkpoint(part / STATE, weights_only=False)
        if writer.failure is not None:
            failures.append(str(writer.failure))
        for averages in _ema_callbacks(trainer):
            with _collect_failures(failures):
                averages.save(part, trainer, pl_module)
        return {Path(path).relative_to(part).as_posix(): digest for path, digest in writer.hashes.items()}

    def _all_succeeded(self, failures: list[str]) -> bool:
        return not max_on_host(len(failures))[0]

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        if self.monitor not in metrics:
            return False
        best = self._best_of(Checkpoint.all(self.folder))
        return best is None or self._score(metrics) > self._score(best.metrics)

    def _best_of(self, checkpoints: list[Checkpoint]) -> Checkpoint | None:
        return max((c for c in checkpoints if self.monitor in c.metrics), key=lambda c: self._score(c.metrics), default=None)

    def _score(self, metrics: Mapping[str, float]) -> float:
        value = metrics[str(self.monitor)]
        return -value if self.mode == "min" else value

    def _record_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        try:
            checkpoint = Checkpoint.at(self.folder / folder_name(step))
            update_metrics(checkpoint, {**checkpoint.metrics, **metrics})
            self._prune()
        except (OSError, ValueError) as error:
            rank_zero_warn(f"step {step}: the values of {', '.join(sorted(metrics))} could not be noted beside the checkpoint ({error})")

    def _prune(self) -> None:
        """Remove all checkpoints but the last ones, the best, and the last on schedule.

        Checkpoints by time or signal are at other steps in each run. The spike guard therefore rolls back only to those on schedule.
        """
        whole = Checkpoint.all(self.folder)
        best = self._best_of(whole)
        scheduled = [c for c in whole if self.every_n_train_steps and c.step % self.every_n_train_steps == 0]
        kept = {c.path for c in [*whole[-self.keep :], *scheduled[-1:], *([best] if best else [])]}
        for path in folders(self.folder):
            if path not in kept:
                _remove(path)


def samples_seen(trainer: L.Trainer) -> int:
    """Return the number of clips and images that all ranks have seen, including earlier starts of the training."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    start = next((c._start for c in trainer.callbacks if isinstance(c, Checkpoints)), None)  # type: ignore[attr-defined]
    before, since = (start.samples, start.step) if start else (0, 0)
    a_step = (data.videos_per_batch + data.images_per_batch) * trainer.accumulate_grad_batches
    return before + (trainer.global_step - since) * a_step


def _gather_hashes(own: dict[str, str]) -> dict[str, str]:
    """Return the hashes of all ranks' files; all ranks call it."""
    if not dist.is_initialized():
        return own
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return {name: digest for hashes in everyone for name, digest in hashes.items()}


def _is_stopping(trainer: L.Trainer) -> bool:
    """Return whether this step is the last one because a callback has asked for the end, trainer.max_time included."""
    steps, epochs = trainer.min_steps or 0, trainer.min_epochs or 0
    return bool(trainer.should_stop) and trainer.global_step >= steps and trainer.current_epoch >= epochs


def _ema_callbacks(trainer: L.Trainer) -> list[EMA]:
    return [callback for callback in trainer.callbacks if isinstance(callback, EMA)]  # type: ignore[attr-defined]


def _strategy(trainer: L.Trainer) -> Strategy:
    if isinstance(trainer.strategy, ZeROStrategy):
        names: dict[int, Strategy] = {1: "zero1", 2: "zero2", 3: "zero3"}
        return names[trainer.strategy.stage]
    return "single" if trainer.world_size == 1 else "ddp"


@contextmanager
def _collect_failures(failures: list[str]) -> Iterator[None]:
    """Collect the errors of the file system, so that all ranks learn of them before any of them goes on."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors wraps the system's error
        failures.append(str(error))


def _remove(folder: Path) -> None:
    if folder.is_symlink():  # a user has moved the checkpoint itself elsewhere; it stays there
        folder.unlink()
        return
    # The card goes first: without it a partly removed folder never counts as complete.
    (folder / CARD).unlink(missing_ok=True)
    if left := remove_own(folder, CHECKPOINT_FILES):
        rank_zero_warn(f"{describe_left(left)} is no file of a checkpoint, and stays")
