"""The clips that each protocol takes: written out in golden_draws.json, and checked against its definition.

After a wanted change of the draws: ``python tests/evaluation/test_draws.py`` writes the file again. Figures from before are then others.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from walt_pl.evaluation.draws import draw_generated, draw_pairs, draw_real
from walt_pl.evaluation.source import ClipDraw, ClipSource, Drawn, ReadClips
from walt_pl.metrics.protocol import PRESETS, EvaluationProtocol

GOLDEN = Path(__file__).with_name("golden_draws.json")
LENGTHS = [12 + 37 * number % 289 for number in range(2600)]
"""Frames of 2,600 videos, 36 of them shorter than 16."""


class FakeSource(ClipSource):
    """A source of given lengths and names, with no pixels."""

    def __init__(self, lengths: Sequence[int], names: Sequence[str] = (), split: str | None = None) -> None:
        self._lengths = lengths
        self._names = names or [f"{number}.mp4" for number in range(len(lengths))]
        self._split = split

    def __len__(self) -> int:
        return len(self._lengths)

    def facts(self) -> dict[str, Any]:
        return {"kind": "index" if self._split else "folder", "path": "a.parquet" if self._split else "clips", "split": self._split}

    def lengths(self) -> Sequence[int]:
        return self._lengths

    def names(self) -> Sequence[str]:
        return self._names

    def left_out(self) -> dict[str, int]:
        return {"hidden files": 2}

    def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: tuple[int, int] | None) -> ReadClips:
        nothing: list[Tensor | None] = [None] * len(draws)
        return ReadClips(nothing)


def describe(drawn: Drawn) -> dict[str, Any]:
    draws = np.array(drawn.draws, "<i8")
    return {
        "count": len(draws),
        "first": draws[:20].tolist(),
        "last": draws[-5:].tolist(),
        "sha256": hashlib.sha256(draws.tobytes()).hexdigest(),
        "left_out": drawn.left_out,
    }


def draw_preset(name: str) -> Drawn:
    return draw_real(FakeSource([1] * 2600 if PRESETS[name].frames == 1 else LENGTHS), PRESETS[name])


@pytest.mark.parametrize("name", PRESETS)
def test_draw_real_of_each_preset_is_that_of_the_golden_file(name: str) -> None:
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert set(expected) == set(PRESETS)
    assert describe(draw_preset(name)) == expected[name]


def test_draw_real_magvit_passes_over_all_videos_with_new_offsets() -> None:
    draws = draw_preset("magvit_ucf").draws
    usable = {item for item, length in enumerate(LENGTHS) if length >= 16}
    assert len(draws) == 40_000
    passes = [draws[begin : begin + len(usable)] for begin in range(0, 3 * len(usable), len(usable))]
    assert all({draw.item for draw in part} == usable and len(part) == len(usable) for part in passes)
    assert len({tuple(draw.item for draw in part) for part in passes}) == 3
    starts = [dict(part) for part in passes]
    assert np.mean([starts[0][item] != starts[1][item] for item in usable]) > 0.9
    assert all(0 <= draw.start <= LENGTHS[draw.item] - 16 for draw in draws)
    shares = [draw.start / (LENGTHS[draw.item] - 16) for draw in draws if LENGTHS[draw.item] > 216]
    assert abs(np.mean(shares) - 0.5) < 0.01 and min(shares) == 0 and max(shares) == 1


def test_draw_real_k600_takes_six_even_clips_of_each_video() -> None:
    drawn = draw_real(FakeSource([16, 31, 116]), replace(PRESETS["k600"], real_clips=9, folds=2))
    assert sorted(drawn.draws) == [(0, 0)] * 6 + [(1, start) for start in (0, 3, 6, 9, 12, 15)] + [(2, 20 * k) for k in range(6)]


def test_draw_real_spread_of_one_clip_is_the_middle() -> None:
    protocol = EvaluationProtocol(real_clips=2, frames=16, start="spread")
    assert sorted(draw_real(FakeSource([16, 117]), protocol).draws) == [(0, 0), (1, 50)]


def test_draw_real_stylegan_v_takes_the_first_videos_by_name_once() -> None:
    draws = draw_preset("stylegan_v").draws
    usable = [item for item, length in enumerate(LENGTHS) if length >= 16]
    assert [draw.item for draw in draws] == usable[:2048]
    assert len({draw.start for draw in draws}) > 100


@pytest.mark.parametrize("large", [0, 1 << 21], ids=["permuted", "drawn"])
def test_draw_real_window_takes_different_windows_in_proportion_to_length(large: int) -> None:
    protocol = EvaluationProtocol(real_clips=1000, frames=16, start="window")
    lengths = [15, 16, 115 + large, 1015 + 10 * large]
    draws = draw_real(FakeSource(lengths), protocol).draws
    assert len(set(draws)) == 1000
    counts = Counter(draw.item for draw in draws)
    assert counts[0] == 0 and 0.05 < counts[2] / counts[3] < 0.15
    assert all(0 <= draw.start <= lengths[draw.item] - 16 for draw in draws)
    starts = [draw.start for draw in draws if draw.item == 3]
    assert abs(np.mean(starts) / (lengths[3] - 16) - 0.5) < 0.05
    fewer = draw_real(FakeSource(lengths), replace(protocol, real_clips=100)).draws
    assert fewer == draws[:100]


@pytest.mark.parametrize("name", ["magvit_ucf", "k600", "stylegan_v", "tats", "common_metrics"])
def test_draw_real_first_clips_do_not_depend_on_their_number(name: str) -> None:
    fewer = draw_real(FakeSource(LENGTHS), replace(PRESETS[name], real_clips=50, folds=1)).draws
    assert fewer == draw_preset(name).draws[:50]


def test_draw_real_seeds_differ_and_a_seed_repeats_itself() -> None:
    one, again, other = (draw_real(FakeSource(LENGTHS), replace(PRESETS["tats"], seed=seed)).draws for seed in (1, 1, 2))
    assert one == again != other


def test_draw_real_of_every_clip_takes_each_video_once() -> None:
    protocol = EvaluationProtocol(real_clips=None, frames=16, start="first")
    assert sorted(draw_real(FakeSource(LENGTHS), protocol).draws) == [(i, 0) for i, length in enumerate(LENGTHS) if length >= 16]


def test_draw_real_counts_what_is_left_out_by_reason() -> None:
    drawn = draw_real(FakeSource([0, 1, 12, 30, 31, 90]), EvaluationProtocol(real_clips=2, frames=16, stride=2))
    assert {draw.item for draw in drawn.draws} == {4, 5}
    reasons = {"images, where the protocol wants videos": 1, "cannot be read": 1, "shorter than 31 frames": 2}
    assert drawn.left_out == {"hidden files": 2, **reasons}


def test_draw_real_of_images_leaves_out_videos_unless_there_is_nothing_else() -> None:
    protocol = EvaluationProtocol(real_clips=2, frames=1)
    mixed = draw_real(FakeSource([1, 20, 1]), protocol)
    assert {draw.item for draw in mixed.draws} == {0, 2}
    assert mixed.left_out == {"hidden files": 2, "videos, where the protocol wants images": 1}
    assert {draw.item for draw in draw_real(FakeSource([20, 30]), protocol).draws} == {0, 1}


@pytest.mark.parametrize(
    ("lengths", "split", "changes", "message"),
    [
        ([40] * 9, "train", {}, r"found 9 clips in a\.parquet split train .*the protocol wants 2,048: index more, .* with --clips 9$"),
        ([40] * 9 + [3], None, {}, r"found 9 clips in clips \(left out: 2 hidden files, 1 shorter than 16 frames\), .*: add more, or"),
        ([40] * 9, None, {"folds": 4}, r"the protocol wants 4 x 2,048 = 8,192: .* --clips 2 --folds 4$"),
        ([40] * 3, None, {"folds": 4}, r"--folds 1 --clips 3$"),
        ([3] * 9, None, {}, r"found 0 clips in clips .*: add clips that are long enough, or give --frames$"),
    ],
)
def test_draw_real_and_generated_of_too_few_clips_say_what_to_type(
    lengths: list[int], split: str | None, changes: dict[str, int], message: str
) -> None:
    for draw in (draw_real, draw_generated):
        with pytest.raises(ValueError, match=message):
            draw(FakeSource(lengths, split=split), EvaluationProtocol(**changes))  # type: ignore[arg-type]


def test_draw_real_that_repeats_wants_one_clip_at_least() -> None:
    with pytest.raises(ValueError, match=r"found 0 clips"):
        draw_real(FakeSource([3]), PRESETS["magvit_ucf"])
    assert len(draw_real(FakeSource([40]), replace(PRESETS["magvit_ucf"], real_clips=25)).draws) == 100


def test_draw_generated_takes_the_first_clips_in_order_and_counts_the_rest() -> None:
    drawn = draw_generated(FakeSource([17, 17, 9, 17, 17, 17]), EvaluationProtocol(clips=2, folds=2, stride=3))
    assert drawn.draws == [(0, 0), (1, 0), (3, 0), (4, 0)]
    assert drawn.left_out == {"hidden files": 2, "shorter than 16 frames": 1, "beyond the 4 that the protocol takes": 1}


def test_draw_pairs_finds_the_real_clip_by_name() -> None:
    real = FakeSource([40, 40, 9, 40], ["x/a.avi", "x/b.avi", "x/c.avi", "x/d.avi"])
    generated = FakeSource([16, 16, 16], ["d.mp4", "c.mp4", "a.mp4"])
    ours, theirs = draw_pairs(real, generated, EvaluationProtocol(clips=2, paired=True))
    assert theirs.draws == [(0, 0), (2, 0)] and ours.draws == [(3, 0), (0, 0)]
    assert theirs.left_out["the real clip of the pair cannot be used"] == 1
    assert ours.left_out == {"hidden files": 2, "shorter than 16 frames": 1, "in no pair that is taken": 1}


def test_draw_pairs_goes_by_order_only_where_no_name_is_on_both_sides() -> None:
    protocol = EvaluationProtocol(clips=3, paired=True)
    ours, theirs = draw_pairs(FakeSource([16] * 3, ["a.avi", "b.avi", "c.avi"]), FakeSource([16] * 3), protocol)
    assert ours.draws == theirs.draws == [(0, 0), (1, 0), (2, 0)]
    for names in (["a.mp4", "b.mp4", "x.mp4"], ["x.mp4", "y.mp4"]):
        with pytest.raises(ValueError, match=r'cannot be paired: \d generated, 3 real, no real clip of the name "x"'):
            draw_pairs(FakeSource([16] * 3, ["a.avi", "b.avi", "c.avi"]), FakeSource([16] * len(names), names), protocol)


def test_draw_pairs_keeps_equal_names_of_different_folders_apart() -> None:
    names = ["walk/1.mp4", "run/1.mp4"]
    ours, _ = draw_pairs(FakeSource([16] * 2, names), FakeSource([16] * 2, names[::-1]), EvaluationProtocol(clips=2, paired=True))
    assert ours.draws == [(1, 0), (0, 0)]


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(describe(draw_preset(name)))}" for name in PRESETS]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
