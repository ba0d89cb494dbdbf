"""Order, resuming and failures of the joint loader."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import Dataset

from walt_pl.data.batch import JointBatch, Sample, SampleRef
from walt_pl.data.loader import JointLoader
from walt_pl.data.sampler import JointSampler, SequentialSampler


class Numbers(Dataset[Sample]):
    """Samples that carry their draw as content; items in `broken` cannot be read."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken = broken

    def __getitem__(self, draw: SampleRef) -> Sample:
        failure = f"{draw.kind}-{draw.item}: broken" if draw.item in self.broken else ""
        content = torch.full((1, 3 if draw.kind == "video" else 1, 1, 1), 0.0 if failure else draw.item + 1.0)
        path = f"{draw.kind}-{draw.item}"
        return Sample(draw, content, None, str(draw.epoch), draw.item, path, failure, "pixels")


def told(batch: JointBatch) -> tuple[list[str], list[int], list[str]]:
    return batch.paths, batch.global_batch_index.tolist(), batch.captions


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


def test_joint_loader_two_workers_give_the_same_order(uninterrupted: list[tuple[list[str], list[int], list[str]]]) -> None:
    assert run(make_loader(workers=2), steps=9) == uninterrupted


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (0, 2)])
def test_joint_loader_resumes_in_the_middle_of_an_epoch(
    before: int, after: int, uninterrupted: list[tuple[list[str], list[int], list[str]]]
) -> None:
    first = make_loader(before)
    start = run(first, steps=4)  # one step into the second epoch; with workers more are read ahead
    second = make_loader(after)
    second.load_state_dict(first.state_dict())
    assert start + run(second, steps=5) == uninterrupted


def test_joint_loader_one_rank_resumes_where_two_stopped(uninterrupted: list[tuple[list[str], list[int], list[str]]]) -> None:
    pair = [make_loader(0, rank, ranks=2) for rank in range(2)]
    for loader in pair:
        run(loader, steps=4)
    assert pair[0].state_dict() == pair[1].state_dict()
    alone = make_loader(0)
    alone.load_state_dict(pair[0].state_dict())
    assert run(alone, steps=5) == uninterrupted[4:]


def test_joint_loader_leaves_the_global_random_state_unchanged() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    run(make_loader(0), steps=4)
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize("workers", [0, 2])
def test_joint_loader_broken_sample_gets_weight_0_and_one_warning(workers: int) -> None:
    loader = make_loader(workers, broken=(3,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = [batch for _ in range(3) for batch in loader]
    for batch in batches:
        assert batch.global_batch_index.tolist() == list(range(6))
        bad = torch.tensor([path.endswith("-3") for path in batch.paths])
        assert torch.equal(batch.weight == 0, bad)
        contents = torch.cat([batch.videos[:, 0, 0, 0, 0], batch.images[:, 0, 0, 0, 0]])
        assert torch.equal(contents == 0, bad)
    messages = [str(warning.message) for warning in caught if "of weight 0" in str(warning.message)]
    assert sorted(message.split(":")[0] for message in messages) == ["image-3", "video-3"]
    assert loader.failures == {"image-3": "image-3: broken", "video-3": "video-3: broken"}


@pytest.mark.filterwarnings("ignore:.*of weight 0 so far")
def test_joint_loader_stops_with_the_reasons_when_nothing_is_readable() -> None:
    loader = make_loader(0, broken=tuple(range(10)))
    with pytest.raises(RuntimeError, match=r"(?s)first 3 batches.*video-\d: broken"):
        run(loader, steps=4)


def test_joint_loader_batch_without_images_has_an_empty_image_tensor() -> None:
    batch = next(iter(JointLoader(Numbers(), JointSampler(5, 0, 2, 0))))
    assert batch.videos.shape == (2, 1, 3, 1, 1)
    assert batch.images.shape == (0, 1, 1, 1, 1)
    assert batch.low_res_videos is None


def test_joint_loader_keeps_prefetched_batches_between_epochs() -> None:
    loader = make_loader(workers=0)
    run(loader, steps=len(loader))
    ahead = loader._stream
    iterator = iter(loader)
    next(iterator)
    assert ahead is not None and loader._stream is ahead


def test_joint_loader_of_validation_starts_over_each_time() -> None:
    MADE.append(JointLoader(Numbers(), SequentialSampler(6, 3, 2, 1)))
    whole = [told(batch) for batch in MADE[-1]]
    next(iter(MADE[-1]))  # a validation that was cut short
    assert [told(batch) for batch in MADE[-1]] == whole and len(whole) == 3


def test_joint_loader_loads_a_state_in_the_middle_of_reading() -> None:
    first, second = make_loader(workers=0), make_loader(workers=0)
    wanted = run(first, steps=5)[4:]
    start = make_loader(workers=0)
    run(start, steps=4)
    run(second, steps=2)
    second.load_state_dict(start.state_dict())
    assert run(second, steps=1) == wanted
