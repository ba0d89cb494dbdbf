"""Random numbers depend on (seed, step, place in the global batch) and on nothing else."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.environment import SetDtype
from walt_pl.diffusion.rng import PerSampleRNG, seeded_generator, splitmix64

DRAWS: dict[str, Callable[[PerSampleRNG], Tensor]] = {
    "rand": PerSampleRNG.rand,
    "randperm": lambda rng: rng.randperm(50, 20),
    "randint": lambda rng: rng.randint(1 << 40),
    "randn": lambda rng: torch.stack(rng.randn([(2, 3)] * len(rng.rand()))),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(
    "split",
    [[range(4), range(4, 8)], [range(0, 8, 2), range(1, 8, 2)], [[i] for i in range(8)], [[3], [7, 0, 1, 2, 4, 5, 6]]],
)
def test_per_sample_rng_does_not_depend_on_how_the_batch_is_split(name: str, split: list[list[int]]) -> None:
    draw = DRAWS[name]
    whole = draw(PerSampleRNG(1, 2, torch.arange(8)))
    for global_batch_index in split:
        assert torch.equal(draw(PerSampleRNG(1, 2, torch.tensor(list(global_batch_index)))), whole[torch.tensor(list(global_batch_index))])


@pytest.mark.parametrize("name", DRAWS)
def test_per_sample_rng_differs_by_seed_step_and_global_batch_index(name: str) -> None:
    rows = [DRAWS[name](PerSampleRNG(seed, step, torch.arange(6))) for seed in range(3) for step in range(5)]
    values = torch.stack(rows).flatten(0, 1).flatten(1).tolist() if rows[0].dim() > 1 else torch.cat(rows)[:, None].tolist()
    assert len({tuple(value) for value in values}) == 3 * 5 * 6


def test_per_sample_rng_next_draw_differs() -> None:
    rng = PerSampleRNG(0, 0, torch.arange(4))
    assert not torch.equal(rng.rand(), rng.rand())


def test_per_sample_rng_randn_has_a_shape_for_each_sample() -> None:
    rng = PerSampleRNG(0, 0, torch.arange(2))
    video, image = rng.randn([(5, 2, 4, 4), (1, 2, 4, 4)])
    assert video.shape == (5, 2, 4, 4) and image.shape == (1, 2, 4, 4)
    with pytest.raises(ValueError):
        rng.randn([(1,)])


def test_per_sample_rng_select_draws_what_the_whole_would() -> None:
    whole = PerSampleRNG(1, 2, torch.arange(8)).rand()
    part = PerSampleRNG(1, 2, torch.arange(8)).select(slice(4, 8))
    assert torch.equal(part.rand(), whole[4:8])


def test_per_sample_rng_of_no_samples_is_empty() -> None:
    assert PerSampleRNG(0, 0, torch.arange(0)).rand().shape == (0,)
    assert PerSampleRNG(0, 0, torch.arange(0)).randn([]) == []


def test_per_sample_rng_draws_have_their_distributions() -> None:
    rng = PerSampleRNG(3, 4, torch.arange(2000))
    uniform = rng.rand()
    assert uniform.dtype == torch.float32 and float(uniform.min()) >= 0 and float(uniform.max()) < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.03)
    levels = rng.randint(10)
    assert levels.dtype == torch.int64 and torch.bincount(levels, minlength=10).min() > 140
    assert float(rng.bernoulli(0.9).float().mean()) == pytest.approx(0.9, abs=0.03)
    assert bool(rng.bernoulli(1.0).all()) and not bool(rng.bernoulli(0.0).any())
    normal = torch.cat(rng.randn([(8,)] * 2000))
    assert float(normal.mean()) == pytest.approx(0, abs=0.03) and float(normal.std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", DRAWS)
def test_per_sample_rng_is_independent_of_the_default_dtype(name: str, default: torch.dtype, default_dtype: SetDtype) -> None:
    """An engine of another precision sets torch's default; a step must not draw other numbers for it."""
    draw = DRAWS[name]
    wanted, none = draw(PerSampleRNG(1, 2, torch.arange(8))), DRAWS["rand"](PerSampleRNG(1, 2, torch.arange(0)))
    default_dtype(default)
    assert draw(PerSampleRNG(1, 2, torch.arange(8))).dtype == wanted.dtype
    assert torch.equal(draw(PerSampleRNG(1, 2, torch.arange(8))), wanted)
    assert DRAWS["rand"](PerSampleRNG(1, 2, torch.arange(0))).dtype == none.dtype


def test_per_sample_rng_of_no_samples_gives_integers() -> None:
    assert PerSampleRNG(0, 0, torch.arange(0)).randint(5).dtype == torch.int64


def test_splitmix64_spreads_near_inputs() -> None:
    assert len({splitmix64(a, b, c) for a in range(8) for b in range(8) for c in range(8)}) == 512
    assert splitmix64(1, 2) != splitmix64(2, 1) and splitmix64(0) != splitmix64(0, 0)
    assert 0 <= splitmix64(-1, 1 << 70) < 1 << 64
    flips = [bin(splitmix64(0, i) ^ splitmix64(0, i + 1)).count("1") for i in range(64)]
    assert 24 < sum(flips) / 64 < 40


def splitmix64_of_machine_numbers(*numbers: int) -> int:
    """Return the hash, written out with 64-bit machine numbers that wrap around."""
    state = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        state += np.array([number % 2**64], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return int(state[0])


@pytest.mark.parametrize("numbers", [(1,), (1, 2), (7, 540_000, 511), (-1, 0), (-5, 3, -(1 << 63)), (1 << 63, 1 << 62), ((1 << 64) - 1, 9)])
def test_splitmix64_equals_the_same_hash_of_wrapping_machine_numbers(numbers: tuple[int, ...]) -> None:
    assert splitmix64(*numbers) == splitmix64_of_machine_numbers(*numbers)


def test_splitmix64_of_zero_is_the_first_output_of_the_published_generator() -> None:
    """The published generator, seeded with 0: a resumed run meets the same numbers in every version of this code."""
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert seeded_generator(0).initial_seed() % (1 << 64) == splitmix64(0)
