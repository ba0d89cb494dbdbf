"""Measure metrics during a training, with the averaged weights, on all ranks together."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from walt_pl.metrics.catalog import choose_metrics
from walt_pl.metrics.extractors.choice import ExtractorOptions, choose_extractors
from walt_pl.metrics.metric import Metric
from walt_pl.metrics.protocol import EvaluationProtocol
from walt_pl.runs.checkpoint import STATE, Checkpoint
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.ema import find_averages
from walt_pl.training.callbacks.throughput import Throughput
from walt_pl.training.measurement import Measured, MeasuredStage, Measurement, MeasurementError, MeasurementStopped

PREFIX = "metrics/"
"""Beginning of the names in TensorBoard, in checkpoints and of `checkpoint.monitor`."""


class Metrics(L.Callback):
    """Measure metrics every so many steps on few validation clips, with the averaged weights.

    An autoencoder reconstructs the clips. A base model samples a clip for the caption or label of each, a super-resolution model from the
    low-resolution latents of each. Real clips are their pixels as the index has them, view 0 (frame 0, the centre). Noise depends on
    model.seed and the clip alone, steps and guidance are those of the previews. Figures of so few clips compare with each other only, not
    with published ones: `walt evaluate` measures those.

    It runs after the step's checkpoint was written, so that a kill costs no step; the next start measures that step again. The training
    is not disturbed: with and without this callback it has equal weights to the last bit. A measurement that fails warns; it never stops
    training.

    Args:
        every_steps: optimiser steps between two measurements; 0 for none.
        samples: number of clips, over all ranks: the first ones of the split val.
        names: metrics, such as [fvd] or [psnr, ssim].
        frames: first frames of each clip that are measured, such as 16 of 17; null for all.
        extractor: file of the extractor that the metrics need, or a file for each kind of extractor.
        extractor_sha256: hash of the file, or of each kind's file, if it is not the known one.
        extractor_kind: kind of extractor in place of the metrics' own, such as videomae.

    Raises:
        ValueError: a number is out of range, or there is no metric of a name.
    """

    def __init__(
        self,
        every_steps: int = 0,
        samples: int = 16,
        names: tuple[str, ...] = (),
        frames: int | None = None,
        extractor: str | dict[str, str] | None = None,
        extractor_sha256: str | dict[str, str] | None = None,
        extractor_kind: str | None = None,
    ) -> None:
        for name, value, least in (
            ("every_steps", every_steps, 0),
            ("samples", samples, 1),
            ("frames", 1 if frames is None else frames, 1),
        ):
            if value < least:
                raise ValueError(f"metrics.{name} must be at least {least}, got {value}")
        self.every_steps = every_steps
        self.samples = samples
        self.frames = frames
        self.options = ExtractorOptions(extractor, extractor_kind, extractor_sha256)
        self.metrics = chosen_metrics(names) if every_steps else []
        self._measurement: Measurement | None = None
        self._start: Checkpoint | None = None
        self._seen = 0
        self._step = 0
        self._values: dict[str, float] = {}

    # ---- Start of the training -----------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the clips and load the extractors, so that a missing file is an error before the first step.

        Raises:
            ValueError: there are too few clips or frames, or an extractor is missing or has another hash.
        """
        if not self.every_steps or stage != "fit":
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        there_are = data.clip_transform.frames if data.videos_per_batch else 1
        frames = self.frames or there_are
        if frames > there_are:
            raise ValueError(f"metrics.frames is {frames}, but a clip has {there_are} (data.frames): set it to {there_are} or less")
        protocol = EvaluationProtocol("val", self.samples, self.samples, frames=frames, start="first", paired=True)
        with isolate_rng(include_cuda=False):  # networks draw their first weights
            extractors = choose_extractors(self.metrics, self.options, protocol, frames == 1, str(trainer.strategy.root_device))
        self._measurement = Measurement(self.metrics, extractors, data.measured_clips(self.samples), frames)
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).name == STATE:
            self._start = Checkpoint.at(Path(trainer.ckpt_path).parent)
            recorded = {name.removeprefix(PREFIX): value for name, value in self._start.metrics.items() if name.startswith(PREFIX)}
            if recorded:
                self._step, self._values = self._start.step, recorded

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the step of the checkpoint if a stop has cut that off."""
        step = self._seen = trainer.global_step
        due = bool(step and self._start and self.every_steps and step % self.every_steps == 0 and self._step < step)
        if trainer.strategy.broadcast(due):
            self._measure(trainer, pl_module)

    # ---- Every so many steps -------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if not self.every_steps or step == self._seen:  # or gradients are still being accumulated
            return
        self._seen = step
        if step % self.every_steps == 0:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure this step. Its time does not count as training, also where it fails; all ranks call it."""
        try:
            self._measure_step(trainer, pl_module)
        finally:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Throughput):
                    callback.reset()

    def _measure_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure, log the values, and record them with the step's checkpoint."""
        assert self._measurement is not None
        began, step = time.monotonic(), trainer.global_step
        writers = [callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)]  # type: ignore[attr-defined]
        averages = find_averages(trainer)
        try:
            # The GPU's random state needs no copy: `Reseed` sets it before each step.
            with isolate_rng(include_cuda=False), averages.swap_weights(pl_module), _eval_mode(pl_module):
                measured = self._measurement.measure(
                    trainer, cast(MeasuredStage, pl_module), lambda: any(writer.is_stopping() for writer in writers)
                )
        except MeasurementStopped:  # the next start measures this step
            for writer in writers:
                writer.stop_if_asked(trainer, pl_module)
            return
        except MeasurementError as error:
            rank_zero_warn(f"step {step}: the metrics could not be measured ({error}); training goes on")
            return
        self._tell(step, measured, time.monotonic() - began)
        values = {name: value for name, value in measured.values.items() if math.isfinite(value)}
        self._step, self._values = step, values
        named = {f"{PREFIX}{name}": value for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=step)
        for writer in writers:
            writer.record(trainer, pl_module, named)

    def _tell(self, step: int, measured: Measured, seconds: float) -> None:
        """Print the values and the time that they took."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in measured.values.items()) or "none"
        left_out = f", {measured.unreadable} of them unreadable" if measured.unreadable else ""
        rank_zero_info(f"metrics of step {step}: {shown} ({self.samples} clips{left_out}; {seconds:.1f} s)")
        if measured.problems:
            rank_zero_warn(f"step {step}: no value of {'; '.join(measured.problems)}; training goes on")

    # ---- On disk -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "values": dict(self._values)} if self._values else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("step", 0) > self._step:
            self._step, self._values = state_dict["step"], dict(state_dict["values"])

    def card_entries(self, stage: MeasuredStage, averaged: bool) -> dict[str, Any]:
        """Return the last values and how they were measured, for the artifact's card; nothing if there are none.

        Args:
            stage: the trained stage.
            averaged: whether the weights were averages.
        """
        if self._measurement is None or not self._values:
            return {}
        protocol = {
            "samples": self.samples,
            "frames": self._measurement.frames,
            "split": "val",
            "real": "pixels of the index, view 0",
            "weights": "averaged" if averaged else "raw",
            "extractors": [extractor.identity() for extractor in self._measurement.extractors],
            **stage.measured_config(),
        }
        return {"in_training": {"step": self._step, "values": self._values, "protocol": protocol}}


def chosen_metrics(names: tuple[str, ...]) -> list[type[Metric]]:
    """Return the metrics of names.

    Raises:
        ValueError: there is no metric of a name, or no name at all.
    """
    if not names:
        raise ValueError("metrics.every_steps is set, but metrics.names is empty: add --metrics.names '[psnr]', or --metrics.every_steps 0")
    return choose_metrics(",".join(names))


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode inside the context."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
