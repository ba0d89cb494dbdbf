"""Two processes as the first ones of two machines, and the folder of a run that both see, or one does not."""

import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment

from tests.helpers.starts import launch
from walt_pl.training.strategies.lost_ranks import LostRank
from walt_pl.training.strategies.shared_folder import check_shared_folder


def look(folders: list[Path], seconds: float) -> None:
    """Look from machine 0 or 1, each with its own folder of that name, and print what is said."""
    number = int(os.environ["LOCAL_RANK"])
    # The agent whose rank has failed counts a restart, the others do not.
    os.environ.update(NODE_RANK=str(number), LOCAL_RANK="0", TORCHELASTIC_RESTART_COUNT=str(number))
    os.chdir(folders[number])
    try:
        check_shared_folder(Path("run"), LightningEnvironment(), 2, timedelta(seconds=seconds))
        told = "shared"
    except ValueError as error:
        told = f"refused: {error}"
    os.write(1, f"machine {number} {told}\n".encode())


def test_shared_folder_that_both_machines_see_is_accepted(tmp_path: Path) -> None:
    started = launch(look, [tmp_path, tmp_path], 60, ranks=2)
    assert started.wait() == 0, started.said
    assert sorted(line for line in started.said.splitlines() if line.startswith("machine")) == ["machine 0 shared", "machine 1 shared"]
    assert list((tmp_path / "run").iterdir()) == []


def test_shared_folder_that_one_machine_does_not_see_is_refused_on_both(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        (folder / "run").mkdir(parents=True)
    started = launch(look, folders, 60, ranks=2)
    assert started.wait() == 0, started.said
    lines = sorted(line for line in started.said.splitlines() if line.startswith("machine"))
    here = socket.gethostname()
    for number, (line, folder) in enumerate(zip(lines, folders, strict=True)):
        assert line.startswith(
            f"machine {number} refused: --run run: {here} does not see what the first machine writes into {folder}/run; "
        )
    assert not list(tmp_path.rglob(".shared-*"))


def test_shared_folder_first_machine_alone_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
