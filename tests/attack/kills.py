"""The kill loop of `make soak`: trainings that are killed at random moments end with the weights of one that nobody killed."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch

from tests.attack.outcome import Outcome, count_of
from tests.soak.kills import soak_all

STEPS = 100
"""Steps of each training: a start that is killed early leaves the rest to the next one."""


def kill_trainings(random: Random, share: float, folder: Path) -> Iterator[Outcome]:
    """Kill trainings of one process 16 times, and of ZeRO 2 on two ranks 6 times, in starts that went on from a checkpoint."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # weights are compared to the bit
    try:
        for name, counts in soak_all(folder, count_of(16, share), count_of(6, share), STEPS, random.randrange(2**31)):
            yield from (Outcome(f"kill -9 of a training: {name}", "unharmed") for _ in range(counts["kills"]))
    except AssertionError as error:
        yield Outcome("kill -9 of a training", "wrong", str(error))
    finally:
        torch.set_num_threads(threads)
