"""Check that all machines of a training see the folder of its run, before anything is read from it."""

from __future__ import annotations

import os
import platform
import re
import secrets
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # exported under a condition

from walt_pl.runs.run_files import SHARED_FILE
from walt_pl.training.strategies.lost_ranks import LostRank, describe_absence
from walt_pl.training.strategies.store import is_served_by_agent, serve_store

LOOK_SECONDS = 60.0
"""Seconds in which a new file is to be seen by the other machines. NFS keeps what it knows of a folder for up to a minute."""


def check_shared_folder(folder: Path, environment: ClusterEnvironment, machines: int, timeout: timedelta) -> None:
    """Check that the other machines see a file that the first one writes. All processes wait for the answers.

    Args:
        folder: folder of the run.
        environment: of the processes: place of this one, and address of the first.
        machines: number of machines.
        timeout: time that the machines wait for each other.

    Raises:
        ValueError: a machine does not see the file; on all machines.
        LostRank: the machines do not reach each other.
        OSError: the first machine cannot write into the folder.
    """
    # Lightning starts the further processes of a machine after this check. torchrun's own store keeps the answers of earlier starts, and
    # nothing that all ranks have tells one start from another.
    started_by_lightning = isinstance(environment, LightningEnvironment)
    if machines == 1 or is_served_by_agent() or (started_by_lightning and environment.local_rank()):
        return
    address, port = environment.main_address, environment.main_port
    processes = machines if started_by_lightning else environment.world_size()
    is_first = environment.node_rank() == environment.local_rank() == 0
    try:
        if is_first:
            serve_store(environment, processes, is_local=False, timeout=timeout)
        store = PrefixStore("walt/shared", TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False))
        problem = (
            _write_probe(store, folder, machines, processes, timeout) if is_first else _look_for_probe(store, folder, environment, machines)
        )
    except dist.DistError as error:
        who = f"machine {environment.node_rank()} on {platform.node()}"
        found = str(error).partition("\n")[0]
        raise LostRank(describe_absence(found, who, f"{machines} machines", f"{address}:{port}", timeout)) from error
    if problem:
        raise ValueError(
            f"--run {folder}: {problem} into {folder.absolute()}; name a folder on a file system that all machines share, under "
            "the same path"
        )


def _write_probe(store: PrefixStore, folder: Path, machines: int, processes: int, timeout: timedelta) -> str:
    """Write a file, and return which machines do not see it, "" if all do. Nothing of it stays, neither here nor in the store."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f".shared-{secrets.token_hex(8)}"
    try:
        written.touch(exist_ok=False)
        store.set("writer", platform.node())
        store.set("file", written.name)
        problem = _read_answers(store, machines)
        # The store ends with this process, and others of its machine may start late.
        end = time.monotonic() + (LOOK_SECONDS if problem else timeout.total_seconds())
        while (missing := processes - 1 - store.add("read", 0)) > 0 and time.monotonic() < end:
            time.sleep(0.05)
        if missing > 0 and not problem:
            raise dist.DistError(f"timed out waiting for {missing} of {processes} processes")
        # A process that comes late must not take these for the answers of its own start.
        for key in ("file", "writer", "read", *(f"seen/{machine}" for machine in range(1, machines))):
            store.delete_key(key)
        return problem
    finally:
        written.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _look_for_probe(store: PrefixStore, folder: Path, environment: ClusterEnvironment, machines: int) -> str:
    """Look for the file of the first machine once on each machine, and return which machines do not see it, "" if all do.

    Raises:
        ValueError: the store, which has no password, names another kind of file.
    """
    name = store.get("file").decode()
    if re.fullmatch(SHARED_FILE, name) is None:
        raise ValueError(f"the first machine names the file {name[:100]!r}; the store of this training is used by another program")
    if environment.node_rank() and not environment.local_rank():
        store.set(f"seen/{environment.node_rank()}", f"{int(_appears(folder / name))} {platform.node()}")
    problem = _read_answers(store, machines)
    store.add("read", 1)
    return problem


def _read_answers(store: PrefixStore, machines: int) -> str:
    answers = [store.get(f"seen/{machine}").decode().split(" ", 1) for machine in range(1, machines)]
    unseen = [name for seen, name in answers if seen == "0"]
    sees = "does" if len(unseen) == 1 else "do"
    return f"{' and '.join(unseen)} {sees} not see what {store.get('writer').decode()} writes" if unseen else ""


def _appears(path: Path) -> bool:
    """Return whether a file is there, now or soon."""
    end = time.monotonic() + LOOK_SECONDS
    while True:
        for folder in (path.parent.parent, path.parent):
            with suppress(OSError):  # it is not there yet; listing a folder makes NFS ask the server anew
                os.listdir(folder)
        if path.exists():
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
