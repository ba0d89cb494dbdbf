"""Let the store of the process group, through which ranks find each other, listen on one address only.

It has no password: a stranger who reaches it can alter or end a training. torch listens on all interfaces of the machine.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # exported under a condition

LOCAL = "127.0.0.1"
TIME_OUT = timedelta(minutes=30)
"""Time-out of the process group where the strategy names none: Lightning's."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Environment variables of the interface between ranks. They are set where all ranks are on one machine, unless a user has set them.

On several machines gloo takes the interface of NCCL."""
_stores: dict[int, TCPStore] = {}
"""Stores of this process by port. torch's own one shares the server of the one here, by its port."""


def listen_locally(strategy: Strategy) -> None:
    """Make a strategy listen on the address of the main machine only, and on 127.0.0.1 where all ranks are on one machine.

    Args:
        strategy: the strategy of a trainer, before it is set up. DDP and ZeRO are of several processes.
    """
    if not isinstance(strategy, DDPStrategy):
        return
    setup_distributed = strategy.setup_distributed

    def setup() -> None:
        _open_store(strategy)
        setup_distributed()

    strategy.setup_distributed = setup  # type: ignore[method-assign]  # Lightning makes the strategy of "auto" itself


def _open_store(strategy: DDPStrategy) -> None:
    """Open the store on rank zero, bound to its address, before torch would open one on all interfaces."""
    environment = strategy.cluster_environment
    assert environment is not None
    strategy.set_world_ranks()
    is_local = strategy.num_nodes == 1
    if not is_local and (names := exact_names(os.environ.get("NCCL_SOCKET_IFNAME", ""))):
        # A user who names the network card means all traffic between ranks.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names)
    if is_served_by_agent():
        return
    if is_local:
        os.environ["MASTER_ADDR"] = LOCAL  # on every rank, also where a scheduler names the machine
        loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
        for variable in INTERFACES if loopback else ():
            os.environ.setdefault(variable, str(loopback))
    if strategy.global_rank == 0:
        serve_store(environment, strategy.num_nodes * strategy.num_processes, is_local, strategy._timeout or TIME_OUT)


def is_served_by_agent() -> bool:
    """Return whether torchrun's own process serves the store. It keeps the answers of earlier starts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def serve_store(environment: ClusterEnvironment, processes: int, is_local: bool, timeout: timedelta) -> None:
    """Open the store on the first machine, unless this process serves it already.

    Args:
        environment: of the processes, which has address and port.
        processes: number of processes that use the store.
        is_local: all of them are on this machine.
        timeout: time that they wait for each other.
    """
    if environment.main_port in _stores:
        return
    listener = _bind(environment.main_address, environment.main_port, is_local)
    _stores[environment.main_port] = TCPStore(
        environment.main_address,
        environment.main_port,
        processes,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listener.detach() if listener else None,
    )


def exact_names(interfaces: str) -> str:
    """Return the interfaces of a value of NCCL_SOCKET_IFNAME as gloo reads them, or "" where the value does not name them exactly.

    NCCL takes each name of a list as the beginning of a name. `=` before the list asks for equal names, `^` excludes them, and a name may
    have a port behind a colon. Gloo wants equal names. A name counts if this machine has an interface of that name.

    Args:
        interfaces: a name, or names with commas between them.
    """
    names = interfaces.split(",")
    there_are = {name for _, name in socket.if_nameindex()}
    return interfaces if all(name in there_are for name in names) else ""


def _bind(address: str, port: int, is_local: bool) -> socket.socket | None:
    """Return a socket that listens on the address of the main machine; None if it has no address that the others reach."""
    try:
        family, *_, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        if not is_local and ipaddress.ip_address(place[0]).is_loopback:  # /etc/hosts may name the own machine so
            raise OSError(f"{address} is {place[0]} here, which other machines do not reach")
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        rank_zero_warn(
            f"the store of the process group listens on all interfaces of this machine ({error}): keep port {port} closed to others, "
            "or set MASTER_ADDR to the address of this machine"
        )
        return None
    return listener
