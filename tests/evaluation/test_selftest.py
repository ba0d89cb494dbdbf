"""Promises of the self-test: it passes for a sound extractor, and each kind of fault makes a check of its own fail."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from walt_pl.evaluation.selftest import DAMAGES, Check, has_failed, moving_shapes, render_checks, selftest, synthetic_sets
from walt_pl.metrics.extractor import ClipBatch, Extractor
from walt_pl.metrics.metric import Better, Metric


class FakeFVD(Metric):
    """Frechet distance by numpy."""

    name: ClassVar[str] = "fvd"
    needs: ClassVar[str] = "video_features"
    real_side: ClassVar[bool] = True
    better: ClassVar[Better] = "min"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.rows: dict[bool, list[Any]] = {True: [], False: []}

    def update(self, rows: Tensor, *, real: bool) -> None:
        self.rows[real].append(rows.double().numpy())

    def compute(self) -> float:
        real, generated = (np.concatenate(self.rows[side]) for side in (True, False))
        a, b = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
        root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
        return float(((real.mean(0) - generated.mean(0)) ** 2).sum() + np.trace(a + b) - 2 * root)


class TinyExtractor(Extractor):
    """Eight random filters and what remains of their energy."""

    kind = "tiny"
    gives = ("video_features",)

    def __init__(self, see: Callable[[Tensor], Tensor] = lambda videos: videos) -> None:
        self.see = see
        self.seen = 0
        self.weight = torch.randn(8, 3, 3, 5, 5, generator=torch.Generator().manual_seed(0)) / 20

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        self.seen += len(batch)
        videos = torch.stack([clip.permute(3, 0, 1, 2).float() / 255 for clip in batch.clips])
        found = functional.conv3d(self.see(videos), self.weight, stride=4)
        return {"video_features": torch.cat([found.relu().mean((2, 3, 4)), found.std((2, 3, 4))], 1)}


@dataclass(frozen=True)
class Golden:
    description: str
    value: float
    tolerance: float
    clips: int
    clip: Callable[[int, int], Tensor]


def fails(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.ok is False]


@pytest.fixture(scope="module", autouse=True)
def make_sets_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("walt_pl.evaluation.selftest.synthetic_sets", cache(synthetic_sets))
        yield


@pytest.fixture(scope="module")
def sound() -> list[Check]:
    """Return the checks of a sound extractor."""
    return selftest(TinyExtractor(), FakeFVD)


def test_selftest_of_a_sound_extractor_passes(sound: list[Check]) -> None:
    assert fails(sound) == [] and not has_failed(sound)
    assert [check.name for check in sound] == [
        "a set against itself",
        "two halves of a set",
        *DAMAGES,
        "8 clips against 8",
        "4 clips against 4",
        "2 clips against 2",
    ]
    assert [check.name for check in sound if check.ok is None] == ["frozen frames", "shuffled frames"]
    blur = next(check.figure for check in sound if check.name == "blur over 7 pixels")
    frozen = next(check for check in sound if check.name == "frozen frames")
    assert frozen.wanted == f"reported: {frozen.figure / blur:.2g} of the blur over 7 pixels"


def test_selftest_extracts_80_clips_whatever_the_batch(sound: list[Check]) -> None:
    extractor = TinyExtractor()
    assert [check.figure for check in selftest(extractor, FakeFVD, batch=3)] == pytest.approx([check.figure for check in sound], rel=1e-3)
    assert extractor.seen == 80


@pytest.mark.parametrize(
    ("see", "failing"),
    [
        (lambda videos: videos * 0, "two halves of a set"),
        (lambda videos: videos + torch.rand(()), "a set against itself"),  # dropout that is still on
        (lambda videos: videos * 255 % 16, "noise of 24 levels"),  # bytes that run over
    ],
    ids=["blind", "random", "overflow"],
)
def test_selftest_finds_a_faulty_extractor(see: Callable[[Tensor], Tensor], failing: str) -> None:
    checks = selftest(TinyExtractor(see), FakeFVD)
    assert has_failed(checks) and failing in fails(checks), fails(checks)


def test_selftest_finds_a_distance_that_does_not_grow_with_fewer_clips() -> None:
    class Means(FakeFVD):
        """Without covariances, and with the bias taken away."""

        def compute(self) -> float:
            real, generated = (np.concatenate(self.rows[side]) for side in (True, False))
            return float(((real.mean(0) - generated.mean(0)) ** 2).sum() * len(real) ** 2)

    assert "2 clips against 2" in fails(selftest(TinyExtractor(), Means))


def test_selftest_compares_known_figures() -> None:
    def constant(side: int, _: int) -> Tensor:
        return torch.full((16, 32, 32, 3), 255 * side, dtype=torch.uint8)

    rows = [TinyExtractor()(ClipBatch([constant(side, 0)]))["video_features"] for side in (0, 1)]
    value = float((rows[0] - rows[1]).square().sum())
    known = [
        Golden("black against white", value, 1e-4, 8, constant),
        Golden("another value", value + 1, 0.5, 8, constant),
        Golden("of many clips", 7.5, 0.1, 17, constant),
    ]
    right, wrong, left_out = selftest(TinyExtractor(), FakeFVD, known)[-3:]
    assert right.ok is True and right.figure == pytest.approx(value, rel=1e-5)
    assert wrong.ok is False and left_out.ok is None and left_out.wanted == "7.5; computed with --clips 17"
    assert has_failed([right, wrong]) and not has_failed([right, left_out])


def test_selftest_asks_for_known_clips_in_order() -> None:
    asked: list[tuple[int, int]] = []

    def clip(side: int, number: int) -> Tensor:
        asked.append((side, number))
        return torch.rand(16, 32, 32, 3)

    selftest(TinyExtractor(), FakeFVD, [Golden("noise", 0, 1e9, 10, clip)], batch=4)
    assert asked == [(side, number) for side in (0, 1) for number in range(10)]


def test_selftest_refuses_too_few_clips() -> None:
    with pytest.raises(ValueError, match="--clips must be at least 16, got 15"):
        selftest(TinyExtractor(), FakeFVD, clips=15)


def test_moving_shapes_are_always_the_same_and_move() -> None:
    clip = moving_shapes(3)
    assert clip.shape == (16, 64, 64, 3) and clip.dtype == torch.uint8 and torch.equal(clip, moving_shapes(3))
    assert not torch.equal(clip, moving_shapes(4)) and not torch.equal(clip[0], clip[1])
    frozen, shuffled = DAMAGES["frozen frames"](clip, 0), DAMAGES["shuffled frames"](clip, 0)
    assert (frozen == clip[0]).all() and torch.equal(shuffled.double().sum(0), clip.double().sum(0)) and not torch.equal(shuffled, clip)
    assert (DAMAGES["noise of 24 levels"](clip, 0).double() - clip).std() == pytest.approx(24, rel=0.2)
    flat = torch.full_like(clip, 77)
    assert torch.equal(DAMAGES["blur over 7 pixels"](flat, 0), flat)


def test_render_checks_shows_figure_wanted_and_state(sound: list[Check]) -> None:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render_checks([*sound, Check("wrong", 1.5, "2", False)]))
    lines = captured.get().split("\n")
    assert next(line for line in lines if "frozen" in line).split("│")[-2].strip() == "-"
    assert [cell.strip() for cell in next(line for line in lines if "wrong" in line).split("│")[1:-1]] == ["wrong", "1.5", "2", "NO"]
