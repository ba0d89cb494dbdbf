"""Frame prediction against the true continuation of held-out windows: of a model, and of baselines without one."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from walt_pl.evaluation.conditions import RealConditions
from walt_pl.evaluation.reconstruction_source import ReconstructionSource
from walt_pl.evaluation.rows import MeasureOptions, Side, compute_rows
from walt_pl.evaluation.run_source import RunSource
from walt_pl.evaluation.source import ClipDraw, ClipSource, Drawn, ReadClips
from walt_pl.evaluation.window_source import WindowSource
from walt_pl.metrics.extractors.configured import ExtractorSettings
from walt_pl.metrics.extractors.pixels import Pixels
from walt_pl.metrics.protocol import EvaluationProtocol
from walt_pl.sampling.cascade import Cascade, SamplingConfig

MODEL, REPEATED, LINEAR, AUTOENCODER = "model", "repeated frame", "linear extrapolation", "autoencoder of the true frames"
"""Names of the predictions. The last one is no prediction: it is the most that a perfect model of these latents reaches."""


class NewFrames(ClipSource):
    """Clips of a source that knows their originals, both without the given frames.

    Args:
        source: of clips that begin with the given frames.
        given: number of given frames.
    """

    def __init__(self, source: ClipSource, given: int) -> None:
        self.source = source
        self.given = given

    def __len__(self) -> int:
        return len(self.source)

    def facts(self) -> dict[str, Any]:
        """Return the facts of the source, and the number of frames that are not measured."""
        return {"kind": "new frames", "given": self.given, "of": self.source.facts()}

    def lengths(self) -> Sequence[int]:
        """Return the new frames of each clip."""
        return [length - self.given for length in self.source.lengths()]

    def names(self) -> Sequence[str]:
        return self.source.names()

    def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: tuple[int, int] | None) -> ReadClips:
        """Read clips of `frames` new frames."""
        read = self.source.read(draws, self.given + frames, stride, size)
        assert read.originals is not None  # sources of predictions know them
        clips, originals = ([None if clip is None else clip[self.given :] for clip in side] for side in (read.clips, read.originals))
        return ReadClips(clips, read.captions, read.labels, originals, read.failures)


class Extrapolation(ClipSource):
    """Predictions that follow from the last given frames by a formula, with the true clips.

    Args:
        real: the true clips.
        given: number of given frames.
    """

    def __init__(self, real: ClipSource, given: int) -> None:
        self.real = real
        self.given = given

    @abstractmethod
    def predict(self, given: Tensor, frames: int) -> Tensor:
        """Return the next frames, uint8 [frames h w 3], after the given ones, uint8 [t h w 3]."""

    def __len__(self) -> int:
        return len(self.real)

    def facts(self) -> dict[str, Any]:
        """Return the formula by its name, the number of given frames, and the facts of the true clips."""
        return {"kind": type(self).__name__, "given": self.given, "of": self.real.facts()}

    def lengths(self) -> Sequence[int]:
        return self.real.lengths()

    def names(self) -> Sequence[str]:
        return self.real.names()

    def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: tuple[int, int] | None) -> ReadClips:
        """Read clips of `frames` frames, the given ones and then the predicted ones."""
        read = self.real.read(draws, frames, stride, size)
        clips = [None if clip is None else self._extend(clip[: self.given], len(clip) - self.given) for clip in read.clips]
        return ReadClips(clips, read.captions, read.labels, read.clips, read.failures)

    def _extend(self, given: Tensor, frames: int) -> Tensor:
        return torch.cat([given, self.predict(given, frames)])


class RepeatedFrame(Extrapolation):
    """Repeat the last given frame."""

    def predict(self, given: Tensor, frames: int) -> Tensor:
        return given[-1:].expand(frames, -1, -1, -1)


class LinearExtrapolation(Extrapolation):
    """Continue the last two given frames along a straight line, each value of a pixel by itself, between 0 and 255."""

    def predict(self, given: Tensor, frames: int) -> Tensor:
        before, last = given[-2:].int()
        return (last + torch.arange(1, frames + 1)[:, None, None, None] * (last - before)).clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class MeasuredPrediction:
    """Figures of one prediction of the new frames of every window."""

    stage: str
    """Stage of the cascade whose clips were measured, or at whose size."""
    size: tuple[int, int]
    """Rows and columns in pixels."""
    given: int
    """Given frames."""
    prediction: str
    """Name of the prediction."""
    rows: dict[str, Tensor]
    """PSNR in dB and SSIM of each window that could be read, float32 [n]; nothing where the prediction is not defined."""
    windows: list[ClipDraw]
    """These windows: the position of the video in its split, and the first frame."""


class PredictionMeasurement:
    """Windows of held-out videos, and predictions of their last frames.

    Args:
        run: folder of the run.
        cascade: with a base model of frame prediction.
        windows: of held-out videos, as long as a clip of the model.
        sampling: settings of the samples.
        seed: of the first sample's noise.
    """

    def __init__(self, run: Path, cascade: Cascade, windows: WindowSource, sampling: SamplingConfig, seed: int = 0) -> None:
        self.run = run
        self.cascade = cascade
        self.windows = windows
        self.sampling = sampling
        self.seed = seed
        self.draws = [ClipDraw(number, 0) for number in range(len(windows))]

    def given_frames(self) -> list[int]:
        """Return the numbers of frames that the base model was trained to go on from, the largest first."""
        trained = self.cascade.samplers[self.cascade.base].config.context_frames
        return sorted((self.cascade.overlap if count == 2 else 1 for count in trained), reverse=True)

    def sources(self, stage: str, given: int) -> dict[str, ClipSource | None]:
        """Return the predictions of a stage by name: whole clips. None stands for one that is not defined for so few frames."""
        part = _end_with(self.cascade, stage)
        conditions = RealConditions(self.windows, Drawn(self.draws), context_frames=given)
        return {
            MODEL: RunSource(str(self.run), part, self.sampling, conditions, len(self.windows), self.seed),
            REPEATED: RepeatedFrame(self.windows, given),
            LINEAR: LinearExtrapolation(self.windows, given) if given > 1 else None,
            AUTOENCODER: ReconstructionSource(str(self.run), part, self.windows, part.pixels(stage)),
        }

    def measure(self, options: MeasureOptions) -> list[MeasuredPrediction]:
        """Measure every prediction of every stage. A measurement that was stopped goes on where it was.

        Raises:
            ValueError: no window can be read, or a stage was not trained for this.
            OSError: rows cannot be written.
            ConnectionError: another process has ended.
        """
        return [
            self._measure(stage, given, name, source, options)
            for given in self.given_frames()
            for stage in self.cascade.stages
            for name, source in self.sources(stage, given).items()
        ]

    def _measure(self, stage: str, given: int, name: str, source: ClipSource | None, options: MeasureOptions) -> MeasuredPrediction:
        size = self.cascade.pixels(stage)
        if source is None:
            return MeasuredPrediction(stage, size, given, name, {}, [])
        frames = self.cascade.clip_frames - given
        protocol = EvaluationProtocol(
            self.windows.split, len(self.windows), len(self.windows), frames=frames, start="first", size=size, paired=True
        )
        side = Side("predicted", NewFrames(source, given), Drawn(self.draws))
        (stored,) = compute_rows(side, [Pixels(ExtractorSettings(protocol, device=options.device))], protocol, options.work, options)
        windows = [window for window, kept in zip(self.windows.windows, stored.kept.tolist(), strict=True) if kept]
        return MeasuredPrediction(stage, size, given, name, {key: rows[stored.kept, 0] for key, rows in stored.rows.items()}, windows)


def _end_with(cascade: Cascade, stage: str) -> Cascade:
    """Return a cascade that ends with a stage, of the same loaded models."""
    part = copy.copy(cascade)
    part.stages = cascade.stages[: cascade.stages.index(stage) + 1]
    part.artifacts = {name: cascade.artifacts[name] for name in part.stages}
    part.samplers = {name: cascade.samplers[name] for name in part.stages}
    return part
