"""Order, ranks and resuming of the joint sampler."""

from collections import Counter

import numpy as np
import pytest

from walt_pl.data.batch import SampleRef
from walt_pl.data.permutation import EndlessPermutation
from walt_pl.data.sampler import BucketItems, JointSampler, SequentialSampler, take_whole_units


def random_case(rng: np.random.Generator) -> dict[str, int]:
    ranks = int(rng.integers(1, 5))
    per_batch = [int(n) * ranks for n in rng.integers(0, 4, size=2)]
    if not sum(per_batch):
        per_batch[0] = ranks
    return {
        "videos": int(rng.integers(1, 40)),
        "images": int(rng.integers(1, 40)),
        "videos_per_batch": per_batch[0],
        "images_per_batch": per_batch[1],
        "ranks": ranks,
        "seed": int(rng.integers(1000)),
    }


def steps_of(case: dict[str, int], rank: int, steps: int) -> list[list[SampleRef]]:
    sampler = JointSampler(**case, rank=rank)
    found: list[list[SampleRef]] = []
    while len(found) < steps:
        for draws in sampler:
            sampler.advance()
            found.append(draws)
    return found[:steps]


CASES = [random_case(np.random.default_rng(number)) for number in range(25)]


@pytest.mark.parametrize("case", CASES)
def test_joint_sampler_every_epoch_has_every_item_once(case: dict[str, int]) -> None:
    seen: dict[str, Counter[tuple[int, int]]] = {"video": Counter(), "image": Counter()}
    for rank in range(case["ranks"]):
        for draws in steps_of(case, rank, steps=50):
            for draw in draws:
                seen[draw.kind][draw.epoch, draw.item] += 1
    for kind, times in seen.items():
        count, per_batch = case[f"{kind}s"], case[f"{kind}s_per_batch"]
        assert sum(times.values()) == 50 * per_batch
        assert set(times.values()) <= {1}
        whole_passes = 50 * per_batch // count
        wanted = {(epoch, item) for epoch in range(whole_passes) for item in range(count)}
        assert {key for key in times if key[0] < whole_passes} == wanted


@pytest.mark.parametrize("case", CASES)
def test_joint_sampler_ranks_are_disjoint_and_keep_the_ratio(case: dict[str, int]) -> None:
    by_rank = [steps_of(case, rank, steps=10) for rank in range(case["ranks"])]
    whole = steps_of({**case, "ranks": 1}, 0, steps=10)
    for step, shares in enumerate(zip(*by_rank, strict=True)):
        makeup = {tuple(Counter(draw.kind for draw in share).items()) for share in shares}
        assert len(makeup) == 1
        together = sorted((draw for share in shares for draw in share), key=lambda draw: draw.global_batch_index)
        assert together == whole[step]
        assert [draw.global_batch_index for draw in together] == list(range(case["videos_per_batch"] + case["images_per_batch"]))
        assert sum(draw.kind == "video" for draw in together) == case["videos_per_batch"]


def test_joint_sampler_epoch_length_is_the_videos_rounded_up() -> None:
    assert len(JointSampler(10, 99, 4, 5)) == 3
    assert len(JointSampler(0, 11, 0, 5)) == 3


def test_joint_sampler_resumes_on_other_ranks() -> None:
    case = {"videos": 7, "images": 11, "videos_per_batch": 4, "images_per_batch": 2, "seed": 3}
    sampler = JointSampler(**case, ranks=2, rank=1)
    for _ in range(5):
        sampler.advance()
    alone = JointSampler(**case)
    alone.load_state_dict(sampler.state_dict())
    assert next(iter(alone)) == steps_of({**case, "ranks": 1}, 0, steps=6)[5]


@pytest.mark.parametrize(("ranks", "videos", "message"), [(3, 5, "do not divide by 3 ranks"), (1, 0, "has none")])
def test_joint_sampler_refuses_impossible_batches(ranks: int, videos: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointSampler(videos, 5, 4, 0, ranks=ranks)


@pytest.mark.parametrize("ranks", [1, 2])
def test_sequential_sampler_takes_everything_once_in_order(ranks: int) -> None:
    by_rank = [list(SequentialSampler(10, 6, 4, 2, rank, ranks)) for rank in range(ranks)]
    assert {len(steps) for steps in by_rank} == {3}
    draws = [draw for step in zip(*by_rank, strict=True) for share in step for draw in share]
    for kind, count in (("video", 10), ("image", 6)):
        assert sorted(draw.item for draw in draws if draw.kind == kind) == list(range(count))
    assert {draw.epoch for draw in draws} == {0}


def test_joint_sampler_begins_new_epochs_where_the_items_have_changed() -> None:
    sampler = JointSampler(7, 11, 4, 2, seed=3)
    for _ in range(5):  # 20 videos are 2 passes and 6 of the third, 10 images are none and 10 of the first
        sampler.advance()
    changed = JointSampler(8, 11, 4, 2, seed=3)
    with pytest.warns(UserWarning, match="have changed since the checkpoint"):
        changed.load_state_dict(sampler.state_dict())
    videos, images = EndlessPermutation(8, 3, 0), EndlessPermutation(11, 3, 1)
    draws = next(iter(changed))
    assert [(draw.item, draw.epoch) for draw in draws] == [
        *(videos.index(3 * 8 + place) for place in range(4)),
        *(images.index(11 + place) for place in range(2)),
    ]


@pytest.mark.parametrize(("unit", "wanted"), [(1, [3, 7, 8, 20]), (2, [3, 7, 8, 20]), (3, [3, 7, 8]), (5, [])])
def test_take_whole_units_gives_the_first_used_items(unit: int, wanted: list[int]) -> None:
    items = BucketItems(np.array([3, 5, 7, 8, 20]), left_out=np.array([1]))
    assert list(take_whole_units(items, unit).positions) == wanted
