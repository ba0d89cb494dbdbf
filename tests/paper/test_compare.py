"""Comparison of rows over seeds: Welch's interval, and the verdict."""

import math

import numpy as np
import pytest
from scipy import stats

from walt_pl.paper.compare import AGREES, DISAGREES, UNKNOWN, Difference, compare, mean_and_deviation, verdict


def test_compare_gives_the_interval_of_welch() -> None:
    a, b = [0.91, 0.95, 0.90], [0.70, 0.78, 0.71, 0.80]
    found = compare(a, b)
    # Welch (1947): the degrees of freedom of Satterthwaite, written out.
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(va + vb)
    value = np.mean(a) - np.mean(b)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((value, value - half, value + half))


def test_compare_needs_two_seeds_of_both_sides() -> None:
    assert compare([0.5], [0.4, 0.5]) is None and compare([0.4, 0.5], [0.5]) is None
    assert verdict("all", 1, None) == UNKNOWN


@pytest.mark.filterwarnings("error")
def test_compare_of_seeds_without_spread_has_no_width_and_no_warning() -> None:
    assert compare([1.0, 1.0, 1.0], [0.75, 0.75]) == Difference(0.25, 0.25, 0.25)
    found = compare([0.7, 0.7, 0.7], [0.5, 0.6])
    # One degree of freedom, that of the side with a spread: t of 12.706 times 0.1 / 2.
    assert found is not None and found.value == pytest.approx(0.15)
    assert (found.low, found.high) == pytest.approx((0.15 - 0.6353, 0.15 + 0.6353), abs=1e-3)


def test_mean_and_deviation_are_of_a_sample() -> None:
    assert mean_and_deviation([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_deviation([2.0]) == (2.0, None)


@pytest.mark.parametrize(
    ("figure", "expected", "low", "high", "says"),
    [
        ("all", 1, 0.01, 0.2, AGREES),
        ("all", 1, -0.2, -0.01, DISAGREES),
        ("all", 1, -0.01, 0.2, UNKNOWN),
        ("all", 1, -0.01, 0.01, UNKNOWN),
        ("all", -1, -0.2, -0.01, AGREES),
        ("all", -1, 0.01, 0.2, DISAGREES),
        ("loss", 1, -0.2, -0.01, AGREES),
        ("loss", 1, 0.01, 0.2, DISAGREES),
        ("loss", -1, 0.01, 0.2, AGREES),
        ("all", 0, -0.04, 0.05, AGREES),
        ("all", 0, 0.01, 0.04, AGREES),
        ("all", 0, 0.01, 0.06, UNKNOWN),
        ("all", 0, -0.06, 0.04, UNKNOWN),
        ("all", 0, 0.06, 0.2, DISAGREES),
        ("loss", 0, -0.2, -0.06, DISAGREES),
        ("loss", 0, -0.02, 0.01, UNKNOWN),
        ("loss", 0, -0.009, 0.01, AGREES),
    ],
)
def test_verdict_follows_from_the_interval_alone(figure: str, expected: int, low: float, high: float, says: str) -> None:
    assert verdict(figure, expected, Difference((low + high) / 2, low, high)) == says
