"""Sockets of two ranks: none listens on all interfaces of the machine."""

import os
import socket
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.starts import launch
from walt_pl.training.strategies import store


def listening() -> list[str]:
    """Return the addresses, hexadecimal, on which this process listens."""
    own = set()
    for handle in os.listdir("/proc/self/fd"):
        try:
            own.add(os.readlink(f"/proc/self/fd/{handle}"))
        except OSError:
            continue
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own]


def connect(name: str, listens_locally: bool, address: str) -> None:
    """Set up the process group of a strategy, and print what listens."""
    import lightning as L
    import torch
    import torch.distributed as dist

    from walt_pl.training.strategies.zero import ZeROStrategy

    os.environ["MASTER_ADDR"] = address
    strategy = "ddp" if name == "ddp" else ZeROStrategy(1)
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False)
    if listens_locally:
        store.listen_locally(trainer.strategy)
    trainer.strategy.setup_environment()
    total = torch.ones(1) * (1 + dist.get_rank())
    dist.all_reduce(total)
    os.write(1, f"sum {total.item():g} on {' '.join(listening())}\n".encode())  # in one call: print's newline is a write of its own
    dist.barrier()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are listed by /proc")
@pytest.mark.parametrize(
    ("name", "listens_locally", "address"),
    [("ddp", True, "127.0.0.1"), ("zero", True, "127.0.0.1"), ("ddp", True, socket.gethostname()), ("ddp", False, "127.0.0.1")],
)
def test_store_of_ranks_on_one_machine_listens_on_the_loopback_interface(name: str, listens_locally: bool, address: str) -> None:
    started = launch(connect, name, listens_locally, address, ranks=2)
    assert started.wait() == 0, started.said
    lines = [line for line in started.said.splitlines() if line.startswith("sum")]
    assert len(lines) == 2 and all(line.startswith("sum 3 on ") for line in lines)
    addresses = {address for line in lines for address in line.partition(" on ")[2].split()}
    assert (addresses == {"0100007F"}) == listens_locally, f"127.0.0.1 only; torch's own listens on {addresses}"


def test_store_of_several_machines_listens_on_the_main_address_only() -> None:
    address = socket.gethostbyname(socket.gethostname())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    listener = store._bind("127.0.0.1", port, is_local=True)
    assert listener is not None and listener.getsockname() == ("127.0.0.1", port)
    listener.close()
    if not address.startswith("127."):
        listener = store._bind(address, port, is_local=False)
        assert listener is not None and listener.getsockname() == (address, port)
        listener.close()


@pytest.mark.parametrize("address", ["localhost", "192.0.2.1"])
def test_store_without_an_address_of_its_own_says_that_all_interfaces_listen(address: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert store._bind(address, 0, is_local=False) is None
    assert "listens on all interfaces" in str(caught[0].message) and "MASTER_ADDR" in str(caught[0].message)


def open_as_rank_one(nodes: int) -> None:
    strategy: Any = SimpleNamespace(cluster_environment=object(), set_world_ranks=lambda: None, num_nodes=nodes, global_rank=1)
    store._open_store(strategy)


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return a patch of a machine with three interfaces and no variable of them."""
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0"), (3, "eth1")])
    for variable in (*store.INTERFACES, "TORCHELASTIC_USE_AGENT_STORE", "MASTER_ADDR"):
        monkeypatch.setenv(variable, "")  # so that it is restored, also where the store sets it
        monkeypatch.delenv(variable)
    return monkeypatch


@pytest.mark.parametrize("by_torchrun", [False, True])
@pytest.mark.parametrize("value", ["eth0", "eth0,eth1"])
def test_store_of_several_machines_gives_gloo_the_interfaces_of_nccl(value: str, by_torchrun: bool, interfaces: pytest.MonkeyPatch) -> None:
    interfaces.setenv("NCCL_SOCKET_IFNAME", value)
    interfaces.setenv("TORCHELASTIC_USE_AGENT_STORE", str(by_torchrun))
    open_as_rank_one(nodes=2)
    assert os.environ["GLOO_SOCKET_IFNAME"] == value


@pytest.mark.parametrize("value", ["=eth0", "^lo", "^=lo", "eth", "eth0:19000", "eth0,eth", "eth0,", "eth2", "", None])
def test_store_gives_gloo_no_value_that_only_nccl_reads(value: str | None, interfaces: pytest.MonkeyPatch) -> None:
    """A beginning of names, equal names, excluded names, a port, and an interface that is not there."""
    if value is not None:
        interfaces.setenv("NCCL_SOCKET_IFNAME", value)
    open_as_rank_one(nodes=2)
    assert "GLOO_SOCKET_IFNAME" not in os.environ


@pytest.mark.parametrize("nodes", [1, 2])
def test_store_keeps_the_interface_that_a_user_gave_gloo(nodes: int, interfaces: pytest.MonkeyPatch) -> None:
    interfaces.setenv("NCCL_SOCKET_IFNAME", "eth0")
    interfaces.setenv("GLOO_SOCKET_IFNAME", "eth1")
    open_as_rank_one(nodes)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth1"


def test_store_of_one_machine_takes_the_loopback_interface_for_gloo(interfaces: pytest.MonkeyPatch) -> None:
    interfaces.setenv("NCCL_SOCKET_IFNAME", "eth0")
    open_as_rank_one(nodes=1)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
