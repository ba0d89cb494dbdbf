"""Writes what training resumes from: every so often, when a scheduler announces the end, and never at the price of the training."""

import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import callbacks
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from safetensors import SafetensorError

from walt_pl.runs.checkpoint import (
    CARD,
    PART,
    STATE,
    Checkpoint,
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
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.strategies.shards import non_finite
from walt_pl.training.strategies.zero import ZeROStrategy

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""How schedulers announce the end."""


class StateFile(TorchCheckpointIO):
    """state.ckpt of strategies that keep one file."""

    failure: OSError | None = None
    """What went wrong with the last one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.failure = write_state(checkpoint, path)  # the writer of checkpoints asks for it

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_state(path)


class Checkpoints(callbacks.Checkpoint):
    """Keeps the last checkpoints and the best one (see walt_pl/runs/checkpoint.py for what is in them).

    On SIGTERM and SIGUSR1 a last one is written after the step that is being computed, and the program ends with 128 + the signal's
    number. A full disk costs a warning, not the training: what was written before stays. Weights or averages that are nan or infinite
    end the training in place of a checkpoint: no step leads back from them, and they would push the last good ones out.

    Args:
        folder: where they go; by default into the training folder of the stage.
        every_steps: optimiser steps between two; 0 for none.
        every_minutes: minutes between two; 0 for none.
        keep: how many of the last ones stay; the last one on schedule (`every_steps`) stays beside them.
        best: a value of the validation whose best checkpoint stays beside them; null for none.
        best_is: which value is the best.
    """

    def __init__(
        self,
        folder: str | None = None,
        every_steps: int = 100,
        every_minutes: float = 30.0,
        keep: int = 2,
        best: str | None = None,
        best_is: Literal["lowest", "highest"] = "lowest",
    ) -> None:
        for name, value, least in (("every_steps", every_steps, 0), ("every_minutes", every_minutes, 0), ("keep", keep, 1)):
            if value < least:
                raise ValueError(f"checkpoint.{name} must be at least {least}, got {value}")
        self.folder = Path(folder) if folder else Path("checkpoints")
        self.every_steps, self.every_minutes, self.keep = every_steps, every_minutes, keep
        self.best, self.best_is = best, best_is
        self._file = StateFile()
        self._start: Checkpoint | None = None
        self._saved = self._seen = self._signal = 0
        self._written = 0.0
        self._cut_short = False
        self._former: dict[signal.Signals, Any] = {}

    # ---- Where training starts -----------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Before anything is read: who reads it."""
        trainer.strategy.checkpoint_io = self._file
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).name == STATE:
            self._start = Checkpoint.at(Path(trainer.ckpt_path).parent)
        mine = self._start.step if self._start else None
        first = trainer.strategy.broadcast(mine)
        if first != mine:
            found = ["none" if step is None else folder_name(step) for step in (mine, first)]
            raise ValueError(
                f"checkpoint to go on from: rank {trainer.global_rank} finds {found[0]} and rank 0 {found[1]} in {self.folder}; all "
                "machines must see the same folder: put the run (--run) on a file system that they share"
            )
        if self._start is None:
            return
        for averages in _averages(trainer):
            averages.load(self._start.path)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved = self._seen = trainer.global_step
        self._written = time.monotonic()
        self._signal = 0
        # Lightning's own handler waits for other ranks in the middle of whatever was going on; ours is asked for after each step.
        self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        if self._start is not None:
            self._check_finite(trainer, pl_module, f"{self._start.path} is of no use")
        if trainer.is_global_zero:
            self._forget_the_future(trainer.global_step)

    def _forget_the_future(self, step: int) -> None:
        """What a training that starts at a step leaves behind: later checkpoints, which are another training's, and unfinished ones."""
        for path in [*folders(self.folder), *self.folder.glob(f"*{PART}")]:
            if path.suffix == PART or int(path.name[5:]) > step:
                rank_zero_info(f"removing {path}: training starts at step {step}")
                _remove(path)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._let_go()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._let_go()

    def _let_go(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    # ---- When ----------------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == self._seen:  # gradients are still being accumulated
            return
        self._seen = step
        due, told = self._agree(trainer, self._minutes_are_over(trainer), self._signal)
        if due or told or step == trainer.max_steps or (self.every_steps and step % self.every_steps == 0):
            self.save(trainer, pl_module)
        if told:
            self._stop(trainer, told)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """A long validation does not keep a scheduler waiting."""
        if self._former and self._agree(trainer, self._signal)[0]:
            self._cut_short = True
            raise StopIteration  # ends Lightning's loop over the batches; the next training step ends the training

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        cut_short, self._cut_short = self._cut_short, False
        if not self._former or cut_short:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if trainer.strategy.broadcast(self._saved != trainer.global_step and self._is_best(metrics)):
            self.save(trainer, pl_module, metrics)
        elif trainer.is_global_zero and self._saved == trainer.global_step:
            self._note_metrics(trainer.global_step, metrics)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where a limit of time or of epochs ended it: what is left to do is the artifact, and a kill now costs no step."""
        if self._saved != trainer.global_step:
            self.save(trainer, pl_module)

    def _minutes_are_over(self, trainer: L.Trainer) -> bool:
        return trainer.is_global_zero and 0 < self.every_minutes * 60 <= time.monotonic() - self._written

    def _agree(self, trainer: L.Trainer, *values: int) -> list[int]:
        """The largest of each value over all ranks: what one knows, all do."""
        numbers = torch.tensor(values, device=trainer.strategy.root_device)
        return trainer.strategy.reduce(numbers, reduce_op="max").tolist()

    def _stop(self, trainer: L.Trainer, told: int) -> None:
        name = signal.Signals(told).name
        last = Checkpoint.newest(self.folder)
        where = f"everything is in {last.path}" if last and last.step == trainer.global_step else "it could not be saved"
        rank_zero_info(f"stopped by {name} after step {trainer.global_step}, {where}; the same command goes on")
        # The others end well: the launcher takes a rank that does not for a crash, and would kill rank zero in its last words.
        raise SystemExit(128 + told if trainer.is_global_zero else 0)

    # ---- What ----------------------------------------------------------------------------------------------------------

    def save(self, trainer: L.Trainer, pl_module: L.LightningModule, metrics: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint of this step; all ranks call it. A failure is a warning, and the part is removed.

        Raises:
            NonFiniteError: weights or averages are nan or infinite.
        """
        step = trainer.global_step
        if self._saved == step:
            return
        self._check_finite(trainer, pl_module, f"step {step}: training ends without a checkpoint")
        self._written = time.monotonic()
        part = self.folder / f"{folder_name(step)}{PART}"
        failures: list[str] = []
        with _kept(failures):
            if trainer.is_global_zero:
                _remove(part)
                part.mkdir(parents=True)
        if self._all_well(trainer, failures):
            self._write(trainer, pl_module, part, failures)
        if self._all_well(trainer, failures):
            with _kept(failures):
                if trainer.is_global_zero:
                    finalize_checkpoint(part, step, samples_seen(trainer), _strategy(trainer), trainer.world_size, metrics or {})
        if self._all_well(trainer, failures):
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
        """Raises NonFiniteError on all ranks where weights or averages are nan or infinite."""
        found = non_finite(pl_module)
        for averages in () if found else _averages(trainer):
            average = averages.non_finite(pl_module)
            found = average and f"in the averages {average}"
        if found:
            raise NonFiniteError(f"{told}: {found}; {recovery_hint(self.folder, trainer.global_step)}")

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, part: Path, failures: list[str]) -> None:
        writer = trainer.strategy if isinstance(trainer.strategy, ZeROStrategy) else self._file
        writer.failure = None
        trainer.save_checkpoint(part / STATE, weights_only=False)
        if writer.failure is not None:
            failures.append(str(writer.failure))
        for averages in _averages(trainer):
            with _kept(failures):
                averages.save(part, trainer, pl_module)

    def _all_well(self, trainer: L.Trainer, failures: list[str]) -> bool:
        return not self._agree(trainer, len(failures))[0]

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        if self.best not in metrics:
            return False
        best = self._best_of(Checkpoint.all(self.folder))
        return best is None or self._score(metrics) > self._score(best.metrics)

    def _best_of(self, checkpoints: list[Checkpoint]) -> Checkpoint | None:
        return max((c for c in checkpoints if self.best in c.metrics), key=lambda c: self._score(c.metrics), default=None)

    def _score(self, metrics: Mapping[str, float]) -> float:
        value = metrics[str(self.best)]
        return -value if self.best_is == "lowest" else value

    def _note_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        try:
            update_metrics(Checkpoint.at(self.folder / folder_name(step)), metrics)
            self._prune()
        except (OSError, ValueError) as error:
            rank_zero_warn(f"step {step}: the validation's values could not be noted beside the checkpoint ({error})")

    def _prune(self) -> None:
        """Remove all but the last ones, the best, and the last that was written on schedule: those of clocks and signals are not at the
        same step twice, so the guard rolls back to none of them."""
        whole = Checkpoint.all(self.folder)
        best = self._best_of(whole)
        scheduled = [c for c in whole if self.every_steps and c.step % self.every_steps == 0]
        kept = {c.path for c in [*whole[-self.keep :], *scheduled[-1:], *([best] if best else [])]}
        for path in folders(self.folder):
            if path not in kept:
                _remove(path)


