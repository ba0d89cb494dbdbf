"""Two processes as the first ones of two machines, and the folder of a run that both see, or one does not."""

import os
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # exported under a condition

from tests.helpers.starts import launch
from walt_pl.training.strategies import shared_folder
from walt_pl.training.strategies.lost_ranks import LostRank
from walt_pl.training.strategies.shared_folder import check_shared_folder


def look(folders: list[Path], seconds: float, name: str, late: float) -> None:
    """Look from a process of machine 0 or 1, each machine with its own folder of that name, and print what is said."""
    rank = int(os.environ["LOCAL_RANK"])
    machine, local = divmod(rank, 2)
    places = {"GROUP_RANK": machine, "LOCAL_RANK": local, "RANK": rank, "WORLD_SIZE": 4, "TORCHELASTIC_RUN_ID": "x"}
    os.environ.update({key: str(value) for key, value in places.items()})
    os.chdir(folders[machine])
    shared_folder.LOOK_SECONDS = 2.0
    time.sleep(late if rank == 3 else 0)
    if late > seconds and rank == 3:
        return
    try:
        check_shared_folder(Path(name), TorchElasticEnvironment(), 2, timedelta(seconds=seconds))
        told = "shared"
    except (ValueError, LostRank) as error:
        told = f"refused: {error}"
    os.write(1, f"machine {machine} process {local} {told}\n".encode())


def say(folders: list[Path], name: str = "run", late: float = 0, seconds: float = 120) -> list[str]:
    """Return the sorted lines of two processes on each of two machines. One of them is late, or never comes."""
    started = launch(look, folders, seconds, name, late, ranks=4)
    assert started.wait() == 0, started.said
    return sorted(line for line in started.said.split("\n") if line.startswith("machine"))


def test_shared_folder_that_both_machines_see_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    # A process may start later than the others of its machine.
    assert say([tmp_path, tmp_path], late=12) == [f"machine {machine} process {local} shared" for machine in (0, 1) for local in (0, 1)]
    assert list((tmp_path / "run").iterdir()) == []


def test_shared_folder_that_a_process_never_asks_about_ends_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    first, *others = say([tmp_path, tmp_path], late=21, seconds=20)
    assert "2 machines are wanted, and not all have come to 127.0.0.1:" in first
    assert "within 0:00:20 (trainer.strategy.init_args.timeout): timed out waiting for 1 of 4 processes; " in first
    assert [line.rpartition(" ")[2] for line in others] == ["shared", "shared"], "the time-out of the process group ends these"
    assert list((tmp_path / "run").iterdir()) == []


def test_shared_folder_of_a_new_run_is_not_made(tmp_path: Path) -> None:
    """The training makes it. A trial of the training leaves nothing."""
    assert all(line.endswith("shared") for line in say([tmp_path, tmp_path], "runs/new"))
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


def test_shared_folder_that_one_machine_does_not_see_is_refused_by_every_process(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        (folder / "run").mkdir(parents=True)
    lines = say(folders)
    here = socket.gethostname()
    for line, (machine, local) in zip(lines, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        said = f"machine {machine} process {local} refused: --run run: {here} does not see what {here} writes into "
        assert line.startswith(f"{said}{folders[machine]}/run; "), line
    assert not list(tmp_path.rglob(".shared-*"))


@pytest.mark.parametrize("name", ["/etc/passwd", "../.shared-0123456789abcdef", ".shared-0123456789abcdef/x", "manifest.json"])
def test_shared_folder_looks_for_no_other_file(name: str, tmp_path: Path) -> None:
    """The store has no password."""
    store = PrefixStore("walt", TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
    store.set("file", name)
    with pytest.raises(ValueError, match="the store of this training is used by another program"):
        shared_folder._look_for_probe(store, tmp_path, LightningEnvironment(), 2)
    assert not store.check(["seen/1"])


def test_shared_folder_second_machine_alone_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LostRank, match=rf"2 machines are wanted, and not all have come to 127.0.0.1:{port} within 0:00:01"):
        check_shared_folder(tmp_path, LightningEnvironment(), 2, timedelta(seconds=1))


def test_shared_folder_of_one_machine_and_of_further_processes_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    check_shared_folder(tmp_path / "run", LightningEnvironment(), 1, timedelta(seconds=1))
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_shared_folder(tmp_path / "run", LightningEnvironment(), 2, timedelta(seconds=1))
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    check_shared_folder(tmp_path / "run", LightningEnvironment(), 2, timedelta(seconds=1))
    assert not (tmp_path / "run").exists()
