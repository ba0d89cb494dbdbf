"""The analytic scorer as an extractor and a metric."""

from pathlib import Path

import pytest
import torch

from walt_pl.data.index import Index
from walt_pl.evaluation.run_source import to_pixels
from walt_pl.metrics.extractor import ClipBatch
from walt_pl.shapes.evaluation import read_clips
from walt_pl.shapes.scorer import score
from walt_pl.shapes.scorer_metric import ShapesExtractor, ShapesScore


@pytest.fixture(scope="module")
def batch(painted: Path) -> ClipBatch:
    entries = list(Index(painted, "val").videos)
    return ClipBatch(list(to_pixels(read_clips(entries, 64))), captions=[entry.caption for entry in entries])


def test_shapes_extractor_reads_painted_clips_as_their_captions_say(batch: ClipBatch) -> None:
    rows = ShapesExtractor()(batch)["shapes"]
    assert rows.dtype == torch.float32 and torch.equal(rows, torch.ones(len(batch), 4))
    metric = ShapesScore()
    for block in rows.split(2):
        metric.update(block, real=False)
    assert metric.compute() == 1.0


def test_shapes_score_is_the_share_that_the_scorer_gives(batch: ClipBatch) -> None:
    """Clips beside the captions of their neighbours, and one clip that runs backwards."""
    clips, captions = [batch.clips[0].flip(0), *batch.clips[1:]], [batch.captions[0], *batch.captions[2:], batch.captions[1]]
    rows = ShapesExtractor()(ClipBatch(clips, captions=captions))["shapes"]
    expected = score(torch.stack(clips).permute(0, 4, 1, 2, 3) / 127.5 - 1, captions)
    assert rows.mean(dim=0).tolist() == pytest.approx([expected[word] for word in ("colour", "motion", "shape", "texture")])
    assert rows[0].tolist() == [1, 0, 1, 1], "backwards, the motion alone is wrong"
    metric = ShapesScore()
    metric.update(rows, real=False)
    assert metric.compute() == pytest.approx(expected["all"]) and 0 < rows.mean() < 1


def test_shapes_extractor_reads_no_texture_below_64_pixels(batch: ClipBatch) -> None:
    small = [clip[:, ::2, ::2] for clip in batch.clips]
    rows = ShapesExtractor()(ClipBatch(small, captions=batch.captions))["shapes"]
    assert rows[:, 3].sum() == 0 and rows[:, :3].sum() > 0


def test_shapes_extractor_refuses_clips_without_captions_of_the_embedded_set(batch: ClipBatch) -> None:
    with pytest.raises(ValueError, match=r"wanted the caption of each of 6 clips, got 0"):
        ShapesExtractor()(ClipBatch(batch.clips))
    with pytest.raises(ValueError, match="a dog"):
        ShapesExtractor()(ClipBatch(batch.clips[:1], captions=["a dog"]))
    with pytest.raises(ValueError, match="wanted at least one clip"):
        ShapesScore().compute()