def samples_seen(trainer: L.Trainer) -> int:
    """Clips and images that all ranks together have seen, also in the starts before this one."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    start = next((c._start for c in trainer.callbacks if isinstance(c, Checkpoints)), None)  # type: ignore[attr-defined]
    before, since = (start.samples, start.step) if start else (0, 0)
    a_step = (data.videos_per_batch + data.images_per_batch) * trainer.accumulate_grad_batches
    return before + (trainer.global_step - since) * a_step


def _averages(trainer: L.Trainer) -> list[EMA]:
    return [callback for callback in trainer.callbacks if isinstance(callback, EMA)]  # type: ignore[attr-defined]


def _strategy(trainer: L.Trainer) -> Strategy:
    if isinstance(trainer.strategy, ZeROStrategy):
        names: dict[int, Strategy] = {1: "zero1", 2: "zero2", 3: "zero3"}
        return names[trainer.strategy.stage]
    return "single" if trainer.world_size == 1 else "ddp"


@contextmanager
def _kept(failures: list[str]) -> Iterator[None]:
    """What the file system refuses is noted, so that all ranks can hear of it before any of them goes on."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the library of the averages wraps what the system said
        failures.append(str(error))


def _remove(folder: Path) -> None:
    if folder.is_symlink():  # the checkpoint itself was put elsewhere by somebody, and stays
        folder.unlink()
        return
    # Without its card, a folder that is removed only in part is never taken for a whole one.
    (folder / CARD).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
