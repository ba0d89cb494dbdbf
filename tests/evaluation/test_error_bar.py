"""Folds and error bars against numpy."""

import warnings
from itertools import chain
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from walt_pl.evaluation.card import ErrorBar
from walt_pl.evaluation.error_bar import measure_folds
from walt_pl.metrics.frechet import FVD
from walt_pl.metrics.inception_score import InceptionScore
from walt_pl.metrics.kernel import KVD
from walt_pl.metrics.mean import PSNR
from walt_pl.metrics.metric import Better, Metric
from walt_pl.metrics.protocol import EvaluationProtocol


def rows_of(count: int, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def measure(metric: type[Metric], real: Tensor | None, generated: Tensor, seed: int = 0) -> float:
    measured = metric(seed)
    if real is not None:
        measured.update(real, real=True)
    measured.update(generated, real=False)
    return measured.compute()


def assert_spread_of(bar: ErrorBar, values: list[float]) -> None:
    assert list(bar.values) == pytest.approx(values, rel=1e-12)
    assert bar.std == pytest.approx(np.std(values), rel=1e-9)
    assert bar.standard_error == pytest.approx(np.std(values, ddof=1) / np.sqrt(len(values)), rel=1e-9)


@pytest.mark.parametrize("metric", [FVD, KVD])
def test_measure_folds_is_the_mean_of_folds_with_their_spread(metric: type[Metric]) -> None:
    real, generated = rows_of(3 * 40), 0.2 + rows_of(3 * 30, seed=1)
    value, bar = measure_folds(metric, real, generated, EvaluationProtocol(clips=30, real_clips=40, folds=3), 0)
    values = [measure(metric, real[40 * f : 40 * (f + 1)], generated[30 * f : 30 * (f + 1)]) for f in range(3)]
    assert value == pytest.approx(np.mean(values), rel=1e-12)
    assert bar.kind == "folds"
    assert_spread_of(bar, values)


def test_measure_folds_leaves_the_fold_of_a_missing_clip_smaller() -> None:
    real, generated = rows_of(60), rows_of(60, seed=1)
    real_kept, generated_kept = torch.ones(60, dtype=torch.bool), torch.ones(60, dtype=torch.bool)
    real_kept[3], generated_kept[[31, 59]] = False, False
    real[3], generated[31] = float("nan"), float("nan")
    protocol = EvaluationProtocol(clips=30, real_clips=30, folds=2)
    _, bar = measure_folds(FVD, real, generated, protocol, 0, real_kept=real_kept, generated_kept=generated_kept)
    first = measure(FVD, torch.cat([real[:3], real[4:30]]), generated[:30])
    assert_spread_of(bar, [first, measure(FVD, real[30:], torch.cat([generated[30:31], generated[32:59]]))])


def test_measure_folds_names_the_fold_that_is_too_small() -> None:
    kept = torch.tensor([True] * 30 + [False] * 30)
    with pytest.raises(ValueError, match=r"^fold 2 of 2: fvd: 0 generated clips found, at least 2 wanted"):
        measure_folds(FVD, rows_of(60), rows_of(60), EvaluationProtocol(clips=30, real_clips=30, folds=2), 0, generated_kept=kept)


def test_measure_folds_passes_its_seed_to_the_metric() -> None:
    rows = rows_of(200)
    value, _ = measure_folds(InceptionScore, None, rows, EvaluationProtocol(clips=200), 5)
    assert value == measure(InceptionScore, None, rows, seed=5) != measure(InceptionScore, None, rows, seed=0)


class Parts(Metric):
    """Record the rows of each object."""

    name: ClassVar[str] = "parts of a test"
    needs: ClassVar[str] = "positions"
    real_side: ClassVar[bool] = True
    better: ClassVar[Better] = "min"
    seen: ClassVar[list[dict[bool, list[int]]]] = []

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.rows: dict[bool, list[int]] = {}
        self.seen.append(self.rows)

    def update(self, rows: Tensor, *, real: bool) -> None:
        """Record the positions."""
        self.rows[real] = rows.flatten().int().tolist()

    def compute(self) -> float:
        """Return the number of generated rows."""
        return float(len(self.rows[False]))


@pytest.fixture
def seen() -> list[dict[bool, list[int]]]:
    Parts.seen.clear()
    return Parts.seen


def test_error_bar_of_one_fold_is_the_spread_of_four_disjoint_parts(seen: list[dict[bool, list[int]]]) -> None:
    real, generated = torch.arange(43.0)[:, None], torch.arange(37.0)[:, None]
    kept = torch.ones(37, dtype=torch.bool)
    kept[[5, 6]] = False
    value, bar = measure_folds(Parts, real, generated, EvaluationProtocol(clips=37, real_clips=43), 0, generated_kept=kept)
    whole, *parts = seen
    assert value == 35
    assert (bar.kind, len(bar.values), len(parts)) == ("disjoint folds", 4, 4)
    assert whole[True] == list(range(43))
    assert sorted(chain(*(part[True] for part in parts))) == list(range(43))
    assert sorted(chain(*(part[False] for part in parts))) == whole[False] == [i for i in range(37) if i not in (5, 6)]
    assert_spread_of(bar, [float(len(part[False])) for part in parts])


def test_error_bar_mixes_sorted_clips_and_keeps_pairs(seen: list[dict[bool, list[int]]]) -> None:
    rows = torch.arange(80.0)[:, None]
    measure_folds(Parts, rows, rows, EvaluationProtocol(clips=80, real_clips=80), 0)
    for part in seen[1:]:
        assert part[True] == part[False]
        # Neither a stretch of a sorted list, nor every fourth clip of classes in turn.
        assert len({position // 20 for position in part[False]}) == 4
        assert len({position % 4 for position in part[False]}) == 4


def test_error_bar_of_frechet_distance_says_its_uncertainty() -> None:
    """The standard error is near the spread of the figure over independent sets, though each part lies above the figure."""
    protocol = EvaluationProtocol(clips=400, real_clips=400)
    measured = [measure_folds(FVD, rows_of(400, seed=2 * s), 0.5 + rows_of(400, seed=2 * s + 1), protocol, 0) for s in range(40)]
    spread = np.std([value for value, _ in measured], ddof=1)
    errors = [bar.standard_error for _, bar in measured if bar.standard_error is not None]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.35)
    assert np.mean([np.mean(bar.values) - value for value, bar in measured]) > 0


@pytest.mark.parametrize(("count", "parts"), [(8, 4), (7, 3), (5, 2), (3, 0), (1, 0)])
def test_error_bar_has_fewer_parts_of_few_clips_or_none(count: int, parts: int) -> None:
    value, bar = measure_folds(PSNR, None, rows_of(count, 1), EvaluationProtocol(clips=count), 0)
    assert value == pytest.approx(float(rows_of(count, 1).double().mean()), rel=1e-12)
    assert len(bar.values) == parts
    if not parts:
        assert bar == ErrorBar()


def test_error_bar_has_no_parts_that_the_metric_refuses() -> None:
    """Parts of 25 and of 33 clips cannot be cut into 10 again, parts of 50 can. Of 20 clips, parts of one would all score 1."""
    _, bar = measure_folds(InceptionScore, None, rows_of(100), EvaluationProtocol(clips=100), 0)
    assert len(bar.values) == 2
    assert measure_folds(InceptionScore, None, rows_of(20), EvaluationProtocol(clips=20), 0)[1] == ErrorBar()


def test_error_bar_warns_of_the_whole_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_folds(FVD, rows_of(20, 10), rows_of(20, 10, 1), EvaluationProtocol(clips=20, real_clips=20), 0)
    with pytest.warns(UserWarning, match="a side has 9 clips") as told:
        measure_folds(FVD, rows_of(9, 10), rows_of(9, 10, 1), EvaluationProtocol(clips=9, real_clips=9), 0)
    assert len(told) == 1


def test_measure_folds_asks_for_real_clips() -> None:
    with pytest.raises(ValueError, match=r"^fvd: compares with real clips, and there are none: name them with --real$"):
        measure_folds(FVD, None, rows_of(20), EvaluationProtocol(clips=20), 0)


def test_measure_folds_of_generated_clips_alone_ignores_real_rows() -> None:
    rows = rows_of(40, 1)
    protocol = EvaluationProtocol(clips=20, real_clips=20, folds=2)
    assert measure_folds(PSNR, rows_of(3), rows, protocol, 0) == measure_folds(PSNR, None, rows, protocol, 0)
