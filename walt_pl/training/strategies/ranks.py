"""Prepare a training for several processes, machines, and the scheduler that starts them."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from walt_pl.training.strategies.lost_ranks import note_hosts
from walt_pl.training.strategies.reduction import reduce_without_barrier
from walt_pl.training.strategies.shared_folder import check_shared_folder
from walt_pl.training.strategies.store import TIME_OUT, listen_locally


def check_machines(trainer: Any, folder: Path) -> None:
    """Check that all machines see the folder of the run. The launchers that Lightning knows tell where the first machine is.

    Args:
        trainer: parsed options of the trainer.
        folder: folder of the run.

    Raises:
        ValueError: a machine does not see the folder.
        LostRank: the machines do not reach each other.
    """
    if trainer.num_nodes == 1 or trainer.plugins or LSFEnvironment.detect() or MPIEnvironment.detect():
        return
    arguments = getattr(trainer.strategy, "init_args", None) or {}
    check_shared_folder(folder, _find_environment(), trainer.num_nodes, arguments.get("timeout") or TIME_OUT)


def prepare_ranks(trainer: L.Trainer) -> None:
    """Replace what Lightning does with ranks by what the program needs; before the trainer is set up."""
    listen_locally(trainer.strategy)
    reduce_without_barrier(trainer.strategy)
    _note_hosts_after_setup(trainer.strategy)
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        # Before the first step and after the last one, Lightning would answer SIGUSR1 with a checkpoint of its own at any point of the
        # code, and put the job into the queue again without a limit. The next start would take that checkpoint in place of ours.
        environment.auto_requeue = False


def _find_environment() -> ClusterEnvironment:
    """Return the environment that Lightning will take. torchrun may run inside a job of SLURM."""
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            return environment()
    return LightningEnvironment()


def _note_hosts_after_setup(strategy: Strategy) -> None:
    if not isinstance(strategy, DDPStrategy):
        return
    setup_distributed = strategy.setup_distributed

    def setup() -> None:
        setup_distributed()
        note_hosts()

    strategy.setup_distributed = setup  # type: ignore[method-assign]  # Lightning makes the strategy of "auto" itself
