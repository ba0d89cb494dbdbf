"""Order, ranks and resuming of the joint sampler and its loader."""

import warnings
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from walt_pl.data.batch import Draw, JointBatch, Sample
from walt_pl.data.sampler import EndlessPermutation, JointLoader, JointSampler, SequentialSampler


class Numbers(Dataset[Sample]):
    """Samples that carry their draw as content; items in `broken` cannot be read."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken = broken

    def __getitem__(self, draw: Draw) -> Sample:
        failure = f"{draw.kind}-{draw.item}: broken" if draw.item in self.broken else ""
        content = torch.full((1, 3 if draw.kind == "video" else 1, 1, 1), 0.0 if failure else draw.item + 1.0)
        path = f"{draw.kind}-{draw.item}"
        return Sample(draw, content, None, str(draw.pass_number), draw.item, path, failure, "pixels")


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


def steps_of(case: dict[str, int], rank: int, steps: int) -> list[list[Draw]]:
    sampler = JointSampler(**case, rank=rank)
    found: list[list[Draw]] = []
    while len(found) < steps:
        for draws in sampler:
            sampler.advance()
            found.append(draws)
    return found[:steps]


CASES = [random_case(np.random.default_rng(number)) for number in range(25)]


@pytest.mark.parametrize("case", CASES)
def test_every_pass_has_every_item_once(case: dict[str, int]) -> None:
    seen: dict[str, Counter[tuple[int, int]]] = {"video": Counter(), "image": Counter()}
    for rank in range(case["ranks"]):
        for draws in steps_of(case, rank, steps=50):
            for draw in draws:
                seen[draw.kind][draw.pass_number, draw.item] += 1
    for kind, times in seen.items():
        count, per_batch = case[f"{kind}s"], case[f"{kind}s_per_batch"]
        assert sum(times.values()) == 50 * per_batch
        assert set(times.values()) <= {1}
        whole_passes = 50 * per_batch // count
        wanted = {(pass_number, item) for pass_number in range(whole_passes) for item in range(count)}
        assert {key for key in times if key[0] < whole_passes} == wanted


@pytest.mark.parametrize("case", CASES)
def test_ranks_are_disjoint_in_step_and_keep_the_ratio(case: dict[str, int]) -> None:
    by_rank = [steps_of(case, rank, steps=10) for rank in range(case["ranks"])]
    whole = steps_of({**case, "ranks": 1}, 0, steps=10)
    for step, shares in enumerate(zip(*by_rank, strict=True)):
        makeup = {tuple(Counter(draw.kind for draw in share).items()) for share in shares}
        assert len(makeup) == 1
        together = sorted((draw for share in shares for draw in share), key=lambda draw: draw.slot)
        assert together == whole[step]
        assert [draw.slot for draw in together] == list(range(case["videos_per_batch"] + case["images_per_batch"]))
        assert sum(draw.kind == "video" for draw in together) == case["videos_per_batch"]


def test_passes_have_different_orders_and_seeds_too() -> None:
    order = EndlessPermutation(50, 1)
    first, second = [[order.index(p * 50 + i)[0] for i in range(50)] for p in range(2)]
    assert first != second
    assert first != [EndlessPermutation(50, 2).index(i)[0] for i in range(50)]
    assert first == [order.index(i)[0] for i in range(50)]


def test_an_epoch_is_one_pass_over_the_videos_rounded_up() -> None:
    assert len(JointSampler(10, 99, 4, 5)) == 3
    assert len(JointSampler(0, 11, 0, 5)) == 3


def test_two_ranks_resume_as_one() -> None:
    case = {"videos": 7, "images": 11, "videos_per_batch": 4, "images_per_batch": 2, "seed": 3}
    sampler = JointSampler(**case, ranks=2, rank=1)
    for _ in range(5):
        sampler.advance()
    alone = JointSampler(**case)
    alone.load_state_dict(sampler.state_dict())
    assert next(iter(alone)) == steps_of({**case, "ranks": 1}, 0, steps=6)[5]


@pytest.mark.parametrize(("ranks", "videos", "message"), [(3, 5, "do not divide by 3 ranks"), (1, 0, "has none")])
def test_impossible_batches_are_refused(ranks: int, videos: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointSampler(videos, 5, 4, 0, ranks=ranks)


@pytest.mark.parametrize("ranks", [1, 2])
def test_validation_goes_through_everything_once_in_order(ranks: int) -> None:
    by_rank = [list(SequentialSampler(10, 6, 4, 2, rank, ranks)) for rank in range(ranks)]
    assert {len(steps) for steps in by_rank} == {3}
    draws = [draw for step in zip(*by_rank, strict=True) for share in step for draw in share]
    for kind, count in (("video", 10), ("image", 6)):
        assert sorted(draw.item for draw in draws if draw.kind == kind) == list(range(count))
    assert {draw.pass_number for draw in draws} == {0}


# The loader


def told(batch: JointBatch) -> tuple[list[str], list[int], list[str]]:
    return batch.paths, batch.slots.tolist(), batch.captions


MADE: list[JointLoader] = []


@pytest.fixture(autouse=True)
def workers_end() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


def make_loader(workers: int, rank: int = 0, ranks: int = 1, broken: tuple[int, ...] = ()) -> JointLoader:
    MADE.append(JointLoader(Numbers(broken), JointSampler(10, 7, 4, 2, rank, ranks, seed=5), workers))
    return MADE[-1]


def run(loader: JointLoader, steps: int) -> list[tuple[list[str], list[int], list[str]]]:
    found: list[tuple[list[str], list[int], list[str]]] = []
    while len(found) < steps:
        for batch in loader:
            found.append(told(batch))
            if len(found) == steps:
                break
    return found


@pytest.fixture(scope="module")
def uninterrupted() -> list[tuple[list[str], list[int], list[str]]]:
    return run(make_loader(workers=0), steps=9)


def test_two_workers_give_the_same_order(uninterrupted: list[tuple[list[str], list[int], list[str]]]) -> None:
    assert run(make_loader(workers=2), steps=9) == uninterrupted


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (0, 2)])
def test_resuming_in_the_middle_of_an_epoch_changes_nothing(
    before: int, after: int, uninterrupted: list[tuple[list[str], list[int], list[str]]]
) -> None:
    first = make_loader(before)
    start = run(first, steps=4)  # one step into the second epoch; with workers more are read ahead
    second = make_loader(after)
    second.load_state_dict(first.state_dict())
    assert start + run(second, steps=5) == uninterrupted


def test_one_rank_goes_on_where_two_stopped(uninterrupted: list[tuple[list[str], list[int], list[str]]]) -> None:
    pair = [make_loader(0, rank, ranks=2) for rank in range(2)]
    for loader in pair:
        run(loader, steps=4)
    assert pair[0].state_dict() == pair[1].state_dict()
    alone = make_loader(0)
    alone.load_state_dict(pair[0].state_dict())
    assert run(alone, steps=5) == uninterrupted[4:]


def test_loading_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    run(make_loader(0), steps=4)
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_keeps_its_slot_with_weight_0_and_is_told_once(workers: int) -> None:
    loader = make_loader(workers, broken=(3,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = [batch for _ in range(3) for batch in loader]
    for batch in batches:
        assert batch.slots.tolist() == list(range(6))
        bad = torch.tensor([path.endswith("-3") for path in batch.paths])
        assert torch.equal(batch.weight == 0, bad)
        contents = torch.cat([batch.videos[:, 0, 0, 0, 0], batch.images[:, 0, 0, 0, 0]])
        assert torch.equal(contents == 0, bad)
    messages = [str(warning.message) for warning in caught if "unreadable" in str(warning.message)]
    assert sorted(message.split(":")[0] for message in messages) == ["image-3", "video-3"]
    assert loader.failures == {"image-3": "image-3: broken", "video-3": "video-3: broken"}


@pytest.mark.filterwarnings("ignore:.*unreadable files")
def test_when_nothing_can_be_read_it_stops_with_the_reasons() -> None:
    loader = make_loader(0, broken=tuple(range(10)))
    with pytest.raises(RuntimeError, match=r"(?s)first 3 batches.*video-\d: broken"):
        run(loader, steps=4)


def test_a_batch_without_images_has_room_for_none() -> None:
    batch = next(iter(JointLoader(Numbers(), JointSampler(5, 0, 2, 0))))
    assert batch.videos.shape == (2, 1, 3, 1, 1)
    assert batch.images.shape == (0, 1, 1, 1, 1)
    assert batch.low_videos is None
