"""Say in a sentence which ranks were lost, when a process waited for them in vain or their connection broke."""

from __future__ import annotations

import platform
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import groupby

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, Strategy

from walt_pl.training.strategies.store import TIME_OUT

REPORT_SECONDS = 10.0
"""Seconds in which the ranks that live report to each other after a failure."""
TIME_OUT_KEY = "trainer.strategy.init_args.timeout"
"""Key of the time-out of the process group."""
LIBRARIES = re.compile(r"gloo|nccl|c10d|TCPStore|tcp/", re.IGNORECASE)
"""Marks of errors that come from the libraries that connect ranks."""
LATE = re.compile(r"(?<!connection )timed? ?out", re.IGNORECASE)
BROKEN = re.compile(
    r"connection (was )?(closed|reset|refused|aborted|timed out)|broken pipe|unreachable|no route to host|pair closure|remoteerror|"
    r"remote(ly)? (process )?(exited|closed)|failed to (recv|send)",
    re.IGNORECASE,
)
_hosts: list[str] = []
"""Host name of each rank, once the ranks are connected."""


class LostRank(RuntimeError):
    """Another rank was waited for in vain, or its connection broke. The message names it and ends with what to do."""


def note_hosts() -> None:
    """Keep the host name of each rank for the sentence of a later loss; all ranks call it."""
    store = dist.distributed_c10d._get_default_store()  # not a collective: the ranks may not have chosen their GPUs yet
    store.delete_key(f"walt/failed/{dist.get_rank()}")  # of an earlier start: torchrun's own store outlives its processes
    store.set(f"walt/host/{dist.get_rank()}", platform.node())
    _hosts[:] = [store.get(f"walt/host/{rank}").decode() for rank in range(dist.get_world_size())]


def set_time_out(timeout: timedelta) -> None:
    """Give every group of ranks a time-out. Libraries such as DeepSpeed make groups of their own, with torch's default of half an hour."""
    for group in dist.distributed_c10d._world.pg_map:
        if hasattr(dist, "set_timeout"):
            dist.set_timeout(timeout, group)
        else:  # torch before 2.14
            dist.distributed_c10d._set_pg_timeout(timeout, group)


@contextmanager
def explain_lost_ranks(strategy: Strategy) -> Iterator[None]:
    """Raise the errors of lost ranks as a sentence.

    Args:
        strategy: the strategy of the trainer that runs inside the context.

    Raises:
        LostRank: other ranks were lost.
    """
    try:
        yield
    except RuntimeError as error:
        found = find_loss(error)
        if found is None or not isinstance(strategy, DDPStrategy):
            raise
        time_out = strategy._timeout or TIME_OUT
        if _hosts and dist.is_initialized():
            raise LostRank(describe_loss(found, dist.get_rank(), _hosts, find_living_ranks(), time_out)) from error
        environment = strategy.cluster_environment
        assert environment is not None
        place = f"{environment.main_address}:{environment.main_port}"
        who = f"rank {strategy.global_rank} on {platform.node()}"
        raise LostRank(describe_absence(found, who, f"{strategy.world_size} ranks", place, time_out)) from error


def describe_absence(found: str, who: str, wanted: str, place: str, time_out: timedelta) -> str:
    """Return the sentence about ranks or machines that were never connected.

    Args:
        found: first line of the library's error.
        who: this rank or machine.
        wanted: number of ranks or machines, with its noun.
        place: address where they meet.
        time_out: time-out of the process group.
    """
    if LATE.search(found):
        cause = f"not all have come to {place} within {time_out} ({TIME_OUT_KEY})"
    elif BROKEN.search(found):
        cause = f"the connection to {place} was lost"
    else:
        cause = f"the store at {place} cannot be opened or reached; another program may use the port (MASTER_PORT names another one)"
    return (
        f"{who}: {wanted} are wanted, and {cause}: {found}; look at the first error of the others, and whether their machines reach this "
        "address; the same command goes on"
    )


def find_loss(error: BaseException) -> str | None:
    """Return the first line of the error that a lost rank has caused, from an error and those behind it; None if there is none."""
    step: BaseException | None = error
    seen: set[int] = set()
    while step is not None and id(step) not in seen:
        seen.add(id(step))
        text = str(step)
        of_library = isinstance(step, dist.DistError) or (isinstance(step, RuntimeError) and LIBRARIES.search(text))
        if of_library and (LATE.search(text) or BROKEN.search(text)):
            # Without the C++ file in front.
            return re.sub(r"^(\[[^\]]*\] )+", "", text.strip().partition("\n")[0])
        step = step.__cause__ or step.__context__
    return None


def describe_loss(found: str, rank: int, hosts: Sequence[str], answered: set[int] | None, time_out: timedelta) -> str:
    """Return the sentence about lost ranks.

    Args:
        found: first line of the library's error.
        rank: number of this rank.
        hosts: host name of each rank.
        answered: ranks that have reported after the failure; None if the store, through which they report, was not reached.
        time_out: time-out of the process group.
    """
    others = [other for other in range(len(hosts)) if other != rank]
    lost = [other for other in others if answered is None or other not in answered]
    told = name_ranks(lost or others, hosts)
    this = f"rank {rank} on {hosts[rank]}"
    if LATE.search(found):  # gloo also closes the connection then
        cause = f"{this} heard nothing from {told} for {time_out}, the time-out of the process group"
        advice = f"look whether that machine and the network to it work; where a step takes longer, raise {TIME_OUT_KEY}"
    else:
        cause = f"{this} lost the connection to {told}"
        advice = "look there for the first error, and whether that machine and the network to it work"
    return f"{cause} ({found}); {advice}. The last checkpoint stays; the same command goes on"


def name_ranks(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Return ranks in words, with their hosts: "ranks 8-15 on node1 and rank 16 on node2"."""
    told = []
    for host, group in groupby(ranks, key=lambda rank: hosts[rank]):
        members = list(group)
        consecutive = members == list(range(members[0], members[-1] + 1))
        numbers = f"{members[0]}-{members[-1]}" if consecutive else ", ".join(map(str, members))
        told.append(f"rank {members[0]} on {host}" if len(members) == 1 else f"ranks {numbers} on {host}")
    return " and ".join(filter(None, (", ".join(told[:-1]), told[-1])))


def find_living_ranks(patience: float = REPORT_SECONDS) -> set[int] | None:
    """Report to the other ranks after a failure, and return those that report, too; None if the store was not reached.

    Ranks that wait in the same collective run into the time-out together. A rank that was killed or cut off never reports.
    """
    store = dist.distributed_c10d._get_default_store()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    answered: set[int] = set()
    reached = threading.Event()

    def ask() -> None:
        end = time.monotonic() + patience
        with suppress(RuntimeError):  # the store is gone, or a rank has not reported in time
            store.set(f"walt/failed/{rank}", "")
            store.wait([f"walt/failed/{rank}"], timedelta(seconds=patience))  # it answers
            reached.set()
            while len(answered) < ranks - 1 and time.monotonic() < end:
                here = [other for other in range(ranks) if other != rank and store.check([f"walt/failed/{other}"])]
                answered.update(here)
                time.sleep(0.2)

    # A store behind a broken link does not answer: its client may wait for longer than it was told.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience + 1)
    return set(answered) if reached.is_set() else None
