"""Measure metrics of a training on its validation clips, all ranks together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from walt_pl.data.batch import JointBatch, images_as_videos
from walt_pl.data.measured_clips import MeasuredClips
from walt_pl.media.contact_sheet import to_uint8
from walt_pl.metrics.extractor import ClipBatch, Extractor
from walt_pl.metrics.metric import Metric


class MeasuredStage(Protocol):
    """Methods of a stage that a measurement needs."""

    def measured_clips(self, batch: JointBatch) -> Tensor:
        """Return a clip for each video of a batch, pixels [b 3 t h w] in -1..1. It consumes no random state."""
        ...

    def measured_config(self) -> dict[str, Any]:
        """Return the settings of `measured_clips`, for the artifact's card."""
        ...


class MeasurementError(RuntimeError):
    """A measurement failed, on all ranks alike."""


class MeasurementStopped(MeasurementError):
    """The training is asked to end, so that the measurement is not finished."""


@dataclass(frozen=True)
class Measured:
    """Result of a measurement."""

    values: dict[str, float]
    """Metric name -> figure."""
    problems: list[str]
    """Reason for each metric without a figure."""
    unreadable: int
    """Clips that count for nothing, on either side."""


@dataclass(frozen=True)
class _BlockRows:
    generated: dict[str, Tensor] = field(default_factory=dict)
    real: dict[str, Tensor] = field(default_factory=dict)
    unreadable: int = 0


@dataclass
class Measurement:
    """Metrics, their extractors, and the clips.

    Rank r measures the blocks r, r + ranks, and so on. A rank that has no block left in the last round measures one of the others' and
    drops it, so that the ranks of a sharded model run together. An error of one rank is told to the others between the passes of the
    model. Within a pass of a sharded model it cannot be told: the others wait for that rank.

    Real clips are the pixels of the index, also where the stage reads latents. Their rows are computed once.
    """

    metrics: Sequence[type[Metric]]
    extractors: Sequence[Extractor]
    clips: MeasuredClips
    frames: int
    """First frames of each clip that are measured."""
    _real: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def measure(self, trainer: L.Trainer, stage: MeasuredStage, is_stopping: Callable[[], bool]) -> Measured:
        """Generate the clips, and compute the metrics; all ranks call it.

        Args:
            trainer: of the training.
            stage: with the weights to measure, in eval mode.
            is_stopping: returns whether this rank is asked to end.

        Raises:
            MeasurementError: on all ranks, with the reason.
        """
        count, ranks = len(self.clips.blocks), trainer.world_size
        turns = range(trainer.global_rank, -(-count // ranks) * ranks, ranks)
        found: dict[int, _BlockRows] = {}
        with self._reading(trainer, [turn % count for turn in turns]) as batches:
            for turn in turns:
                rows = self._measure_block(trainer, stage, turn % count, batches, is_stopping)
                if turn < count:
                    found[turn] = rows
        blocks = _gather(found)
        measured = self._compute(blocks) if trainer.is_global_zero else None
        return cast(Measured, trainer.strategy.broadcast(measured))

    @contextmanager
    def _reading(self, trainer: L.Trainer, numbers: Sequence[int]) -> Iterator[Iterator[tuple[JointBatch, JointBatch]]]:
        """Read blocks as the stage reads them, and their pixels."""
        loaders = [loader for loader in (self.clips.inputs(numbers), self.clips.pixels(numbers)) if loader is not None]
        device = trainer.strategy.root_device

        def read() -> Iterator[tuple[JointBatch, JointBatch]]:
            for batches in zip(*loaders, strict=True):
                on_device = images_as_videos(batches[0]).to(device)
                yield on_device, images_as_videos(batches[-1])

        try:
            yield read()
        finally:
            for loader in loaders:
                loader.close()

    def _measure_block(
        self,
        trainer: L.Trainer,
        stage: MeasuredStage,
        number: int,
        batches: Iterator[tuple[JointBatch, JointBatch]],
        is_stopping: Callable[[], bool],
    ) -> _BlockRows:
        """Generate the clips of a block, and turn them and the real ones into rows."""
        failures: list[str] = []
        with _collect_failures(failures):
            batch, pixels = next(batches)
        _agree(trainer, failures, is_stopping())
        rows = _BlockRows()
        with _collect_failures(failures), torch.no_grad():
            with trainer.precision_plugin.forward_context():
                generated = stage.measured_clips(batch)
            rows = self._extract(number, batch, generated, pixels)
        _agree(trainer, failures, is_stopping())
        return rows

    def _extract(self, number: int, batch: JointBatch, generated: Tensor, pixels: JointBatch) -> _BlockRows:
        readable = (batch.weight.cpu() * pixels.weight.cpu()).nonzero().flatten().tolist()
        if not readable:
            return _BlockRows(unreadable=len(pixels.videos))
        made, originals = (torch.from_numpy(to_uint8(clips[readable, :, : self.frames])).unbind() for clips in (generated, pixels.videos))
        captions, labels = [batch.captions[row] for row in readable], batch.labels[readable].tolist()
        rows: dict[str, Tensor] = {}
        for extractor in self.extractors:
            rows |= extractor(ClipBatch(made, originals, captions, labels))
        if number not in self._real:
            real: dict[str, Tensor] = {}
            for extractor in self._extractors_of_real_clips():
                real |= extractor(ClipBatch(originals, None, captions, labels))
            self._real[number] = real
        return _BlockRows(rows, self._real[number], len(pixels.videos) - len(readable))

    def _extractors_of_real_clips(self) -> list[Extractor]:
        needed = {metric.needs for metric in self.metrics if metric.real_side}
        return [extractor for extractor in self.extractors if not extractor.of_pairs and needed.intersection(extractor.gives)]

    def _compute(self, blocks: Mapping[int, _BlockRows]) -> Measured:
        values: dict[str, float] = {}
        problems: list[str] = []
        ordered = [blocks[number] for number in sorted(blocks)]
        for kind in self.metrics:
            with _collect_failures(problems, f"{kind.name}: "):
                metric = kind()
                for block in ordered:
                    if kind.needs in block.generated:
                        metric.update(block.generated[kind.needs], real=False)
                    if kind.real_side and kind.needs in block.real:
                        metric.update(block.real[kind.needs], real=True)
                values[kind.name] = metric.compute()
        return Measured(values, problems, sum(block.unreadable for block in ordered))


@contextmanager
def _collect_failures(failures: list[str], prefix: str = "") -> Iterator[None]:
    """Collect every error: no measurement is worth a training, and all ranks must learn of it before any of them goes on."""
    try:
        yield
    except Exception as error:
        failures.append(f"{prefix}{error or type(error).__name__}")


def _agree(trainer: L.Trainer, failures: list[str], is_stopping: bool) -> None:
    """Raise on all ranks if there is a failure on one of them, or a signal to end."""
    flags = torch.tensor([bool(failures), is_stopping], dtype=torch.int64, device=trainer.strategy.root_device)
    failed, stopping = trainer.strategy.reduce(flags, reduce_op="max").tolist()
    if failed:
        raise MeasurementError("; ".join(dict.fromkeys(failure for failures in _all_ranks(failures) for failure in failures)))
    if stopping:
        raise MeasurementStopped


def _gather(found: dict[int, _BlockRows]) -> dict[int, _BlockRows]:
    """Return the rows of all ranks' blocks; all ranks call it."""
    return {number: rows for blocks in _all_ranks(found) for number, rows in blocks.items()}


def _all_ranks(own: Any) -> list[Any]:
    """Return the objects of all ranks; all ranks call it."""
    if not dist.is_initialized():
        return [own]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone
