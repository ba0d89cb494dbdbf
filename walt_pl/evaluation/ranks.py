"""The processes of an evaluation. torchrun starts them; each computes some blocks of clips, and they meet through files and barriers."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

START = timedelta(minutes=10)
"""Time in which every process must have started."""
WAIT = timedelta(days=7)
"""Time that a barrier waits for the samples of other processes. One that ends is noticed at once: its connections close."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of an evaluation."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """Connect with the other processes that torchrun has started (gloo). A single process connects with nothing.

        The connections are closed at the end of the process, also after an error: the others then end, too.

        Raises:
            ValueError: RANK or WORLD_SIZE is no number, or one of them is missing.
            ConnectionError: the others cannot be reached.
        """
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        world = _number(environment, "WORLD_SIZE", 1)
        if world == 1:
            return cls()
        rank = _number(environment, "RANK", None)
        try:
            dist.init_process_group("gloo", rank=rank, world_size=world, timeout=START)
        except (RuntimeError, ValueError) as error:
            raise ConnectionError(
                f"process {rank} of {world} cannot reach the others ({_first_line(error)}); start all with torchrun"
            ) from error
        atexit.register(_disconnect)
        return cls(rank, world)

    @property
    def is_first(self) -> bool:
        """True for the one process that joins rows, writes cards, and shows progress."""
        return self.rank == 0

    def share(self, blocks: Sequence[int]) -> list[int]:
        """Return the blocks of this process. They depend on their numbers alone, so that all processes agree without a word."""
        return [block for block in blocks if block % self.world == self.rank]

    def barrier(self) -> None:
        """Wait until every process is here. A single one does not wait.

        Raises:
            ConnectionError: another process has ended.
        """
        if self.world == 1:
            return
        try:
            if dist.get_backend() == "gloo":
                dist.monitored_barrier(timeout=WAIT)  # that of the group is the short one of the start
            else:
                dist.barrier()
        except RuntimeError as error:
            # torch's own message names the time limit, also where a connection was closed at once.
            raise ConnectionError("another process of the evaluation has ended; see its message. The same command goes on") from error


def local_device(device: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return the device of this process: one GPU for each process of a machine, or the CPU where there is none.

    Args:
        device: device that a person typed; None for the best one.
        environment: variables of torchrun.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    try:
        asked = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"--device {device}: wanted cpu, cuda, cuda:1 or mps") from error
    if asked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: found no GPU on this machine; leave the option out to use the CPU")
    if asked.type != "cuda" or asked.index is not None:
        return str(asked)
    return f"cuda:{_number(environment, 'LOCAL_RANK', 0) % torch.cuda.device_count()}"


def _number(environment: Mapping[str, str], name: str, default: int | None) -> int:
    """Return the number of a variable of torchrun.

    Raises:
        ValueError: it is missing and has no default, or is no number.
    """
    value = environment.get(name)
    if value is None and default is not None:
        return default
    if value is None or not value.isdecimal():
        raise ValueError(f"{name} is {value or 'not set'}, wanted a number; start several processes with torchrun, or unset WORLD_SIZE")
    return int(value)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
