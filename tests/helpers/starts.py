"""Starts the program in a second: each start is a fork of a process that has imported everything, and can be killed like any other."""

import contextlib
import functools
import multiprocessing
import os
import random
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Start:
    """A started program: one process for each rank."""

    ranks: list[ForkServerProcess]
    log: Path
    """Printed text, one process after the other."""

    def wait(self, timeout: float = 240) -> int:
        """Exit code of rank zero, once all have ended."""
        for process in self.ranks:
            process.join(timeout)
            if process.is_alive():
                self.kill()
                raise TimeoutError(f"no end after {timeout} s:\n{self.said[-3000:]}")
        return int(self.ranks[0].exitcode or 0)

    def leftovers(self) -> list[int]:
        """Processes that it started and that are still there, workers and their server included."""
        mark = f"STARTED_BY_TEST={self.log}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended, or is another user's
                if mark in (process / "environ").read_bytes().split(b"\0") and b"Z" not in (process / "stat").read_bytes().split()[2]:
                    found.append(int(process.name))
        return found

    def kill(self) -> None:
        """kill -9 to every rank."""
        for process in self.ranks:
            process.kill()
        for process in self.ranks:
            process.join()

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


def start(*arguments: str, ranks: int = 1, terminal: str | None = None) -> Start:
    """Start ``python -m walt_pl ARGUMENTS``, on a terminal if one is named; more ranks are told of each other as torchrun would."""
    return launch(_program, arguments, ranks=ranks, terminal=terminal)


def launch(work: Callable[..., None], *arguments: object, ranks: int = 1, terminal: str | None = None) -> Start:
    """Start a function of a module on so many ranks."""
    context = fork_server()
    handle, log = tempfile.mkstemp(suffix=".log", dir=_folder().name)
    os.close(handle)
    port = _free_port()
    processes = []
    for rank in range(ranks):
        told = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        told = {"STARTED_BY_TEST": log, "TMPDIR": _folder().name, **(told if ranks > 1 else {})}
        processes.append(context.Process(target=_run, args=(work, arguments, told, terminal or log), daemon=False))
        processes[-1].start()
    return Start(processes, Path(log))


@functools.cache
def fork_server() -> ForkServerContext:
    """Return the context of processes that have imported everything. Its server starts with the first call.

    A process has one such server, which keeps the first list of modules, and the environment of its start.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            *(
                "tests.helpers.starts",
                "tests.attack.writers",
                "walt_pl.cli.main",
                "walt_pl.cli.fit",
                "walt_pl.cli.plan",
                "walt_pl.cli.cache",
            ),
            *("walt_pl.cli.sample", "walt_pl.sampling.cascade", "walt_pl.data.workers", "walt_pl.data.transforms", "walt_pl.data.cache"),
            *("stages.vae", "stages.base", "stages.super_resolution", "datamodules.joint", "walt_pl.media.writing"),
            *("torch.utils.tensorboard", "timm.optim", "deepspeed", "lightning.pytorch.cli", "jsonargparse.typing", "attrs"),
        ]
    )
    ensure_running()
    return context


def _free_port() -> str:
    """Return a port below those that the system gives to sockets which name none: until it is used, another process may take such a one."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return str(port)
    raise AssertionError("no free port")


def fit(*arguments: str, ranks: int = 1) -> str:
    """Start, wait, and give what was said.

    Raises:
        AssertionError: it ended with an error.
    """
    started = start("fit", *arguments, ranks=ranks)
    code = started.wait()
    assert code == 0, f"{' '.join(arguments)}\nexit code {code}\n{started.said[-5000:]}"
    return started.said


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Folder of the logs, and of what a killed program leaves behind. It is removed when the tests end."""
    return tempfile.TemporaryDirectory(prefix="walt-tests-", ignore_cleanup_errors=True)


def _run(work: Callable[..., None], arguments: Sequence[object], environment: Mapping[str, str], log: str) -> None:
    import torch
    from lightning.pytorch.utilities import rank_zero_only

    os.chdir(ROOT)
    os.environ.update(environment)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the server may be that of decoding workers, which blocks some
    tempfile.tempdir = None  # TMPDIR is read again
    rank_zero_only.rank = int(environment.get("LOCAL_RANK", 0))  # set by an import that was before this rank was told
    torch.set_num_threads(1)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    work(*arguments)


def _program(arguments: Sequence[str]) -> None:
    sys.argv = ["walt_pl", *arguments]
    runpy.run_module("walt_pl", run_name="__main__", alter_sys=True)
