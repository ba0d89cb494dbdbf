"""Check that all machines of a training see the folder of its run, before anything is read from it."""

from __future__ import annotations

import os
import platform
import secrets
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # exported under a condition

from walt_pl.training.strategies.lost_ranks import LostRank
from walt_pl.training.strategies.store import serve_store

PATIENCE = 5.0
"""Seconds in which a new file is to be seen by the other machines. Network file systems keep what they know of a folder for a while."""


def check_shared_folder(folder: Path, environment: ClusterEnvironment, machines: int, timeout: timedelta) -> None:
    """Check that the other machines see a file that the first one writes. The first process of each machine takes part.

    Args:
        folder: folder of the run. The first machine makes it if there is none.
        environment: of the processes: place of this one, and address of the first.
        machines: number of machines.
        timeout: time that the machines wait for each other.

    Raises:
        ValueError: a machine does not see the file; on all machines.
        LostRank: the machines do not reach each other.
        OSError: the first machine cannot write into the folder.
    """
    # torchrun's own store keeps the answers of earlier starts, and nothing that all ranks have tells one start from another.
    if machines == 1 or environment.local_rank() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    number = environment.node_rank()
    address, port = environment.main_address, environment.main_port
    try:
        if number == 0:
            serve_store(environment, machines, is_local=False, timeout=timeout)
        store = TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False)
        unseen = _exchange(PrefixStore("walt/shared", store), folder, number, machines)
    except dist.DistError as error:
        raise LostRank(
            f"machine {number} on {platform.node()}: {machines} machines are wanted, and not all have come to {address}:{port} within "
            f"{timeout} ({str(error).partition(chr(10))[0]}); look at the first error of the other machines, and whether they reach this "
            "address; the same command goes on"
        ) from error
    if unseen:
        raise ValueError(
            f"--run {folder}: {' and '.join(unseen)} {'does' if len(unseen) == 1 else 'do'} not see what the first machine writes into "
            f"{folder.absolute()}; name a folder on a file system that all machines share, under the same path"
        )


def _exchange(store: PrefixStore, folder: Path, number: int, machines: int) -> list[str]:
    """Write the file on the first machine and look for it on the others. Return the names of the machines that do not see it."""
    written: Path | None = None
    try:
        if number == 0:
            folder.mkdir(parents=True, exist_ok=True)
            written = folder / f".shared-{secrets.token_hex(8)}"
            written.touch(exist_ok=False)
            store.set("file", written.name)
        path = folder / store.get("file").decode()
        store.set(f"seen/{number}", f"{int(_appears(path))} {platform.node()}")
        answers = [store.get(f"seen/{machine}").decode().split(" ", 1) for machine in range(machines)]
        store.set(f"read/{number}", "")
        if number == 0:  # the store ends with this process
            store.wait([f"read/{machine}" for machine in range(machines)])
    finally:
        if written is not None:
            written.unlink(missing_ok=True)
    return [name for seen, name in answers if seen == "0"]


def _appears(path: Path) -> bool:
    """Return whether a file is there, now or soon."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
