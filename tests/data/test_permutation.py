"""Order of endless permutations."""

import numpy as np

from walt_pl.data.permutation import EndlessPermutation


def test_endless_permutation_differs_by_epoch_and_seed() -> None:
    order = EndlessPermutation(50, 1)
    first, second = [[order.index(p * 50 + i)[0] for i in range(50)] for p in range(2)]
    assert first != second
    assert first != [EndlessPermutation(50, 2).index(i)[0] for i in range(50)]
    assert first == [order.index(i)[0] for i in range(50)]


def test_endless_permutation_left_out_numbers_do_not_move_the_others() -> None:
    whole, part = EndlessPermutation(9, 1), EndlessPermutation(9, 1, left_out=np.array([2, 7]))
    orders = [[sequence.index(n)[0] for n in range(sequence.used)] for sequence in (whole, part)]
    assert [number for number in orders[0] if number not in (2, 7)] == orders[1]
    for position in range(20):
        assert part.position(*part.mark(position)) == position
