"""The draw of one of several captions."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from walt_pl.data.batch import Kind, SampleRef
from walt_pl.data.caption_draw import draw_caption
from walt_pl.data.index import IndexEntry
from walt_pl.data.transforms import draw_view

WORDS = ("one", "two", "three", "four")
ENTRY = IndexEntry(Path("a.mp4"), "video", 9, 8.0, 64, 64, WORDS[0], -1, "train", 1, more_captions=WORDS[1:])


def drawn(epochs: int, item: int = 0, seed: int = 0, kind: Kind = "video") -> list[str]:
    return [draw_caption(ENTRY, SampleRef(kind, item, epoch, 0), seed) for epoch in range(epochs)]


def test_draw_caption_gives_each_caption_as_often() -> None:
    found = drawn(4000)
    assert stats.chisquare([found.count(word) for word in WORDS]).pvalue > 0.001
    pairs = [WORDS.index(a) * 4 + WORDS.index(b) for a, b in pairwise(found)]
    assert stats.chisquare(np.bincount(pairs, minlength=16)).pvalue > 0.001, "one epoch says nothing about the next"


def test_draw_caption_depends_on_seed_epoch_item_and_kind_alone() -> None:
    assert drawn(50) == drawn(50)
    others = [drawn(50, item=1), drawn(50, seed=1), drawn(50, kind="image")]
    assert all(other != drawn(50) for other in others)
    for place, bucket in ((0, 0), (7, 1)):
        assert draw_caption(ENTRY, SampleRef("video", 3, 5, place, bucket), 2) == drawn(6, item=3, seed=2)[5]


def test_draw_caption_is_independent_of_the_view() -> None:
    mirrored = [draw_view("video", 0, epoch, 8).mirrored for epoch in range(1, 4001)]
    counts = np.zeros((2, 4))
    for flip, word in zip(mirrored, drawn(4001)[1:], strict=True):
        counts[int(flip), WORDS.index(word)] += 1
    assert stats.chi2_contingency(counts).pvalue > 0.001


@pytest.mark.parametrize("seed", [0, None])
def test_draw_caption_of_validation_and_of_single_captions_is_the_first(seed: int | None) -> None:
    entry = ENTRY if seed is None else replace(ENTRY, more_captions=())
    assert {draw_caption(entry, SampleRef("video", 0, epoch, 0), seed) for epoch in range(20)} == {"one"}
