"""Leave it to the job script to put a job of SLURM into the queue again."""

import lightning as L
from lightning.fabric.plugins.environments import SLURMEnvironment


def leave_requeue_to_the_script(trainer: L.Trainer) -> None:
    """Keep Lightning from answering SIGUSR1 by itself under SLURM.

    Before the first step and after the last one, it would write a checkpoint of its own at any point of the code. It would then put the job
    into the queue again, without a limit. Its checkpoint would be read before ours at the next start.
    """
    environment = trainer._accelerator_connector.cluster_environment  # type: ignore[attr-defined]
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False
