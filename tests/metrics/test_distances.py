"""FVD, FID, KVD and KID against closed forms in numpy and scipy, which share no code with ours."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from walt_pl.metrics.frechet import FID, FVD
from walt_pl.metrics.kernel import KID, KVD
from walt_pl.metrics.metric import Metric

WIDTH = 400
"""Features of I3D."""
DISTANCES = (FVD, FID, KVD, KID)


def measure(metric: type[Metric], real: Tensor, generated: Tensor) -> float:
    measured = metric()
    measured.update(real, real=True)
    measured.update(generated, real=False)
    return measured.compute()


def gaussian(count: int, width: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    """Return rows with correlated columns."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / width**0.5
    return mean + scale * torch.randn(count, width, generator=generator) @ mixing


def frechet(real: Tensor, generated: Tensor) -> float:
    """Return the distance by scipy's matrix root."""
    x, y = real.double().numpy(), generated.double().numpy()
    c_x, c_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c_x @ c_y).real
    return float(np.square(x.mean(axis=0) - y.mean(axis=0)).sum() + np.trace(c_x + c_y - 2 * root))


def polynomial_mmd(real: Tensor, generated: Tensor) -> float:
    """Return TATS's polynomial MMD, pair by pair."""
    x, y = real.double().numpy(), generated.double().numpy()

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([[(float(u @ v) / len(u) + 1) ** 3 for v in b] for u in a])

    def within(a: NDArray[np.float64]) -> float:
        k = kernel(a, a)
        return float(k.sum() - np.diagonal(k).sum()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * float(kernel(x, y).mean())


@pytest.mark.parametrize("metric", [FVD, FID])
def test_frechet_distance_equals_scipy_at_400_dimensions(metric: type[Metric]) -> None:
    real, generated = gaussian(1000, WIDTH, 1), gaussian(900, WIDTH, 2, mean=0.3, scale=1.4)
    value = measure(metric, real, generated)
    assert value == pytest.approx(frechet(real, generated), rel=1e-6)
    assert value != float(np.float32(value)), "rounded to the dtype of the rows"


def test_frechet_distance_equals_its_closed_form_of_known_gaussians() -> None:
    """Rows of the exact covariances diag(4) and diag(9), and means 3 apart in each column: d (3^2 + (3 - 2)^2)."""
    noise = torch.randn(500, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    white, _ = torch.linalg.qr(noise - noise.mean(dim=0))
    white = white * 499**0.5
    assert measure(FVD, 2 * white, 3 + 3 * white) == pytest.approx(20 * (9 + 1), rel=1e-9)


def test_frechet_distance_keeps_digits_of_features_far_from_zero() -> None:
    """Float32 sums lose the covariance of columns whose mean is 1,000 deviations."""
    real, generated = gaussian(600, 32, 1, mean=1000.0), gaussian(600, 32, 2, mean=1000.1)
    assert measure(FVD, real, generated) == pytest.approx(frechet(real, generated), rel=1e-6)


@pytest.mark.parametrize("counts", [(60, 60), (60, 45)])
@pytest.mark.parametrize("metric", [KVD, KID])
def test_kernel_distance_equals_its_formula_pair_by_pair(metric: type[Metric], counts: tuple[int, int]) -> None:
    real, generated = gaussian(counts[0], 30, 1), gaussian(counts[1], 30, 2, mean=0.5)
    assert measure(metric, real, generated) == pytest.approx(polynomial_mmd(real, generated), rel=1e-9)


def test_kernel_distance_equals_one_subset_of_torchmetrics() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    real, generated = gaussian(300, WIDTH, 1), gaussian(300, WIDTH, 2, mean=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = KernelInceptionDistance(torch.nn.Identity(), subsets=1, subset_size=300)
    theirs.update(real.double(), real=True)
    theirs.update(generated.double(), real=False)
    assert measure(KVD, real, generated) == pytest.approx(float(theirs.compute()[0]), rel=1e-9)


def test_kernel_distance_in_blocks_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = gaussian(300, 30, 1), gaussian(250, 30, 2, mean=0.1)
    whole = measure(KVD, real, generated)
    monkeypatch.setattr("walt_pl.metrics.kernel.BLOCK_VALUES", 7 * 250)
    assert measure(KVD, real, generated) == pytest.approx(whole, rel=1e-9)


def test_distance_of_a_set_to_itself_and_of_two_halves() -> None:
    rows = gaussian(2000, 40, 1)
    assert measure(FVD, rows, rows) == pytest.approx(0, abs=1e-9)
    halves = rows.split(1000)
    far = measure(FVD, rows, gaussian(2000, 40, 2, mean=1.0))
    assert 0 < measure(FVD, *halves) < far / 20
    assert abs(measure(KVD, *halves)) < abs(measure(KVD, rows, gaussian(2000, 40, 2, mean=1.0))) / 20


def test_kernel_distance_of_a_set_to_itself_is_below_zero() -> None:
    """The mean over pairs of both sides has the diagonal, k(x, x), which the means within a side leave out."""
    rows = gaussian(50, 30, 1)
    value = measure(KVD, rows, rows)
    assert value < 0
    assert value == pytest.approx(polynomial_mmd(rows, rows), rel=1e-9)


def test_frechet_distance_grows_as_the_sets_shrink() -> None:
    real, generated = gaussian(4000, 40, 1), gaussian(4000, 40, 2)
    values = [measure(FVD, real[:count], generated[:count]) for count in (4000, 1000, 250, 60)]
    assert all(larger > 2 * smaller for smaller, larger in pairwise(values))


@pytest.mark.parametrize("metric", DISTANCES)
def test_distance_does_not_depend_on_the_cut_of_updates_to_the_bit(metric: type[Metric]) -> None:
    real, generated = gaussian(150, 40, 1), gaussian(130, 40, 2)
    cut = metric()
    for block in generated.split(7):
        cut.update(block, real=False)
    for block in real.split(64):
        cut.update(block, real=True)
    assert cut.compute() == measure(metric, real, generated)


@pytest.mark.parametrize("metric", DISTANCES)
def test_distance_does_not_depend_on_the_order_of_rows(metric: type[Metric]) -> None:
    real, generated = gaussian(150, 40, 1), gaussian(130, 40, 2)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    assert measure(metric, real[order], generated.flip(0)) == pytest.approx(measure(metric, real, generated), rel=1e-9)


@pytest.mark.parametrize("metric", DISTANCES)
def test_distance_refuses_too_few_clips_of_either_side(metric: type[Metric]) -> None:
    rows = gaussian(30, 4, 1)
    with pytest.raises(ValueError, match=f"^{metric.name}: 1 real clip found, at least 2 wanted: give more real clips$"):
        measure(metric, rows[:1], rows)
    with pytest.raises(ValueError, match=f"^{metric.name}: 0 generated clips found"):
        measure(metric, rows, rows[:0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("metric", DISTANCES)
def test_distance_refuses_rows_that_are_no_numbers(metric: type[Metric], value: float) -> None:
    rows = gaussian(30, 4, 1)
    broken = rows.clone()
    broken[17, 2] = value
    message = f"^{metric.name}: {metric.needs} of 1 of 30 generated clips are nan or infinite \\(first: clip 17\\)"
    with pytest.raises(ValueError, match=message):
        measure(metric, rows, broken)


def test_frechet_distance_warns_of_fewer_clips_than_features() -> None:
    with pytest.warns(UserWarning, match="^fvd: a side has 30 clips, and a clip 40 features"):
        measure(FVD, gaussian(100, 40, 1), gaussian(30, 40, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(FVD, gaussian(41, 40, 1), gaussian(41, 40, 2))


@pytest.mark.parametrize("metric", [FVD, FID])
def test_frechet_distance_is_not_summed_over_ranks(metric: type[Metric], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank has the rows of all ranks. A sum over ranks would ask torch.distributed, which is not set up here."""
    rows = gaussian(100, 8, 1)
    alone = measure(metric, rows, 2 * rows)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert measure(metric, rows, 2 * rows) == alone
