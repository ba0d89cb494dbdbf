"""Detect optimiser steps with a spike in loss or gradient norm, skip them, and record each incident."""

import json
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from walt_pl.blocks.transfer import HostCopy
from walt_pl.data.batch import JointBatch
from walt_pl.files import write_whole
from walt_pl.runs.checkpoint import Checkpoint, CheckpointError
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.spike_detector import FLOOR, SpikeDetector
from walt_pl.training.skipped_step import skip_where, skips_on_device
from walt_pl.training.strategies.gradients import drop_gradients, gradient_norms

Policy = Literal["skip", "rollback", "off"]


class Diverged(ValueError):
    """A training diverges again and again. The message says what to change."""


class BatchFiles(NamedTuple):
    """The facts of a batch that an incident names."""

    global_batch_index: Tensor
    paths: list[str]
    weight: Tensor


@dataclass(frozen=True)
class StepReport:
    """The decision about a step that the device has made, or will make."""

    step: int
    values: HostCopy
    """Loss, gradient norm, this rank's loss, and 1 for an incident: float32 [4]."""
    norms: dict[str, Tensor]
    files: list[BatchFiles]
    discriminator: bool


class SpikeGuard(L.Callback):
    """Check before each optimiser step that loss and gradient norm are finite and near their recent values.

    The guard compares logarithms: the difference to the median of the last steps, in units of their spread. The spread is 1.4826 times the
    median absolute deviation, which single spikes do not change. The loss is the mean over ranks, and the norm is that of all gradients
    together, so every rank decides alike. A skipped step counts as a step: the schedule, the data and the noise go on, weights and moments
    stay. A rollback restores weights, moments and the average from the newest checkpoint on schedule. Training then goes on with the next
    data: the failed step would fail again.

    Each incident is written to incidents/ in the training folder: the step, the loss and gradient norm, the files and losses of every rank,
    and the gradient norm of each layer. The autoencoder's discriminator is checked for nan and infinite values only. None of its values
    counts as a spike, since its penalty comes in some steps only.

    Where the optimiser can skip a step on the device (torch's fused Adam and AdamW), the host never waits for the decision: it reads it at
    the end of the next step, and before a checkpoint is written. Incident files, rollback and the end by too many incidents then come a
    step later, on every rank alike. Under a loss scale (precision 16-mixed) the guard is off: there the
    scaler skips steps.

    Args:
        policy: action at a bad step: skip it, or also roll the training back; off checks nothing.
        deviations: number of deviations above the median that counts as a spike.
        window: number of steps for the median. A quarter of them must be recorded before a value can count as a spike.
        max_incidents: number of incidents within a window that are accepted; one more ends the training.

    Raises:
        ValueError: `deviations` is below 1, `window` below 4, or `max_incidents` negative.
    """

    def __init__(self, policy: Policy = "skip", deviations: float = 8.0, window: int = 128, max_incidents: int = 10) -> None:
        for name, value, least in (("deviations", deviations, 1), ("window", window, 4), ("max_incidents", max_incidents, 0)):
            if value < least:
                raise ValueError(f"guard.{name} must be at least {least}, got {value}")
        self.policy = policy
        self.deviations = deviations
        self.window = window
        self.max_incidents = max_incidents
        self._history: dict[str, deque[float]] = {name: deque(maxlen=window) for name in ("loss", "gradient norm")}
        self._incidents: list[int] = []
        self._losses: list[Tensor] = []
        self._files: list[BatchFiles] = []
        self._step = 0
        self._bad = False
        self._detector: SpikeDetector | None = None
        self._bad_on_device: Tensor | None = None
        self._reports: list[StepReport] = []
        self._rollback_due: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if str(trainer.precision).startswith("16") and self.policy != "off":
            rank_zero_warn(f"the guard is off: with precision {trainer.precision} the loss scaler skips steps that are not numbers")
            self.policy = "off"
        for writer in (callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)):  # type: ignore[attr-defined]
            writer.before_save.append(lambda: self._read_reports(trainer))

    # ---- Losses and batches of a step ----------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._reset_step(trainer.global_step)
        self._start_detector(trainer, pl_module)

    def _start_detector(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Decide on the device if every optimiser can skip a step there, else on the host: the one place that chooses."""
        if self.policy != "off" and _engine(trainer) is None and all(map(skips_on_device, trainer.optimizers)):
            self._detector = SpikeDetector(self._history.values(), self.window, self.deviations, pl_module.device)

    def _reset_step(self, step: int) -> None:
        self._losses = []
        self._files = []
        self._step = step
        self._bad = False

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: JointBatch, batch_idx: int) -> None:
        if trainer.global_step == getattr(pl_module, "adversarial_start", None):  # from this step on the loss has further terms
            self._read_reports(trainer)
            self._history["loss"].clear()
            self._history["gradient norm"].clear()
            self._start_detector(trainer, pl_module)
        self._files.append(BatchFiles(batch.global_batch_index, batch.paths, batch.weight))

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach().float())

    # ---- The decision --------------------------------------------------------------------------------------------------

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        # DeepSpeed's step is called after every batch, also while gradients are still being accumulated.
        if self.policy == "off" or trainer.fit_loop._should_accumulate():
            return
        discriminator = len(trainer.optimizers) > 1 and optimizer is trainer.optimizers[1]
        own, self._losses = torch.stack(self._losses).sum(), []
        if self._detector is not None:
            self._decide_on_device(trainer, pl_module, optimizer, own, discriminator)
            return
        if discriminator and self._bad:  # this batch has been reported already
            drop_gradients(pl_module, _engine(trainer))
            return
        norms, values = _loss_and_norm(trainer, pl_module, own)
        seen = dict(zip(self._history, values.tolist(), strict=True))
        if why := self._reasons(seen, discriminator):
            drop_gradients(pl_module, _engine(trainer))
            self._bad = True
            self._report(trainer, self._step, why, seen, float(own), norms, self._files)

    def _decide_on_device(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any, own: Tensor, discriminator: bool) -> None:
        """Let the device skip the step if it is bad, and read later whether it was."""
        assert self._detector is not None
        norms, values = _loss_and_norm(trainer, pl_module, own)
        if discriminator:
            assert self._bad_on_device is not None
            incident = ~values.isfinite().all() & ~self._bad_on_device  # a bad batch is reported once
            bad = incident | self._bad_on_device
        else:
            bad = incident = self._detector.judge(values)
        self._bad_on_device = bad
        skip_where(optimizer, bad)
        report = HostCopy(torch.cat([values, torch.stack([own, incident.float()])]))
        self._reports.append(StepReport(self._step, report, norms, self._files, discriminator))

    def _read_reports(self, trainer: L.Trainer, before: int | None = None) -> None:
        """Read the device's decisions about all steps, or those before step `before`, and report incidents; all ranks call it."""
        while self._reports and (before is None or self._reports[0].step < before):
            report = self._reports.pop(0)
            *values, own, incident = report.values.read().tolist()
            seen = dict(zip(self._history, values, strict=True))
            why = self._reasons(seen, report.discriminator)
            if incident:
                if self.policy == "rollback" and self._rollback_due is None:  # the first of two is due first
                    self._rollback_due = report.step
                # The device's logarithm may differ in its last bit.
                why = why or [f"the loss or the gradient norm is at the limit of {self.deviations:g} deviations"]
                self._report(trainer, report.step, why, seen, own, report.norms, report.files)

    def _reasons(self, seen: dict[str, float], discriminator: bool) -> list[str]:
        """Return the reasons why a step is bad, and record its values."""
        if discriminator:
            return [f"the discriminator's {name} is {value}" for name, value in seen.items() if not math.isfinite(value)]
        why = [reason for name, value in seen.items() if (reason := self._judge(name, value))]
        for name, value in seen.items():
            if math.isfinite(value):
                # Spikes are recorded too: the median is robust to them.
                self._history[name].append(value)
        return why

    def _judge(self, name: str, value: float) -> str | None:
        """Return the reason why a value is bad; None if it is not."""
        if not math.isfinite(value):
            return f"the {name} is {value}"
        known = self._history[name]
        if len(known) < self.window // 4:
            return None
        logarithms = [_log(one) for one in known]
        middle = median(logarithms)
        spread = max(1.4826 * median(abs(one - middle) for one in logarithms), FLOOR)
        z = (_log(value) - middle) / spread
        return f"the {name} is {value:.4g}, {z:.1f} deviations above the median {math.exp(middle):.4g}" if z > self.deviations else None

    def _report(
        self,
        trainer: L.Trainer,
        step: int,
        why: list[str],
        seen: dict[str, float],
        own: float,
        norms: dict[str, Tensor],
        files: list[BatchFiles],
    ) -> None:
        self._incidents = [*(one for one in self._incidents if one > step - self.window), step]
        over = len(self._incidents) > self.max_incidents
        action = "stopped" if over else {"skip": "skipped", "rollback": "rolled back"}[self.policy]
        path = Path(trainer.default_root_dir) / "incidents" / f"step={step:08d}.json"
        ranks = _gather_ranks({"loss": own, "files": [_describe_batch(batch) for batch in files]})
        if trainer.is_global_zero:
            layers = dict(
                sorted(_norms_by_layer(norms).items(), key=lambda item: item[1] if item[1] == item[1] else math.inf, reverse=True)
            )
            recent = {f"{name} before": list(known)[-10:] for name, known in self._history.items()}
            record = {"step": step, "why": why, "action": action, **seen, "ranks": ranks, "gradient norm by layer": layers, **recent}
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, (json.dumps(_to_plain(record), indent=2) + "\n").encode())
            except OSError as error:
                rank_zero_warn(f"{path} could not be written ({error})")
        said = f"step {step}: {' and '.join(why)}; {action}, see {path}"
        if over:
            raise Diverged(
                f"{said}: {len(self._incidents)} incidents within {self.window} steps, spike_guard.max_incidents is {self.max_incidents}. "
                "The same command goes on from the last checkpoint and meets the same batches: lower model.optimizer.init_args.lr or "
                "model.gradient_clip_val, look at the files named there, or raise spike_guard.deviations where the steps were sound"
            )
        rank_zero_warn(said)

    # ---- Rollback ------------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        if self._detector is not None:
            is_last = trainer.global_step == trainer.max_steps or trainer.should_stop or trainer.is_last_batch
            self._read_reports(trainer, None if is_last else self._step)
        # A report that was read early, for a checkpoint, changes nothing: else a training would depend on when it was stopped.
        is_due = self._rollback_due is not None and self._rollback_due < self._step
        if is_due or (self._bad and self.policy == "rollback"):
            self._rollback_due = None
            self._roll_back(trainer, pl_module)
        self._reset_step(trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._read_reports(trainer)

    def _roll_back(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        good = trainer.strategy.broadcast(_last_good(trainer) if trainer.is_global_zero else None)
        if good is None:
            rank_zero_warn(f"step {trainer.global_step}: there is no checkpoint to roll back to yet; the step was skipped")
            return
        strategy, groups = trainer.strategy, [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rates = [group["lr"] for group in groups]
        state = strategy.load_checkpoint(good.state, weights_only=True)
        strategy.load_model_state_dict(state, strict=pl_module.strict_loading)
        strategy.load_optimizer_state_dict(state)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate  # the checkpoint must not reset the schedule
        for averages in (callback for callback in trainer.callbacks if isinstance(callback, EMA)):  # type: ignore[attr-defined]
            averages.load(good.path)
            averages.on_train_start(trainer, pl_module)
        rank_zero_warn(f"step {trainer.global_step}: rolled back to {good.path}")

    # ---- On disk -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        due = {} if self._rollback_due is None else {"rollback_due": self._rollback_due}
        return {"history": {name: list(known) for name, known in self._history.items()}, "incidents": list(self._incidents), **due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, known in state_dict["history"].items():
            self._history[name] = deque(known, maxlen=self.window)
        self._incidents = list(state_dict["incidents"])
        self._rollback_due = state_dict.get("rollback_due") if self.policy == "rollback" else None


def _log(value: float) -> float:
    return math.log(max(value, 1e-12))


def _loss_and_norm(trainer: L.Trainer, pl_module: L.LightningModule, own: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the gradient norm of each weight, and loss and norm over all ranks and weights, [2]; all ranks call it."""
    norms = gradient_norms(pl_module)
    loss = trainer.strategy.reduce(own.clone(), reduce_op="mean")  # reduce writes into its argument
    return norms, torch.stack([torch.as_tensor(loss), torch.stack(list(norms.values())).norm()])


def _engine(trainer: L.Trainer) -> Any:
    return trainer.strategy.deepspeed_engine if isinstance(trainer.strategy, DeepSpeedStrategy) else None


def _last_good(trainer: L.Trainer) -> Checkpoint | None:
    """Return the newest checkpoint on schedule with the bytes that were written; damaged ones are skipped with a warning.

    The steps of other checkpoints depend on clocks and signals.
    """
    writer = next((c for c in trainer.callbacks if isinstance(c, Checkpoints)), None)  # type: ignore[attr-defined]
    if writer is None:
        return None
    every = writer.every_n_train_steps or 1
    written = [one for one in Checkpoint.all(writer.folder) if one.step < trainer.global_step and one.step % every == 0]
    for found in reversed(written):
        try:
            return Checkpoint.at(found.path, hashed=True)
        except CheckpointError as error:
            rank_zero_warn(f"skipped: {error}")
    return None


def _gather_ranks(own: dict[str, Any]) -> list[dict[str, Any]]:
    """Gather the dictionary of every rank on all ranks."""
    if not dist.is_initialized():
        return [own]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone


def _describe_batch(batch: BatchFiles) -> list[dict[str, Any]]:
    rows = zip(batch.global_batch_index.tolist(), batch.paths, batch.weight.tolist(), strict=True)
    return [{"global_batch_index": index, "path": path, "read": bool(weight)} for index, path, weight in rows]


def _norms_by_layer(norms: dict[str, Tensor]) -> dict[str, float]:
    """Return the norm of all gradients of each layer."""
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        layer = name.rpartition(".")[0]
        squares[layer] = squares.get(layer, 0.0) + float(norm) ** 2
    return {layer: math.sqrt(square) for layer, square in squares.items()}


def _to_plain(value: Any) -> Any:
    """Convert nan and infinite values to text, since JSON has no form for them."""
    if isinstance(value, dict):
        return {key: _to_plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_to_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
