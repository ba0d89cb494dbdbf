"""Confidence intervals of the paper's figures, against scipy and by simulation."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from walt_pl.paper.figure import Figure, bootstrap_figure, grouped_share_figure, mean_figure


def wilson(found: int, cases: int) -> tuple[float, float]:
    interval = stats.binomtest(found, cases).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def ends(figure: Figure) -> tuple[float, float]:
    return figure.low, figure.high


def test_mean_figure_of_a_share_has_wilsons_interval_and_of_a_mean_students() -> None:
    assert ends(mean_figure(torch.tensor([1.0, 1, 0, 1]))) == pytest.approx(wilson(3, 4))
    values = torch.tensor([0.2, 0.5, 0.9, 0.4], dtype=torch.float64)
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert ends(mean_figure(values)) == pytest.approx(expected)


def test_grouped_share_figure_counts_groups_of_equal_cases_once() -> None:
    values = torch.tensor([[1.0] * 12] * 15 + [[0.0] * 12] * 3)
    figure = grouped_share_figure(values)
    assert (figure.value, figure.cases) == (pytest.approx(15 / 18), 18) and ends(figure) == pytest.approx(wilson(15, 18))


def test_grouped_share_figure_counts_unlike_cases_all() -> None:
    values = torch.tensor([[1.0, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 0, 1]])  # group means do not vary, cases do
    for cases in (values, torch.cat([values, torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1]])])):
        assert ends(grouped_share_figure(cases)) == pytest.approx(wilson(int(cases.sum()), cases.numel()))


@pytest.mark.parametrize("values", [torch.ones(18, 12), torch.cat([torch.ones(17, 12), torch.tensor([[0.0] + [1.0] * 11])])])
def test_grouped_share_figure_stays_between_0_and_1(values: Tensor) -> None:
    figure = grouped_share_figure(values)
    assert 0.8 < figure.low < figure.value <= figure.high <= 1
    other = grouped_share_figure(1 - values)
    assert ends(other) == pytest.approx((1 - figure.high, 1 - figure.low))


def test_grouped_share_figure_covers_the_true_share_of_alike_cases() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        shares = rng.beta(8, 2, size=(18, 1))  # mean 0.8: the samples of a prompt are alike
        figure = grouped_share_figure(torch.from_numpy((rng.random((18, 12)) < shares).astype(float)))
        covered += figure.low <= 0.8 <= figure.high
    assert 0.9 < covered / 400 < 0.99


def test_bootstrap_figure_of_a_mean_is_close_to_students_interval() -> None:
    values = torch.from_numpy(np.random.default_rng(1).normal(3, 1, size=200))
    figure, mean = bootstrap_figure(lambda cases: float(cases.mean()), values), mean_figure(values)
    assert figure.value == pytest.approx(mean.value) and ends(figure) == pytest.approx(ends(mean), abs=0.02)
