"""Random numbers depend on (seed, step, place in the global batch) and on nothing else."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import SetDtype
from walt_pl.diffusion.chance import Chance, generator, mix

DRAWS: dict[str, Callable[[Chance], Tensor]] = {
    "uniform": Chance.uniform,
    "subset": lambda chance: chance.subset(50, 20),
    "integers": lambda chance: chance.integers(1 << 40),
    "normal": lambda chance: torch.stack(chance.normal([(2, 3)] * len(chance.uniform()))),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(
    "split",
    [[range(4), range(4, 8)], [range(0, 8, 2), range(1, 8, 2)], [[i] for i in range(8)], [[3], [7, 0, 1, 2, 4, 5, 6]]],
)
def test_draws_do_not_depend_on_how_the_batch_is_split(name: str, split: list[list[int]]) -> None:
    draw = DRAWS[name]
    whole = draw(Chance(1, 2, torch.arange(8)))
    for slots in split:
        assert torch.equal(draw(Chance(1, 2, torch.tensor(list(slots)))), whole[torch.tensor(list(slots))])


@pytest.mark.parametrize("name", DRAWS)
def test_seeds_steps_and_slots_draw_apart(name: str) -> None:
    rows = [DRAWS[name](Chance(seed, step, torch.arange(6))) for seed in range(3) for step in range(5)]
    values = torch.stack(rows).flatten(0, 1).flatten(1).tolist() if rows[0].dim() > 1 else torch.cat(rows)[:, None].tolist()
    assert len({tuple(value) for value in values}) == 3 * 5 * 6


def test_one_draw_after_another_differs() -> None:
    chance = Chance(0, 0, torch.arange(4))
    assert not torch.equal(chance.uniform(), chance.uniform())


def test_a_video_and_an_image_can_draw_noise_of_their_own_shape() -> None:
    chance = Chance(0, 0, torch.arange(2))
    video, image = chance.normal([(5, 2, 4, 4), (1, 2, 4, 4)])
    assert video.shape == (5, 2, 4, 4) and image.shape == (1, 2, 4, 4)
    with pytest.raises(ValueError):
        chance.normal([(1,)])


def test_chosen_rows_draw_what_they_would_have_drawn() -> None:
    whole = Chance(1, 2, torch.arange(8)).uniform()
    part = Chance(1, 2, torch.arange(8)).rows(slice(4, 8))
    assert torch.equal(part.uniform(), whole[4:8])


def test_no_rows_draw_nothing() -> None:
    assert Chance(0, 0, torch.arange(0)).uniform().shape == (0,)
    assert Chance(0, 0, torch.arange(0)).normal([]) == []


def test_draws_have_their_distributions() -> None:
    chance = Chance(3, 4, torch.arange(2000))
    uniform = chance.uniform()
    assert uniform.dtype == torch.float32 and float(uniform.min()) >= 0 and float(uniform.max()) < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.03)
    levels = chance.integers(10)
    assert levels.dtype == torch.int64 and torch.bincount(levels, minlength=10).min() > 140
    assert float(chance.happens(0.9).float().mean()) == pytest.approx(0.9, abs=0.03)
    assert bool(chance.happens(1.0).all()) and not bool(chance.happens(0.0).any())
    normal = torch.cat(chance.normal([(8,)] * 2000))
    assert float(normal.mean()) == pytest.approx(0, abs=0.03) and float(normal.std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_the_same_whatever_the_default_dtype(name: str, default: torch.dtype, default_dtype: SetDtype) -> None:
    """An engine of another precision sets torch's default; a step must not draw other numbers for it."""
    draw = DRAWS[name]
    wanted, none = draw(Chance(1, 2, torch.arange(8))), DRAWS["uniform"](Chance(1, 2, torch.arange(0)))
    default_dtype(default)
    assert draw(Chance(1, 2, torch.arange(8))).dtype == wanted.dtype
    assert torch.equal(draw(Chance(1, 2, torch.arange(8))), wanted)
    assert DRAWS["uniform"](Chance(1, 2, torch.arange(0))).dtype == none.dtype


def test_no_rows_draw_integers() -> None:
    assert Chance(0, 0, torch.arange(0)).integers(5).dtype == torch.int64


def test_hash_spreads_near_inputs() -> None:
    assert len({mix(a, b, c) for a in range(8) for b in range(8) for c in range(8)}) == 512
    assert mix(1, 2) != mix(2, 1) and mix(0) != mix(0, 0)
    assert 0 <= mix(-1, 1 << 70) < 1 << 64
    flips = [bin(mix(0, i) ^ mix(0, i + 1)).count("1") for i in range(64)]
    assert 24 < sum(flips) / 64 < 40


def splitmix64(*numbers: int) -> int:
    """Return the hash, written out with 64-bit machine numbers that wrap around."""
    state = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        state += np.array([number % 2**64], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return int(state[0])


@pytest.mark.parametrize("numbers", [(1,), (1, 2), (7, 540_000, 511), (-1, 0), (-5, 3, -(1 << 63)), (1 << 63, 1 << 62), ((1 << 64) - 1, 9)])
def test_mix_is_splitmix64_of_each_number_in_turn(numbers: tuple[int, ...]) -> None:
    assert mix(*numbers) == splitmix64(*numbers)


def test_hash_of_one_number_is_the_first_output_of_splitmix64() -> None:
    """The published generator, seeded with 0: a resumed run meets the same numbers in every version of this code."""
    assert mix(0) == 0xE220A8397B1DCDAF
    assert generator(0).initial_seed() % (1 << 64) == mix(0)
