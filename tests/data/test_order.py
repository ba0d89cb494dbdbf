"""The order of samples for any sizes, buckets, ranks, workers and quarantines: properties, searched by hypothesis."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walt_pl.data.batch import Kind, SampleRef
from walt_pl.data.sampler import BucketItems, JointSampler, SequentialSampler

KINDS: tuple[Kind, Kind] = ("video", "image")


@dataclass(frozen=True)
class Case:
    """A data set in buckets, and how it is drawn from."""

    counts: dict[Kind, list[int]]
    quarantined: dict[Kind, frozenset[int]]
    per_rank: dict[Kind, int]
    ranks: int
    seed: int

    def items(self, kind: Kind) -> list[BucketItems]:
        """Buckets take turns through the list, as clips of several shapes do."""
        numbers = [bucket for bucket, count in enumerate(self.counts[kind]) for _ in range(count)]
        shuffled = np.random.default_rng(0).permutation(numbers)
        places = [np.flatnonzero(shuffled == bucket) for bucket in range(len(self.counts[kind]))]
        return [BucketItems(of, np.flatnonzero(np.isin(of, list(self.quarantined[kind])))) for of in places]

    def sampler(self, rank: int = 0, ranks: int | None = None) -> JointSampler:
        per_batch = [self.per_rank[kind] * self.ranks for kind in KINDS]
        return JointSampler(*map(self.items, KINDS), *per_batch, rank=rank, ranks=ranks or self.ranks, seed=self.seed)

    def steps(self, count: int, rank: int = 0, ranks: int | None = None) -> list[list[SampleRef]]:
        return list(islice(self.sampler(rank, ranks).steps(), count))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    buckets = draw(st.integers(1, 3))
    per_rank = {kind: draw(st.integers(0, 3)) for kind in KINDS}
    if not sum(per_rank.values()):
        per_rank["video"] = 1
    counts = {kind: [draw(st.integers(2, 12)) for _ in range(buckets)] for kind in KINDS}
    quarantined: dict[Kind, frozenset[int]] = {}
    for kind in KINDS:
        listed = frozenset(draw(st.lists(st.integers(0, sum(counts[kind]) - 1), max_size=3)))
        case = Case(counts, {**dict.fromkeys(KINDS, frozenset()), kind: listed}, per_rank, 1, 0)  # type: ignore[arg-type]
        quarantined[kind] = listed if all(items.used for items in case.items(kind)) else frozenset()
    return Case(counts, quarantined, per_rank, draw(st.integers(1, 3)), draw(st.integers(0, 1000)))


quick = settings(max_examples=60, deadline=None)


@quick
@given(cases())
def test_joint_sampler_draws_every_item_of_a_bucket_once_an_epoch(case: Case) -> None:
    seen: Counter[tuple[Kind, int, int, int]] = Counter()
    for draws in case.steps(40, ranks=1):
        seen.update((draw.kind, draw.bucket, draw.epoch, draw.item) for draw in draws)
    assert set(seen.values()) <= {1}
    for kind in KINDS:
        assert not case.quarantined[kind] & {item for found, _, _, item in seen if found == kind}
        for bucket, items in enumerate(case.items(kind)):
            drawn = [(number, item) for found, place, number, item in seen if (found, place) == (kind, bucket)]
            wanted = set(items.positions) - case.quarantined[kind]
            for epoch in range(len(drawn) // items.used):
                assert {item for number, item in drawn if number == epoch} == wanted


@quick
@given(cases())
def test_joint_sampler_ranks_are_disjoint_and_share_bucket_and_ratio(case: Case) -> None:
    whole = case.steps(12, ranks=1)
    by_rank = [case.steps(12, rank) for rank in range(case.ranks)]
    for step, shares in enumerate(zip(*by_rank, strict=True)):
        assert all(Counter(draw.kind for draw in share) == Counter(case.per_rank) for share in shares)
        assert len({draw.bucket for share in shares for draw in share}) == 1
        assert sorted((draw for share in shares for draw in share), key=lambda draw: draw.global_batch_index) == whole[step]
        assert [draw.global_batch_index for draw in whole[step]] == list(range(sum(case.per_rank.values()) * case.ranks))


@quick
@given(cases(), st.integers(0, 30), st.data())
def test_joint_sampler_resumes_anywhere_on_other_ranks(case: Case, stop: int, data: st.DataObject) -> None:
    sampler = case.sampler(rank=data.draw(st.integers(0, case.ranks - 1)))
    for _ in range(stop):
        sampler.advance()
    alone = case.sampler(ranks=1)
    alone.load_state_dict(sampler.state_dict())
    assert list(islice(alone.steps(), 10)) == case.steps(stop + 10, ranks=1)[stop:]


@quick
@given(cases(), st.integers(0, 30), st.data())
def test_joint_sampler_under_another_quarantine_keeps_the_order_of_other_items(case: Case, stop: int, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([kind for kind in KINDS if case.per_rank[kind]]))
    count = sum(case.counts[kind])
    listed = frozenset(data.draw(st.lists(st.integers(0, count - 1), max_size=3)))
    other = replace(case, quarantined={**case.quarantined, kind: listed})
    if not all(items.used for items in other.items(kind)):
        return
    before, after = case.sampler(ranks=1), other.sampler(ranks=1)
    for _ in range(stop):
        before.advance()
    state = before.state_dict()
    changed = case.quarantined[kind] != other.quarantined[kind]
    if changed:
        with pytest.warns(UserWarning, match="the quarantine has changed"):
            after.load_state_dict(state)
    else:
        after.load_state_dict(state)
    ahead = [list(islice(sampler.steps(), 25)) for sampler in (before, after)]
    assert [step[0].bucket for step in ahead[0]] == [step[0].bucket for step in ahead[1]], "the buckets come in the same order"
    touched = case.quarantined[kind] ^ other.quarantined[kind]
    for bucket in range(len(case.counts[kind])):
        of = [[(d.epoch, d.item) for step in steps for d in step if (d.kind, d.bucket) == (kind, bucket)] for steps in ahead]
        same = [[draw for draw in draws if draw[1] not in touched] for draws in of]
        shorter = min(map(len, same))
        assert same[0][:shorter] == same[1][:shorter]
        assert not {item for _, item in of[1]} & other.quarantined[kind]


@quick
@given(cases())
def test_joint_sampler_draws_buckets_in_proportion_to_their_items(case: Case) -> None:
    sampler = case.sampler(ranks=1)
    leading: Kind = "video" if case.per_rank["video"] else "image"
    counts = case.counts[leading]
    steps = -(-sum(counts) // (case.per_rank[leading] * case.ranks))
    rounds = [[step[0].bucket for step in islice(sampler.steps(), 5 * steps)][i * steps : (i + 1) * steps] for i in range(5)]
    for buckets in rounds:
        for bucket, count in enumerate(counts):
            wanted = count / sum(counts) * steps
            assert int(wanted) <= buckets.count(bucket) <= int(wanted) + 1, "rounded up or down"


@quick
@given(cases())
def test_sequential_sampler_takes_everything_once_bucket_by_bucket(case: Case) -> None:
    def whole(kind: Kind) -> list[BucketItems]:
        return [BucketItems(items.positions[: len(items.positions) // case.ranks * case.ranks]) for items in case.items(kind)]

    samplers = [
        SequentialSampler(*map(whole, KINDS), *[case.per_rank[kind] * case.ranks for kind in KINDS], rank, case.ranks)
        for rank in range(case.ranks)
    ]
    by_rank = [list(sampler) for sampler in samplers]
    assert {len(steps) for steps in by_rank} == {len(samplers[0])}
    draws = [draw for steps in by_rank for step in steps for draw in step]
    assert all(len({draw.bucket for share in step for draw in share}) <= 1 for step in zip(*by_rank, strict=True))
    for kind in KINDS:
        wanted = sorted(int(p) for items in whole(kind) for p in items.positions) if case.per_rank[kind] else []
        assert sorted(draw.item for draw in draws if draw.kind == kind) == wanted


def test_joint_sampler_of_one_bucket_has_a_fixed_order() -> None:
    # Taken down from the version without buckets: JointSampler(5, 4, 2, 1, seed=3), its first four steps.
    wanted = [[4, 2, 0], [1, 3, 1], [0, 3, 2], [1, 4, 3]]
    found = [[draw.item for draw in draws] for draws in islice(JointSampler(5, 4, 2, 1, seed=3).steps(), 4)]
    assert found == wanted


def test_joint_sampler_warns_of_another_index_and_begins_new_epochs() -> None:
    sampler, grown = JointSampler(50, 4, 2, 1), JointSampler(51, 4, 2, 1)
    sampler.advance()
    with pytest.warns(UserWarning, match="the interrupted epochs are not finished"):
        grown.load_state_dict(sampler.state_dict())
    assert {draw.epoch for draw in next(iter(grown))} == {1}


def test_joint_sampler_refuses_another_number_of_buckets() -> None:
    two = [BucketItems(np.arange(3)), BucketItems(np.arange(3, 6))]
    sampler = JointSampler(two, two, 2, 0)
    with pytest.raises(ValueError, match=r"data\.buckets has 1 sizes, but the checkpoint was written with 2"):
        JointSampler(6, 6, 2, 0).load_state_dict(sampler.state_dict())


def test_joint_sampler_never_draws_a_bucket_that_lacks_videos_or_images() -> None:
    videos, images = [BucketItems(np.arange(3)), BucketItems(np.arange(3, 9))], [BucketItems(np.arange(3)), BucketItems(np.arange(0))]
    assert {draw.bucket for step in islice(JointSampler(videos, images, 1, 1).steps(), 30) for draw in step} == {0}
    with pytest.raises(ValueError, match="no bucket has both"):
        JointSampler([videos[0], images[1]], images[::-1], 1, 1)
