"""The sentence about a rank that is not heard from."""

import os
import signal
import socket
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.helpers.starts import launch
from walt_pl.training.strategies.lost_ranks import describe_absence, describe_loss, find_loss, name_ranks

HOSTS = ["a", "a", "b", "b", "c"]


def lose(deed: str) -> None:
    """Lose rank 1 of two, after which the time-out is three seconds, and print the sentence of rank 0."""
    import lightning as L
    import torch
    from lightning.pytorch.strategies import DDPStrategy

    from walt_pl.training.strategies.lost_ranks import explain_lost_ranks, set_time_out
    from walt_pl.training.strategies.ranks import prepare_ranks

    strategy = DDPStrategy(timeout=timedelta(minutes=2))  # the processes may start far apart
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False)
    prepare_ranks(trainer)
    with explain_lost_ranks(trainer.strategy):
        trainer.strategy.setup_environment()
        dist.barrier()
        strategy._timeout = timedelta(seconds=3)
        hasty = dist.new_group()  # as DeepSpeed's: with torch's own time-out
        set_time_out(strategy._timeout)
        if dist.get_rank() == 1:
            if deed == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(30)
            os._exit(0)
        if deed == "bug":
            raise RuntimeError("a mistake of ours: it timed out")
        dist.all_reduce(torch.ones(1), group=hasty)


@pytest.mark.parametrize(
    ("deed", "sentence"),
    [
        ("sleep", "LostRank: rank 0 on {here} heard nothing from rank 1 on {here} for 0:00:03, the time-out of the process group ("),
        ("kill", "LostRank: rank 0 on {here} lost the connection to rank 1 on {here} ("),
        ("bug", "RuntimeError: a mistake of ours: it timed out"),
    ],
)
def test_lost_rank_is_named_with_its_host(deed: str, sentence: str) -> None:
    started = launch(lose, deed, ranks=2)
    started.ranks[0].join(120)
    said = started.said
    started.kill()
    assert started.ranks[0].exitcode == 1, said
    assert sentence.format(here=socket.gethostname()) in said, said


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[/pytorch/gloo/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation", "Timed out waiting 3000ms for recv operation"),
        ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:5", "Connection closed by peer [10.0.0.2]:5"),
        (
            "NCCL error: remote process exited or there was a network error",
            "NCCL error: remote process exited or there was a network error",
        ),
        ("[gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4", None),
        ("CUDA out of memory; the reading timed out", None),
    ],
)
def test_loss_is_found_behind_another_error(text: str, found: str | None) -> None:
    try:
        try:
            raise RuntimeError(text)
        except RuntimeError as error:
            raise KeyError("teardown") from error
    except KeyError as error:
        assert find_loss(error) == found
    assert find_loss(dist.DistNetworkError("The client socket has timed out\nmore")) == "The client socket has timed out"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("timed out after 60s", "not all have come to a:5 within 0:01:00 (trainer.strategy.init_args.timeout): timed out"),
        ("Connection reset by peer", "the connection to a:5 was lost: Connection reset"),
        ("EADDRINUSE: address already in use", "the store at a:5 cannot be opened or reached; another program may use the port"),
    ],
)
def test_describe_absence_gives_the_cause_of_the_error(text: str, cause: str) -> None:
    assert cause in describe_absence(text, "machine 0 on a", "2 machines", "a:5", timedelta(minutes=1))


def test_lost_ranks_are_those_that_have_not_reported() -> None:
    late, minute = "Timed out waiting 60000ms", timedelta(minutes=1)
    told = describe_loss(late, 0, HOSTS, {1, 4}, minute)
    assert told.startswith(
        "rank 0 on a heard nothing from ranks 2-3 on b for 0:01:00, the time-out of the process group (Timed out waiting 60000ms); "
    )
    assert "raise trainer.strategy.init_args.timeout" in told and told.endswith("The last checkpoint stays; the same command goes on")
    assert "from ranks 0-1 on a, rank 3 on b and rank 4 on c" in describe_loss(late, 2, HOSTS, None, minute), "the store was not reached"
    assert "from rank 0 on a, ranks 2-3 on b and rank 4 on c" in describe_loss(late, 1, HOSTS, {0, 2, 3, 4}, minute), "all live"
    closed = describe_loss("Connection closed by peer", 0, HOSTS, {1, 2, 3}, minute)
    assert closed.startswith("rank 0 on a lost the connection to rank 4 on c (Connection closed by peer); look there for the first error")
    for text in ("Application timeout caused pair closure", "Timed out waiting 9ms for send operation"):
        assert "heard nothing from" in describe_loss(text, 0, HOSTS, {1, 2, 3}, minute)
    assert "lost the connection" in describe_loss("[10.0.0.2]:5: Connection timed out", 0, HOSTS, {1, 2, 3}, minute)
    assert name_ranks([0, 3, 4], ["a"] * 5) == "ranks 0, 3, 4 on a"
