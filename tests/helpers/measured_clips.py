"""A source of numbered clips, an extractor and a metric that need no files, and a measurement that a test can start as a process."""

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from walt_pl.evaluation.card import MetricCard
from walt_pl.evaluation.measuring import measure
from walt_pl.evaluation.ranks import Ranks
from walt_pl.evaluation.rows import MeasureOptions
from walt_pl.evaluation.source import ClipDraw, ClipSource, Drawn, ReadClips
from walt_pl.metrics.extractor import ClipBatch, Extractor
from walt_pl.metrics.metric import Metric
from walt_pl.metrics.protocol import EvaluationProtocol

PROTOCOL = EvaluationProtocol(clips=10, real_clips=12, folds=2, frames=2, size=(4, 4))


@dataclass
class NumberedClips(ClipSource):
    """Clips of one value each, which depends on their number and on a name."""

    name: str = "a"
    broken: Sequence[int] = ()
    stop_at: int | None = None
    """Position of the draw at which reading fails, as of a process that is killed."""
    reads: list[list[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return 100

    def facts(self) -> dict[str, Any]:
        return {"kind": "numbered", "name": self.name}

    def lengths(self) -> Sequence[int]:
        return [2] * len(self)

    def names(self) -> Sequence[str]:
        return [f"{item}.mp4" for item in range(len(self))]

    def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: tuple[int, int] | None) -> ReadClips:
        assert size is not None
        self.reads.append([draw.item for draw in draws])
        if self.stop_at in self.reads[-1]:
            raise InterruptedError("stopped")
        shift = 100 if self.name == "b" else 0
        clips = [
            None if draw.item in self.broken else torch.full((frames, *size, 3), draw.item + shift, dtype=torch.uint8) for draw in draws
        ]
        failures = {i: f"{draw.item}.mp4 is broken" for i, draw in enumerate(draws) if clips[i] is None}
        return ReadClips(clips, failures=failures)


class Means(Extractor):
    """Mean and mean square of each clip."""

    kind = "means"
    gives: tuple[str, ...] = ("video_features",)

    def __init__(self, sha256: str = "0") -> None:
        self.sha256 = sha256
        self.computed: list[int] = []
        self.kill_at: int | None = None

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "sha256": self.sha256}

    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        values = [int(clip[0, 0, 0, 0]) for clip in batch.clips]
        self.computed += values
        if self.kill_at in values:
            os.kill(os.getpid(), signal.SIGKILL)
        means = torch.stack([clip.float().mean() / 7 for clip in batch.clips])
        return {name: torch.stack([means, means.square()], dim=1) for name in self.gives}


class Differences(Means):
    """Mean difference of each clip and its original."""

    kind = "differences"
    gives = ("psnr",)
    of_pairs = True

    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        assert batch.originals is not None
        pairs = zip(batch.clips, batch.originals, strict=True)
        return {"psnr": torch.stack([clip.float().mean() - original.float().mean() for clip, original in pairs])[:, None]}


class Distance(Metric):
    """Distance of the means of both sides."""

    name = "distance"
    needs = "video_features"
    real_side = True
    better = "min"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.rows: dict[bool, list[Tensor]] = {True: [], False: []}

    def update(self, rows: Tensor, *, real: bool) -> None:
        self.rows[real].append(rows.double())

    def compute(self) -> float:
        real, generated = (torch.cat(self.rows[side]).mean(dim=0) for side in (True, False))
        return float((real - generated).norm())


class PairDifference(Metric):
    """Mean of the rows of pairs."""

    name = "pair_difference"
    needs = "psnr"
    real_side = False
    better = "max"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.rows: list[Tensor] = []

    def update(self, rows: Tensor, *, real: bool) -> None:
        self.rows.append(rows)

    def compute(self) -> float:
        return float(torch.cat(self.rows).mean())


def drawn(count: int, **left_out: int) -> Drawn:
    return Drawn([ClipDraw(item, 0) for item in range(count)], left_out)


def measure_numbered(
    folder: Path,
    *,
    real: NumberedClips | None = None,
    generated: NumberedClips | None = None,
    extractor: Means | None = None,
    batch: int = 4,
    ranks: Ranks | None = None,
    preset: str | None = "p",
) -> MetricCard:
    """Measure 20 numbered clips against 24."""
    options = MeasureOptions(folder / "cache", folder / "work", batch, ranks or Ranks())
    sides = (real or NumberedClips("a"), generated or NumberedClips("b"), drawn(24, short=3), drawn(20))
    return measure([Distance], *sides, PROTOCOL, preset, [extractor or Means()], options)[0]


def measure_as_process(folder: str, out: str, kill_at: int | None = None) -> None:
    """Measure as one of the processes of torchrun, and write what it gave."""
    extractor, made = Means(), NumberedClips("b")
    extractor.kill_at = kill_at
    ranks = Ranks.from_environment({**os.environ, "RANK": os.environ.get("LOCAL_RANK", "0")})
    card = measure_numbered(Path(folder), generated=made, extractor=extractor, ranks=ranks)
    Path(f"{out}.{ranks.rank}").write_text(json.dumps({"card": asdict(card), "reads": made.reads}))


def fail_or_wait() -> None:
    """Fail as process one, and wait for it as process zero."""
    ranks = Ranks.from_environment({**os.environ, "RANK": os.environ["LOCAL_RANK"]})
    if not ranks.is_first:
        raise SystemExit(3)
    ranks.barrier()
