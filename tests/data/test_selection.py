"""Selection of clips and their sizes, and the reasons against the others."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from walt_pl.data.selection import Bucket, describe_selection, find_problem, select
from walt_pl.data.transforms import ClipTransform
from walt_pl.media.decode_options import DecodeOptions

FRAMING = ClipTransform(128, frames=17)
BUCKETS = [Bucket(128, 128), Bucket(128, 224), Bucket(224, 128), Bucket(64, 64)]


class Columns:
    """Stands for the rows of an index."""

    def __init__(self, **columns: Any) -> None:
        self.columns = {name: np.asarray(values) for name, values in columns.items()}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, part: slice) -> "Columns":
        return Columns(**{name: values[part] for name, values in self.columns.items()})

    def column(self, name: str) -> np.ndarray[Any, Any]:
        return self.columns[name]


def clips(sizes: list[tuple[int, int]], frames: list[int] | None = None) -> Columns:
    """Clips of heights and widths, 8 frames a second."""
    count = frames or [17] * len(sizes)
    return Columns(
        height=[height for height, _ in sizes],
        width=[width for _, width in sizes],
        frames=count,
        fps=np.full(len(sizes), 8.0, np.float32),
        duration=np.asarray(count) / 8,
    )


def choose(listed: Columns, buckets: list[Bucket] = BUCKETS, quarantined: list[int] | None = None, **settings: Any) -> Any:
    return select({"video": listed}, FRAMING, buckets, {"video": np.array(quarantined or [], np.int64)}, **settings)["video"]  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("height", "width", "bucket"),
    [
        (240, 300, 0),  # 5:4 loses a fifth in the square, more in 7:4
        (240, 320, 1),  # 4:3 loses a little more in the square
        (1080, 1920, 1),
        (1920, 1080, 2),
        (128, 224, 1),  # exactly
        (127, 224, 3),  # would be enlarged a little; the small square does not
        (64, 64, 3),
        (63, 500, -1),
        (0, 0, -1),
    ],
)
def test_select_puts_a_clip_where_it_loses_least_and_never_enlarges_it(height: int, width: int, bucket: int) -> None:
    assert choose(clips([(height, width)])).bucket.tolist() == [bucket]


def test_select_takes_the_largest_bucket_of_equal_aspect_that_fits() -> None:
    squares = [Bucket(64, 64), Bucket(256, 256), Bucket(128, 128)]
    assert choose(clips([(300, 300), (200, 220), (64, 80)]), squares).bucket.tolist() == [1, 2, 0]


def test_select_gives_a_reason_for_every_unused_clip() -> None:
    listed = clips([(240, 300), (240, 300), (240, 300), (20, 20), (0, 0), (240, 300)], frames=[17, 16, 30, 99, 99, 17])
    found = choose(listed, quarantined=[2, 3], limit=1)
    assert found.used == 1 and found.positions().tolist() == [0]
    wanted = {"too short": 1, "quarantined": 2, "without width and height in the index": 1, "beyond the first ones that were asked for": 1}
    assert found.left_out() == wanted
    assert found.used + sum(wanted.values()) == len(listed)
    lines = describe_selection("train", {"video": found}, BUCKETS, FRAMING)
    assert "train: 1 of 6 videos used" in lines[0] and "1 too short (fewer than 17 frames)" in lines[0]
    assert "  128 x 128: 1 videos" in lines


def test_select_bucket_of_a_clip_does_not_depend_on_the_quarantine() -> None:
    listed = clips([(240, 300)] * 4 + [(128, 224)] * 4)
    free, held = choose(listed), choose(listed, quarantined=[1, 5])
    assert np.array_equal(free.bucket, held.bucket)
    items = held.items(1)
    assert list(items.positions) == [4, 5, 6, 7] and items.quarantined() == [5] and items.used == 3


def test_select_with_one_size_takes_everything() -> None:
    found = choose(clips([(20, 20), (0, 0), (999, 20)]), BUCKETS[:1])
    assert found.bucket.tolist() == [0, 0, 0] and found.left_out() == {}
    assert found.items(0).positions == range(3)


def test_select_moves_videos_out_of_a_bucket_without_images() -> None:
    videos, images = clips([(240, 320), (240, 420)]), clips([(240, 240)], frames=[1])
    none = {"video": np.empty(0, np.int64), "image": np.empty(0, np.int64)}
    found = select({"video": videos, "image": images}, FRAMING, BUCKETS[:2], none)  # type: ignore[dict-item]
    assert found["video"].bucket.tolist() == [0, 0]


def test_select_names_videos_and_images_that_share_no_size() -> None:
    videos, images = clips([(128, 224)]), clips([(100, 100)], frames=[1])
    none = {"video": np.empty(0, np.int64), "image": np.empty(0, np.int64)}
    found = select({"video": videos, "image": images}, FRAMING, [Bucket(128, 224), Bucket(100, 100)], none)  # type: ignore[dict-item]
    # The video fits the small square, too; nothing is alone as long as there is one size for both.
    assert found["video"].bucket.tolist() == [1] and found["image"].bucket.tolist() == [1]
    wide, tall = clips([(64, 400)]), clips([(400, 64)], frames=[1])
    apart = select({"video": wide, "image": tall}, FRAMING, [Bucket(64, 300), Bucket(300, 64)], none)  # type: ignore[dict-item]
    for number, selection in enumerate(apart.values()):
        assert selection.left_out() == {} and selection.bucket.tolist() == [number], "each has the size that it fits by itself"
    assert find_problem(apart, "train", every_kind=True).startswith('no size of data.buckets has both videos and images of split "train"; ')
    assert find_problem(apart, "val", every_kind=False) == ""
    small = select({"video": videos, "image": images}, FRAMING, [Bucket(128, 224), Bucket(128, 128)], none)  # type: ignore[dict-item]
    assert small["image"].left_out() == {"smaller than every size of data.buckets": 1} and small["video"].used == 1


def test_select_calls_a_clip_alone_where_it_fits_only_sizes_without_the_other_kind() -> None:
    videos, images = clips([(32, 400), (64, 64), (8, 8), (32, 400)], frames=[17, 17, 17, 3]), clips([(64, 64)], frames=[1])
    none = {"video": np.empty(0, np.int64), "image": np.empty(0, np.int64)}
    buckets = [Bucket(64, 64), Bucket(16, 300)]
    found = select({"video": videos, "image": images}, FRAMING, buckets, none)  # type: ignore[dict-item]
    alone = "alone: the sizes of data.buckets that it fits have nothing of the other kind"
    assert found["video"].left_out() == {"too short": 1, "smaller than every size of data.buckets": 1, alone: 1}
    assert found["video"].bucket.tolist() == [-1, 0, -1, -1] and found["image"].used == 1
    assert find_problem(found, "train", every_kind=True) == ""


def test_select_judges_each_clip_by_itself_where_the_other_kind_is_missing() -> None:
    videos, images = clips([(64, 64), (32, 400), (8, 8)]), clips([])
    none = {"video": np.empty(0, np.int64), "image": np.empty(0, np.int64)}
    found = select({"video": videos, "image": images}, FRAMING, [Bucket(64, 64), Bucket(16, 300)], none)  # type: ignore[dict-item]
    assert found["video"].bucket.tolist() == [0, 1, -1] and found["video"].used == 2
    assert find_problem(found, "train", every_kind=True) == 'no image of split "train" can be used'
    assert find_problem(found, "val", every_kind=False) == ""


def test_select_counts_length_in_seconds_when_clips_are_sampled_by_time() -> None:
    clip_transform = ClipTransform(128, frames=17, fps=4.0)  # 16 steps of a quarter of a second: from frame 0 to frame 32 at 8 fps
    listed = clips([(240, 320)] * 2, frames=[32, 33])
    found = select({"video": listed}, clip_transform, BUCKETS, {"video": np.empty(0, np.int64)})["video"]  # type: ignore[dict-item]
    assert found.left_out() == {"too short": 1} and found.positions().tolist() == [1]
    assert "fewer than 17 frames at 4 a second" in describe_selection("train", {"video": found}, BUCKETS, clip_transform)[0]


def test_select_of_a_million_rows_takes_less_than_five_seconds() -> None:
    rng = np.random.default_rng(0)
    count = 1_000_000
    listed = Columns(
        height=rng.integers(100, 1000, count, np.int32),
        width=rng.integers(100, 1000, count, np.int32),
        frames=rng.integers(1, 400, count, np.int32),
        fps=np.full(count, 25, np.float32),
        duration=np.full(count, 8, np.float32),
    )
    began = time.process_time()
    found = choose(listed)
    assert time.process_time() - began < 5
    assert found.used + sum(found.left_out().values()) == count


def test_select_uses_the_rows_of_a_real_index(painted: Path) -> None:
    from walt_pl.data.index import Index

    index = Index(painted, "train")
    found = select({"video": index.videos}, FRAMING, BUCKETS, {"video": np.empty(0, np.int64)})["video"]
    assert found.used == len(index.videos) and set(found.bucket.tolist()) == {0}


def test_select_leaves_out_entries_above_max_pixels_with_a_reason() -> None:
    clip_transform = ClipTransform(128, frames=17, decoding=DecodeOptions(240 * 320))
    listed = clips([(240, 320), (241, 320), (65536, 65536)])
    found = select({"video": listed}, clip_transform, BUCKETS[:1], {"video": np.empty(0, np.int64)})["video"]  # type: ignore[dict-item]
    assert found.used == 1 and found.bucket.tolist() == [0, -1, -1]
    assert found.left_out() == {"of more than data.max_pixels rows x columns": 2}
    with pytest.raises(ValueError, match=r"data\.max_pixels must be at least 1, got 0"):
        DecodeOptions(0)


def labelled(labels: list[int], **columns: Any) -> Columns:
    return Columns(**{**clips([(240, 300)] * len(labels)).columns, "label": labels, **columns})


def test_select_leaves_out_labels_that_the_model_has_no_class_for() -> None:
    found = choose(labelled([0, 4, 5, -1, -7, 2**31 - 1]), num_classes=5)
    assert found.positions().tolist() == [0, 1] and found.bucket.tolist() == [0, 0, -1, -1, -1, -1]
    assert found.left_out() == {"without a label": 2, "with a label outside of the model's classes": 2}


def test_select_counts_no_clip_without_a_class_into_a_limit() -> None:
    assert choose(labelled([-1, 0, 9, 1, 2]), num_classes=3, limit=2).positions().tolist() == [1, 3]


def test_select_quarantine_is_the_reason_of_a_clip_without_a_class() -> None:
    assert choose(labelled([-1, 0]), num_classes=3, quarantined=[0]).left_out() == {"quarantined": 1}


def test_select_labels_do_not_matter_without_classes_and_change_nothing_where_they_fit() -> None:
    free, bound = choose(labelled([0, -1, 2, 7])), choose(labelled([0, 1, 2, 7]), num_classes=8)
    assert free.used == 4
    assert (free.bucket.tolist(), free.reason.tolist()) == (bound.bucket.tolist(), bound.reason.tolist())
