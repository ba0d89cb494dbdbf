"""A figure with the number of its cases and its 95 % confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

LEVEL = 0.95
"""Confidence level of every interval."""


@dataclass(frozen=True)
class Figure:
    """A measured value with its confidence interval over the cases."""

    value: float
    cases: int
    """Clips, prompts or pairs that the value was computed from."""
    low: float
    """Lower end of the 95 % confidence interval."""
    high: float
    """Upper end of the 95 % confidence interval."""


def mean_figure(values: Tensor) -> Figure:
    """Return the mean of a value over cases, [n], with its interval.

    The interval of a share (all values 0 or 1) is Wilson's; that of other means is Student's.

    Raises:
        ValueError: there are fewer than two values, or one is nan or infinite.
    """
    found = values.detach().double().cpu().numpy()
    if len(found) < 2 or not np.isfinite(found).all():
        raise ValueError(f"a mean wants at least two finite values, got {found[:8]} ({len(found)} values)")
    mean, count = float(found.mean()), len(found)
    if set(np.unique(found)) <= {0.0, 1.0}:
        low, high = stats.binomtest(int(found.sum()), count).proportion_ci(LEVEL, "wilson")
        return Figure(mean, count, float(low), float(high))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, count - 1) * found.std(ddof=1) / math.sqrt(count))
    return Figure(mean, count, mean - half, mean + half)


def grouped_share_figure(values: Tensor) -> Figure:
    """Return a share over groups of cases, such as the samples of a prompt, with Wilson's interval of the effective number of cases.

    Cases of a group may be alike, so they count for less than independent ones. The effective number is that with which the share's
    binomial variance equals the variance of its group means (Korn and Graubard, Survey Methodology 24, 1998). It lies between the number
    of groups and that of cases. Where all values are equal, nothing tells how alike they are, and it is the number of groups.

    Args:
        values: 0 or 1 for each case, [groups cases].
    """
    groups = values.double().mean(dim=1)
    share, count = float(groups.mean()), len(groups)
    # A variance below its value for independent cases, be it 0, makes the number of cases the limit.
    least = share * (1 - share) / values.numel()
    effective = max(share * (1 - share) / max(float(groups.var()) / count, least), count) if least else count
    z = float(stats.norm.ppf(0.5 + LEVEL / 2))
    middle = (share + z**2 / (2 * effective)) / (1 + z**2 / effective)
    half = z / (1 + z**2 / effective) * math.sqrt(share * (1 - share) / effective + z**2 / (4 * effective**2))
    return Figure(share, count, max(0.0, middle - half), min(1.0, middle + half))


def bootstrap_figure(statistic: Callable[[Tensor], float], cases: Tensor, draws: int = 2000) -> Figure:
    """Return a statistic of all cases that is no mean, such as a distance of distributions, with its interval.

    The interval is the percentile bootstrap's, shifted by its bias: resampled cases are less evenly spread than the cases.

    Args:
        statistic: function of cases.
        cases: one row a case, [n ...].
        draws: resampled sets of n cases.
    """
    rng = np.random.default_rng(0)
    value = statistic(cases)
    resampled = np.array([statistic(cases[rng.integers(len(cases), size=len(cases))]) for _ in range(draws)])
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - (resampled.mean() - value)
    return Figure(value, len(cases), float(low), float(high))
