"""Machines and schedulers, before the ranks are connected."""

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from jsonargparse import ArgumentParser
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from walt_pl.training.strategies import ranks
from walt_pl.training.strategies.ranks import check_machines, prepare_ranks
from walt_pl.training.strategies.zero import ZeROStrategy

SLURM = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "walt", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
SLURM |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_STEP_ID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


def options(machines: int, **strategy: Any) -> Any:
    return SimpleNamespace(num_nodes=machines, plugins=None, strategy=SimpleNamespace(init_args=strategy) if strategy else "ddp")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Arguments of each comparison of a folder."""
    asked: list[Any] = []
    for name in [*SLURM, *TORCHRUN]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ranks, "check_shared_folder", lambda *arguments: asked.append(arguments))
    return asked


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({}, LightningEnvironment),
        (SLURM, SLURMEnvironment),
        (TORCHRUN, TorchElasticEnvironment),
        ({**SLURM, **TORCHRUN}, TorchElasticEnvironment),
    ],
)
def test_check_machines_asks_where_the_launcher_says(
    asked: list[Any], variables: dict[str, str], kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert type(L.Trainer(accelerator="cpu", devices=1, logger=False)._accelerator_connector.cluster_environment) is kind, "Lightning's"
    check_machines(options(2), Path("runs/x"))
    check_machines(options(3, timeout=timedelta(seconds=9)), Path("runs/x"))
    assert [(folder, type(where), machines, wait) for folder, where, machines, wait in asked] == [
        (Path("runs/x"), kind, 2, timedelta(minutes=30)),
        (Path("runs/x"), kind, 3, timedelta(seconds=9)),
    ]


def test_check_machines_asks_nobody_on_one_machine_or_with_a_launcher_of_its_own(asked: list[Any]) -> None:
    check_machines(options(1), Path("runs/x"))
    own = options(2)
    own.plugins = ["lightning.fabric.plugins.environments.TorchElasticEnvironment"]
    check_machines(own, Path("runs/x"))
    assert asked == []


def test_prepare_ranks_leaves_the_requeue_to_the_job_script(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    environment = trainer._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment) and environment.auto_requeue, "Lightning's default"
    prepare_ranks(trainer)
    assert not environment.auto_requeue


def test_zero_strategy_time_out_is_a_key() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--strategy", type=ZeROStrategy)
    words = ["--strategy", "walt_pl.strategies.Zero", "--strategy.timeout", "0:02:00"]
    strategy = parser.instantiate_classes(parser.parse_args(words)).strategy
    assert strategy._timeout == timedelta(minutes=2) and ZeROStrategy()._timeout == timedelta(minutes=30)
    assert "0:02:00" in parser.dump(parser.parse_args(words)), "the stored configuration has it"
