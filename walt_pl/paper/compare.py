"""Comparison of two rows over their seeds, and its agreement with the paper."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from walt_pl.paper.figure import LEVEL

AGREES = "as the paper"
DISAGREES = "other than the paper"
UNKNOWN = "cannot tell at this size"

MARGINS = {"all": 0.05, "unseen_pairs": 0.1, "iou": 0.02, "loss": 0.01}
"""Figures by which rows are compared, and the difference of each that counts as none."""
LOWER_IS_BETTER = ("loss",)


@dataclass(frozen=True)
class Difference:
    """Difference of two means with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean over seeds, and the standard deviation (n - 1); None for one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def compare(values: Sequence[float], others: Sequence[float]) -> Difference | None:
    """Return the mean of `values` minus that of `others`, with Welch's interval.

    Seeds are the cases. Both sides may have other variances and numbers of seeds.

    Returns:
        The difference; None where a side has fewer than two seeds.
    """
    if min(len(values), len(others)) < 2:
        return None
    value = float(np.mean(values) - np.mean(others))
    if np.ptp(values) == np.ptp(others) == 0:
        return Difference(value, value, value)
    with warnings.catch_warnings():
        # scipy warns of lost precision where the seeds of one side are equal; its variance of zero is right.
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        interval = stats.ttest_ind(values, others, equal_var=False).confidence_interval(LEVEL)
    return Difference(value, float(interval.low), float(interval.high))


def verdict(figure: str, expected: int, difference: Difference | None) -> str:
    """Return whether a row has the result that the paper reports, by the interval of its difference alone.

    Where the paper has a difference, an interval without zero agrees or disagrees by its side. Where the paper has no clear difference, an
    interval within plus or minus the figure's margin agrees, and one wholly beyond it disagrees. All other intervals tell nothing.

    Args:
        figure: name of the compared figure.
        expected: result of the paper: 1 better, -1 worse, 0 no clear difference.
        difference: of that figure; None with too few seeds.
    """
    if difference is None or math.isnan(difference.low):
        return UNKNOWN
    if expected == 0:
        margin = MARGINS[figure]
        if -margin <= difference.low and difference.high <= margin:
            return AGREES
        return DISAGREES if difference.low > margin or difference.high < -margin else UNKNOWN
    sign = -expected if figure in LOWER_IS_BETTER else expected
    ends = sorted((sign * difference.low, sign * difference.high))
    if ends[0] > 0:
        return AGREES
    return DISAGREES if ends[1] < 0 else UNKNOWN
