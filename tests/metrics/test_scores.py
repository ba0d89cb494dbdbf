"""Inception score against numpy, and means over clips."""

import numpy as np
import pytest
import torch
from torch import Tensor

from walt_pl.metrics.inception_score import InceptionScore
from walt_pl.metrics.mean import LPIPS, PSNR, SSIM, CLIPSimilarity
from walt_pl.metrics.metric import Metric

MEANS = (PSNR, SSIM, LPIPS, CLIPSimilarity)


def measure(metric: type[Metric], rows: Tensor, seed: int = 0) -> float:
    measured = metric(seed)
    measured.update(rows, real=False)
    return measured.compute()


def logits(count: int, classes: int = 12) -> Tensor:
    return 2 * torch.randn(count, classes, generator=torch.Generator().manual_seed(3))


def score_by_formula(rows: Tensor, seed: int) -> float:
    """Return the mean of exp(KL) of ten parts of the order of a seed."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    p = np.exp(rows[order].double().numpy())
    p /= p.sum(axis=1, keepdims=True)
    size = -(-len(p) // 10)
    parts = [p[start : start + size] for start in range(0, len(p), size)]
    return float(np.mean([np.exp((part * np.log(part / part.mean(axis=0))).sum(axis=1).mean()) for part in parts]))


@pytest.mark.parametrize(("count", "seed"), [(200, 0), (205, 7)])
def test_inception_score_equals_its_formula_in_numpy(count: int, seed: int) -> None:
    rows = logits(count)
    assert measure(InceptionScore, rows, seed) == pytest.approx(score_by_formula(rows, seed), rel=1e-9)


def test_inception_score_of_log_probabilities_equals_that_of_logits() -> None:
    rows = logits(100)
    assert measure(InceptionScore, rows.log_softmax(dim=1)) == pytest.approx(measure(InceptionScore, rows), rel=1e-5)


def test_inception_score_of_sure_and_even_classes_is_their_number() -> None:
    """Clips that are all alike score 1. Four classes, each surely one, score 4 as far as the parts have them evenly."""
    assert measure(InceptionScore, torch.full((50, 5), 3.0)) == pytest.approx(1)
    sure = 50 * torch.eye(4).repeat(2000, 1)
    assert measure(InceptionScore, sure) == pytest.approx(4, rel=0.01)


def test_inception_score_depends_on_its_seed_alone() -> None:
    rows = logits(200)
    torch.manual_seed(1)
    first = measure(InceptionScore, rows)
    torch.manual_seed(2)
    assert measure(InceptionScore, rows) == first
    assert measure(InceptionScore, rows, seed=1) != first


def test_inception_score_leaves_the_global_random_state() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    measure(InceptionScore, logits(50))
    assert torch.equal(torch.get_rng_state(), state)


def test_inception_score_does_not_seed_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr("torch.cuda.manual_seed_all", seeded.append)
    measure(InceptionScore, logits(50))
    assert not seeded


def test_inception_score_does_not_depend_on_the_cut_of_updates_to_the_bit() -> None:
    rows = logits(130)
    cut = InceptionScore()
    for block in rows.split(7):
        cut.update(block, real=False)
    assert cut.compute() == measure(InceptionScore, rows)


@pytest.mark.parametrize(("count", "message"), [(19, "19 generated clips found, at least 20"), (21, "21 .* cannot be cut into 10 parts")])
def test_inception_score_refuses_rows_that_give_fewer_parts(count: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^is: {message}"):
        measure(InceptionScore, logits(count))


def test_inception_score_tells_its_parts_and_seed() -> None:
    assert InceptionScore(4).settings() == {"splits": 10, "seed": 4}


def test_inception_score_is_not_gathered_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank has the rows of all ranks. A gathering would ask torch.distributed, which is not set up here."""
    alone = measure(InceptionScore, logits(50))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert measure(InceptionScore, logits(50)) == alone


def test_inception_score_says_nothing_of_buffers(recwarn: pytest.WarningsRecorder) -> None:
    measure(InceptionScore, logits(50))
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("metric", MEANS)
def test_mean_metric_is_the_mean_of_its_rows_in_float64(metric: type[Metric]) -> None:
    """A float32 sum of 30,000 rows of about 30 dB loses the fifth digit behind the point."""
    rows = 30 + torch.rand(30_000, 1, generator=torch.Generator().manual_seed(0))
    cut = metric()
    for block in rows.split(1000):
        cut.update(block, real=False)
    assert cut.compute() == pytest.approx(float(np.mean(rows.double().numpy())), rel=1e-12)


@pytest.mark.parametrize("metric", MEANS)
def test_mean_metric_refuses_no_clips_and_rows_that_are_no_numbers(metric: type[Metric]) -> None:
    assert measure(metric, torch.tensor([[2.0]])) == 2
    with pytest.raises(ValueError, match=f"^{metric.name}: 0 generated clips found, at least 1 wanted"):
        metric().compute()
    with pytest.raises(ValueError, match=f"^{metric.name}: .* nan or infinite"):
        measure(metric, torch.tensor([[2.0], [float("inf")]]))


def test_mean_metric_lpips_alone_is_better_when_low() -> None:
    assert [metric.better for metric in MEANS] == ["max", "max", "min", "max"]
