"""Check the trainer's options and the devices of this machine, before anything is built."""

import os
from collections.abc import Mapping
from typing import Any

import torch

GPU = ("gpu", "cuda")
RENDEZVOUS = ("MASTER_ADDR", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE")
"""Environment variables of which one is set when several machines train together."""
ACCELERATORS = ("auto", "cpu", *GPU, "mps")


def check_trainer(trainer: Any) -> None:
    """Refuse options of the trainer that no stage can train with.

    Args:
        trainer: parsed options of the trainer.

    Raises:
        ValueError: with what was found and what to type.
    """
    if trainer.enable_checkpointing is False:
        raise ValueError(
            "trainer.enable_checkpointing: found false, but a training goes on from its checkpoints after a stop; leave it out. "
            "For fewer checkpoints give --checkpoint.every_n_train_steps N"
        )
    if trainer.barebones:
        raise ValueError("trainer.barebones: found true, but it trains without checkpoints and logs; leave it out")
    interval = trainer.val_check_interval
    if isinstance(interval, float) and trainer.check_val_every_n_epoch is None:
        raise ValueError(
            f"trainer.val_check_interval: found {interval:g}, a share of an epoch, wanted a number of steps: "
            "--trainer.val_check_interval 500"
        )
    if trainer.accumulate_grad_batches < 1:
        raise ValueError(f"trainer.accumulate_grad_batches: found {trainer.accumulate_grad_batches}, wanted at least 1")
    _check_devices(trainer)
    _check_slurm(trainer, os.environ)


def _check_devices(trainer: Any) -> None:
    """Refuse an accelerator or a number of devices that this machine does not have."""
    accelerator = trainer.accelerator
    if not isinstance(accelerator, str):
        return
    if accelerator not in ACCELERATORS:
        raise ValueError(f"trainer.accelerator: found {accelerator}, wanted one of {', '.join(ACCELERATORS)}")
    if trainer.num_nodes < 1:
        raise ValueError(f"trainer.num_nodes: found {trainer.num_nodes}, wanted the number of machines, at least 1")
    gpus = torch.cuda.device_count()
    if accelerator in GPU and not gpus and not torch.backends.mps.is_available():
        raise ValueError(
            "trainer.accelerator: found no GPU on this machine, and the stage asks for one; to try it without, add "
            "--trainer.accelerator cpu --trainer.devices 1 (experiments/shapes and experiments/clips are made for a CPU)"
        )
    if trainer.num_nodes > 1 and not trainer.plugins and not any(name in os.environ for name in RENDEZVOUS):
        raise ValueError(
            f"trainer.num_nodes: found {trainer.num_nodes}, but nothing says where the first machine is, and it would be waited for: start "
            "with srun or torchrun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK (docs/SCALING.md)"
        )
    on_gpu = accelerator in GPU or (accelerator == "auto" and gpus > 0)
    wanted = _number_of(trainer.devices, on_gpu)
    if on_gpu and gpus and wanted > gpus:
        found = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
        raise ValueError(f"trainer.devices: found {found} on this machine, wanted {wanted}: give --trainer.devices {gpus}")
    processors = os.cpu_count() or 1
    # Ranks that something else started (torchrun, the tests) are its choice.
    if not on_gpu and wanted > processors and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"trainer.devices: found {processors} processors on this machine, and no GPU is used; {wanted} processes are wanted: "
            "give --trainer.devices 1"
        )


def _number_of(devices: Any, on_gpu: bool) -> int:
    """Return the number of devices that an option asks for; 0 where the trainer decides."""
    if isinstance(devices, list):
        return len(devices)
    text = str(devices)
    if text == "auto" or (text == "-1" and on_gpu):
        return 0
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if on_gpu and "," in text and all(part.isdigit() for part in parts):
        return len(parts)
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"trainer.devices: found {text}, wanted the number of devices on each machine, at least 1, or auto")
    return int(text)


def _check_slurm(trainer: Any, environment: Mapping[str, str]) -> None:
    """Refuse to wait for tasks of SLURM that nobody started.

    Lightning takes SLURM_NTASKS for the mark of `srun`, but a shell of salloc or sbatch has it, too. Only `srun` sets SLURM_STEP_ID.
    """
    tasks = environment.get("SLURM_NTASKS")
    started = "SLURM_STEP_ID" in environment or "TORCHELASTIC_RUN_ID" in environment or bool(trainer.plugins)
    if tasks is None or started or environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return
    if tasks != "1" or "SLURM_PROCID" not in environment:
        raise ValueError(
            f"SLURM_NTASKS: found {tasks} tasks of a SLURM job, but this process was not started by srun, and the others would be waited "
            "for; put srun before the command, or type: unset SLURM_NTASKS"
        )
