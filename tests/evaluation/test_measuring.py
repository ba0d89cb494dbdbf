"""A measurement goes on where it stopped, computes each block once, and gives one figure on any number of processes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.measured_clips import (
    PROTOCOL,
    Differences,
    Distance,
    Means,
    NumberedClips,
    PairDifference,
    drawn,
    measure_as_process,
    measure_numbered,
)
from tests.helpers.starts import launch
from walt_pl.evaluation.card import MetricCard
from walt_pl.evaluation.measuring import UNREADABLE_PAIRS, measure
from walt_pl.evaluation.rows import MeasureOptions
from walt_pl.evaluation.source import ClipDraw, ReadClips
from walt_pl.metrics.extractor import ClipBatch
from walt_pl.sampling.overlapped_decoding import overlap


def untimed(card: MetricCard) -> dict[str, Any]:
    return {name: value for name, value in json.loads(json.dumps(card.to_plain())).items() if name not in ("seconds", "date", "program")}


def rows_of(folder: Path) -> dict[str, dict[str, bytes]]:
    """Rows on disk by file, without their seconds."""
    found = {}
    for path in sorted(folder.rglob("rows.safetensors")):
        tensors = load_file(path)
        found[path.relative_to(folder).as_posix()] = {
            name: tensors[name].numpy().tobytes() for name in sorted(tensors) if name != "seconds"
        }
    return found


def test_measure_reads_each_block_once_and_gives_the_figure_of_all_rows(tmp_path: Path) -> None:
    real, generated, extractor = NumberedClips("a"), NumberedClips("b"), Means()
    card = measure_numbered(tmp_path, real=real, generated=generated, extractor=extractor)
    values = torch.arange(24, dtype=torch.float64) / 7, (torch.arange(20, dtype=torch.float64) + 100) / 7
    folds = []
    for fold in range(2):
        a, b = values[0][fold * 12 : fold * 12 + 12], values[1][fold * 10 : fold * 10 + 10]
        folds.append(float(torch.stack([a.mean() - b.mean(), a.square().mean() - b.square().mean()]).norm()))
    assert card.value == pytest.approx(sum(folds) / 2, rel=1e-6) and card.error.values == pytest.approx(tuple(folds), rel=1e-6)
    assert generated.reads == [list(range(at, at + 4)) for at in range(0, 20, 4)]
    assert extractor.computed == [*range(24), *range(100, 120)]
    assert card.real is not None and card.real["left_out"] == {"short": 3} and card.real["clips"] == 24
    assert card.generated == {"kind": "numbered", "name": "b", "clips": 20, "left_out": {}} and card.preset == "p"
    assert card.program["processes"] == 1 and torch.__version__.startswith(card.program["torch"]) and card.seconds > 0
    assert not list(tmp_path.rglob("blocks")), "blocks are removed once they are joined"


class WorksAhead(NumberedClips):
    """Reads a block ahead, as samples of a run do on a GPU, and notes the blocks that it is asked for and whether it was closed."""

    asked: list[list[int]]
    closed = False

    def read_blocks(
        self, blocks: Sequence[Sequence[ClipDraw]], frames: int, stride: int, size: tuple[int, int] | None
    ) -> Iterator[ReadClips]:
        self.asked = [[draw.item for draw in draws] for draws in blocks]
        try:
            yield from overlap(blocks, lambda draws: self.read(draws, frames, stride, size), lambda read: lambda: read)
        finally:
            self.closed = True


def test_measure_asks_a_source_for_all_missing_blocks_at_once(tmp_path: Path) -> None:
    """The rows are those of a source that reads one block at a time; a stop keeps the blocks before the one that failed."""
    wanted = measure_numbered(tmp_path / "plain")
    stopped = WorksAhead("b", stop_at=13)
    with pytest.raises(InterruptedError):
        measure_numbered(tmp_path / "ahead", generated=stopped)
    assert stopped.asked == [list(range(at, at + 4)) for at in range(0, 20, 4)] and stopped.closed
    rest = WorksAhead("b")
    card = measure_numbered(tmp_path / "ahead", generated=rest)
    assert rest.asked == [[12, 13, 14, 15], [16, 17, 18, 19]] == rest.reads and rest.closed
    assert untimed(card) == untimed(wanted) and rows_of(tmp_path / "ahead" / "work") == rows_of(tmp_path / "plain" / "work")


def test_measure_closes_its_source_where_an_extractor_fails(tmp_path: Path) -> None:
    class Fails(Means):
        def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
            if int(batch.clips[0][0, 0, 0, 0]) == 104:
                raise ValueError("refuses the clip")
            return super().__call__(batch)

    source = WorksAhead("b")
    with pytest.raises(ValueError, match="refuses the clip") as caught:
        measure_numbered(tmp_path, generated=source, extractor=Fails())
    assert source.closed and len(source.reads) <= 4, "while the error, whose frames hold the source, is still there"
    assert caught.tb is not None


def test_measure_uses_rows_again_only_for_equal_clips_and_extractors(tmp_path: Path) -> None:
    first = measure_numbered(tmp_path)
    for changed, real_reads, generated_reads in (
        ({}, 0, 0),
        ({"batch": 5}, 0, 0),
        ({"extractor": Means("1")}, 6, 5),
        ({"generated": NumberedClips("c")}, 0, 5),
        ({"real": NumberedClips("c")}, 6, 0),
    ):
        real, generated = changed.pop("real", NumberedClips("a")), changed.pop("generated", NumberedClips("b"))
        card = measure_numbered(tmp_path, real=real, generated=generated, **changed)
        assert (len(real.reads), len(generated.reads)) == (real_reads, generated_reads), changed
        if real_reads == generated_reads == 0:
            assert untimed(card) == untimed(first)


@pytest.mark.parametrize("change", [{"frames": 3}, {"stride": 2}, {"size": (5, 4)}, {"seed": 1}])
def test_measure_reads_again_only_where_the_protocol_changes_the_pixels(tmp_path: Path, change: dict[str, Any]) -> None:
    options = MeasureOptions(tmp_path, tmp_path, 4)
    for protocol in (PROTOCOL, replace(PROTOCOL, **change)):
        source, made = NumberedClips("a"), NumberedClips("b")
        measure([Distance], source, made, drawn(24), drawn(20), protocol, None, [Means()], options)
    assert bool(source.reads) == ("seed" not in change), "a seed changes the draws, which are those of the caller here"
    moved = NumberedClips("a")
    shifted = drawn(25)
    measure([Distance], moved, made, replace(shifted, draws=shifted.draws[1:]), drawn(20), PROTOCOL, None, [Means()], options)
    assert moved.reads, "other draws"


def test_measure_goes_on_after_an_error(tmp_path: Path) -> None:
    undisturbed = measure_numbered(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        measure_numbered(tmp_path / "part", generated=NumberedClips("b", stop_at=13))
    again, extractor = NumberedClips("b"), Means()
    card = measure_numbered(tmp_path / "part", generated=again, extractor=extractor)
    assert untimed(card) == untimed(undisturbed)
    assert again.reads == [[12, 13, 14, 15], [16, 17, 18, 19]] and extractor.computed == [*range(112, 120)]


def test_measure_on_two_processes_equals_one_also_after_a_kill(tmp_path: Path) -> None:
    """Kill a single process in its fourth block; two processes then compute the rest."""
    alone = measure_numbered(tmp_path / "alone")
    paths = str(tmp_path / "both"), str(tmp_path / "card")
    assert launch(measure_as_process, *paths, 113).wait() == -9
    started = launch(measure_as_process, *paths, ranks=2)
    assert started.wait() == 0, started.said
    cards = [json.loads((tmp_path / f"card.{rank}").read_text()) for rank in range(2)]
    for card in cards:
        assert {name: card["card"][name] for name in ("value", "error", "real", "generated")} == {
            name: untimed(alone)[name] for name in ("value", "error", "real", "generated")
        }
        assert card["card"]["program"]["processes"] == 2
    assert [card["reads"] for card in cards] == [[[16, 17, 18, 19]], [[12, 13, 14, 15]]], "blocks 0, 1 and 2 were there"
    assert rows_of(tmp_path / "both") == rows_of(tmp_path / "alone")


def test_measure_counts_clips_that_cannot_be_read_and_takes_the_preset_away(tmp_path: Path) -> None:
    card = measure_numbered(tmp_path, generated=NumberedClips("b", broken=[0, 1, 2, 3, 18]))
    assert card.generated["clips"] == 15 and card.generated["left_out"] == {"unreadable": 5} and card.preset is None
    assert card.generated["unreadable"] == ["0.mp4 is broken", "1.mp4 is broken", "2.mp4 is broken"]
    figures = [value / 7 for value in [*range(104, 110), *range(110, 118), 119]], [value / 7 for value in range(24)]
    folds = []
    for a, b in ((figures[0][:6], figures[1][:12]), (figures[0][6:], figures[1][12:])):
        folds.append(np.hypot(np.mean(a) - np.mean(b), np.mean(np.square(a)) - np.mean(np.square(b))))
    assert card.value == pytest.approx(np.mean(folds)), "rows of zeros count in no figure"


def test_measure_reads_clips_again_that_could_not_be_read_before(tmp_path: Path) -> None:
    measure_numbered(tmp_path, generated=NumberedClips("b", broken=[2, 18]))
    mended = [NumberedClips("b", broken=[2]), NumberedClips("b"), NumberedClips("b")]
    cards = [measure_numbered(tmp_path, generated=source) for source in mended]
    assert [source.reads for source in mended] == [[[0, 1, 2, 3], [16, 17, 18, 19]], [[0, 1, 2, 3]], []]
    assert cards[0].generated["clips"] == 19
    assert untimed(cards[1]) == untimed(cards[2]) == untimed(measure_numbered(tmp_path / "undisturbed"))


def test_measure_refuses_sides_of_which_no_clip_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^generated clips: none of the 20 can be read \(0\.mp4 is broken\)$"):
        measure_numbered(tmp_path, generated=NumberedClips("b", broken=range(20)))


def test_measure_refuses_rows_that_are_not_finite(tmp_path: Path) -> None:
    class Infinite(Means):
        def __call__(self, batch: Any) -> dict[str, torch.Tensor]:
            return {"video_features": super().__call__(batch)["video_features"] / 0}

    with pytest.raises(ValueError, match="means: its video_features of a real clip are not finite"):
        measure_numbered(tmp_path, extractor=Infinite())


def distance_of_whole_pairs() -> float:
    """Distance of the pairs that are neither 2, 4 nor 5, by numpy."""
    values = [[item + shift for item in range(20) if item not in (2, 4, 5)] for shift in (0, 100)]
    folds = []
    for part in (slice(7), slice(7, 17)):
        means = [[np.mean(np.array(side[part]) / 7), np.mean(np.square(np.array(side[part]) / 7))] for side in values]
        folds.append(np.linalg.norm(np.subtract(*means)))
    return float(np.mean(folds))


def test_measure_refuses_pairs_of_which_none_is_whole(tmp_path: Path) -> None:
    real, made = NumberedClips("a", broken=range(10)), NumberedClips("b", broken=range(10, 20))
    protocol, options = replace(PROTOCOL, real_clips=10, paired=True), MeasureOptions(tmp_path, tmp_path, 4)
    with pytest.raises(ValueError, match=r"no pair of which both clips can be read \(0\.mp4 is broken; 1"):
        measure([Distance], real, made, drawn(20), drawn(20), protocol, None, [Means()], options)


def test_measure_gives_metrics_of_pairs_the_real_clip_of_each_position(tmp_path: Path) -> None:
    options, both = MeasureOptions(tmp_path, tmp_path, 4), [Means(), Differences()]
    real, made = NumberedClips("a", broken=[2]), NumberedClips("b", broken=[4, 5])
    protocol = replace(PROTOCOL, real_clips=10, paired=True)
    cards = measure([Distance, PairDifference], real, made, drawn(20), drawn(20), protocol, "p", both, options)
    assert cards[1].value == 100 and cards[1].generated["left_out"] == {UNREADABLE_PAIRS: 3}
    assert cards[1].real is not None and cards[1].real["clips"] == 17 and cards[0].real is not None and cards[0].real["clips"] == 17
    assert cards[0].value == pytest.approx(distance_of_whole_pairs(), rel=1e-5), "the distance is of the same pairs"
    assert cards[1].real["left_out"] == {} and "unreadable" not in cards[1].real
    assert cards[1].generated["unreadable"] == ["2.mp4 is broken", "4.mp4 is broken", "5.mp4 is broken"]
    assert made.reads == [list(range(at, at + 4)) for at in range(0, 20, 4)], "one reading for both extractors"
    alone = NumberedClips("b")
    with pytest.raises(ValueError, match="name the real clips with --real"):
        measure([PairDifference], None, alone, None, drawn(20), protocol, None, [Differences("1")], options)
    with pytest.raises(ValueError, match="pair_difference compares pairs, but there are 20 generated clips and 19 real ones"):
        measure([PairDifference], real, alone, drawn(19), drawn(20), protocol, None, both, options)
    with pytest.raises(ValueError, match="distance compares with real clips, and there are none: name them with --real"):
        measure([Distance], None, alone, None, drawn(20), PROTOCOL, None, both, options)
