"""A disk that is full for one of two ranks that write shards: all of them train on, and what was written stays."""

import errno
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.engine_training import stage, start, strategy
from tests.helpers.guarded_training import Data
from walt_pl.runs.checkpoint import TAG, Checkpoint, check_pickle, folder_name, read_state
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.strategies.shards import gather, local_shard, trainable_parameters


@dataclass(frozen=True)
class Full:
    """A training of five steps with a checkpoint after each; what one rank writes after the second and the third fails."""

    name: str
    engine: str
    rank: int | None = None
    place: str = ""
    """Write that fails: a shard, half way, or the folder."""


class FillsUp(L.Callback):
    """Comes before the writer."""

    def __init__(self, place: str) -> None:
        self.module, self.function, self.fails = PLACES[place]
        self.works = getattr(self.module, self.function)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        works = self.works
        setattr(self.module, self.function, self.fails(works) if trainer.global_step in (2, 3) else works)


def _half_a_shard(works: Callable[..., None]) -> Callable[..., None]:
    def save(state: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return save


def _no_folder(works: Callable[..., None]) -> Callable[..., None]:
    def mkdir(path: Any, *arguments: Any, **more: Any) -> None:
        if Path(path).name == TAG:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        works(path, *arguments, **more)

    return mkdir


PLACES: dict[str, tuple[Any, str, Callable[..., Any]]] = {"shard": (torch, "save", _half_a_shard), "folder": (os, "mkdir", _no_folder)}


def run(job: Full, folder: Path, rank: int, ranks: int) -> None:
    """Train, and write down the weights and what was said."""
    full = [FillsUp(job.place)] if rank == job.rank else []
    module = stage()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy(job.engine),
        max_steps=5,
        callbacks=[EMA(0.5), *full, Checkpoints(str(folder / "checkpoints"), every_n_train_steps=1, every_n_minutes=0, keep=9)],
        default_root_dir=folder,
        logger=False,
        use_distributed_sampler=False,
        **dict.fromkeys(["enable_progress_bar", "enable_model_summary"], False),
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=Data())
    weights = {name: gather(p, local_shard(p)).detach().clone() for name, p in trainable_parameters(module)}
    if rank == 0:
        save_file(weights, folder / "weights.safetensors")
        (folder / "said.txt").write_text("\n".join(str(one.message) for one in told))


JOBS = [
    Full("zero2 shard of the other rank", "zero2", 1, "shard"),
    Full("zero2 shard of the first rank", "zero2", 0, "shard"),
    Full("zero2 folder", "zero2", 0, "folder"),
    Full("zero3 shard of the other rank", "zero3", 1, "shard"),
    Full("ddp file", "ddp", 0, "shard"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    # Each beside its like: ZeRO 3 leaves another linear layer behind in the process, which rounds otherwise.
    undisturbed = [Full(engine, engine) for engine in ("zero2", "zero3", "ddp")]
    start(folder, 2, *sorted([*JOBS, *undisturbed], key=lambda job: ("zero2", "zero3", "ddp").index(job.engine)), run=run)
    return folder


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_checkpoints_on_a_full_disk_of_one_rank_warns_and_all_ranks_continue(folder: Path, job: Full) -> None:
    checkpoints = folder / job.name / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [folder_name(step) for step in (1, 4, 5)]
    for checkpoint in Checkpoint.all(checkpoints):
        assert read_state(checkpoint.state)["global_step"] == checkpoint.step
        check_pickle(checkpoint.state)
    failures = [line for line in (folder / job.name / "said.txt").read_text().splitlines() if "could not be written" in line]
    assert [line.partition(":")[0] for line in failures] == ["step 2", "step 3"]
    reason = "No space left on device" if job.rank == 0 else "on another rank"
    assert all(reason in line and "step=00000001 stays; make room in" in line for line in failures)
    mine, undisturbed = (load_file(folder / name / "weights.safetensors") for name in (job.name, job.engine))
    assert all(torch.equal(mine[key], undisturbed[key]) for key in undisturbed)
