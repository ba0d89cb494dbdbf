"""The training of tests/training/strategies on any engine, with the program's own callbacks, and with batches that spoil it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save_file

from tests.helpers.checkpoint_files import describe_again
from tests.helpers.engine_training import Latents, average, stage, strategy
from walt_pl.data.batch import JointBatch
from walt_pl.data.loader import JointLoader
from walt_pl.data.sampler import JointSampler
from walt_pl.runs.checkpoint import Checkpoint, read_state, write_state
from walt_pl.runs.finite import NonFiniteError
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.export import ExportArtifact
from walt_pl.training.callbacks.spike_guard import Diverged, Policy, SpikeGuard
from walt_pl.training.strategies.shards import gather, local_shard, trainable_parameters

POISONED = "denoiser.final_layer.weight"
SLOT = 3
"""Of the last video: rank 1 has it, where there are two."""


@dataclass(frozen=True)
class Guarded:
    """One training."""

    name: str
    engine: str = "single"
    precision: str = "32-true"
    policy: Policy = "skip"
    spoil: Mapping[int, float] = field(default_factory=dict)
    """Step -> what its last video is multiplied with."""
    resume: str | None = None
    """Training whose checkpoint of step 5 this one goes on from."""
    steps: int = 10
    max_incidents: int = 10
    window: int = 16
    decay: float = 0.5
    """Of the average."""
    poison: str = ""
    """Weights that turn nan: POISONED after step 6 (step) or after the last checkpoint (weights), its average then (average), or that in
    the checkpoint to go on from (checkpoint)."""


class Data(L.LightningDataModule):
    """Four videos and four images a step, lost ones among them."""

    videos_per_batch = images_per_batch = 4
    index_sha256 = "0" * 64

    def frame_rate(self) -> float | None:
        return None

    def counts(self) -> dict[str, int]:
        return {"train_videos": 70, "train_images": 90}

    def train_dataloader(self) -> JointLoader:
        assert self.trainer is not None
        return JointLoader(Latents(), JointSampler(70, 90, 4, 4, self.trainer.global_rank, self.trainer.world_size))


class Spoil(L.Callback):
    """Multiplies the last video of some batches, on the rank that has it."""

    def __init__(self, factors: Mapping[int, float]) -> None:
        self.factors = factors

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: JointBatch, batch_idx: int) -> None:
        rows = batch.global_batch_index[: len(batch.videos)] == SLOT
        if rows.any() and trainer.global_step in self.factors:
            batch.videos[rows] = self.factors[trainer.global_step] * torch.ones_like(batch.videos[rows])
            batch.weight[: len(batch.videos)][rows] = 1.0


class Poison(L.Callback):
    """Makes a weight nan on every rank after step 6; or a weight or its average when nothing is left but the artifact."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.what == "step" and trainer.global_step == 6:
            self.poison(trainer, pl_module, "weights")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.poison(trainer, pl_module, self.what)

    @staticmethod
    @torch.no_grad()
    def poison(trainer: L.Trainer, pl_module: L.LightningModule, what: str) -> None:
        weights = {name: piece for name, p in trainable_parameters(pl_module) if (piece := local_shard(p)) is not None}
        pieces = {"weights": weights, "average": average(trainer)._average}.get(what, {})
        if POISONED in pieces:
            pieces[POISONED].fill_(torch.nan)


def poison_state(checkpoint: Path) -> None:
    """Make a weight of a single process's checkpoint nan."""
    path = Checkpoint.at(checkpoint).state
    state = read_state(path)
    state["state_dict"][POISONED].fill_(torch.nan)
    write_state(state, path)
    describe_again(checkpoint)


class Watch(L.Callback):
    """Writes down, after every step, what this rank holds of weights, moments and averages."""

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {"weights": [], "moments": [], "average": [], "rate": []}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        moments = [value for state in trainer.optimizers[0].state.values() for value in state.values() if torch.is_tensor(value)]
        self.seen["weights"].append(_mark([piece for _, p in trainable_parameters(pl_module) if (piece := local_shard(p)) is not None]))
        self.seen["moments"].append(_mark(moments))
        self.seen["average"].append(_mark(list(average(trainer)._average.values())))
        self.seen["rate"].append(trainer.optimizers[0].param_groups[0]["lr"])


def _mark(tensors: list[torch.Tensor]) -> float:
    """A number that changes when any value does."""
    return float(sum((tensor.double().flatten() * torch.arange(1, tensor.numel() + 1)).sum() for tensor in tensors))


def run(job: Guarded, folder: Path, rank: int, ranks: int) -> None:
    """Train, and write the results."""
    watch, writer, ema = Watch(), Checkpoints(str(folder / "checkpoints"), every_n_train_steps=5, every_n_minutes=0, keep=9), EMA(job.decay)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy(job.engine),
        precision=job.precision,  # type: ignore[arg-type]
        max_steps=job.steps,
        callbacks=[
            ema,
            SpikeGuard(job.policy, deviations=30, window=job.window, max_incidents=job.max_incidents),
            Spoil(job.spoil),
            Poison(job.poison),
            watch,
            ExportArtifact(folder / "run", "base", {}, "seed_everything: 0\n"),
            writer,
        ],
        default_root_dir=folder,
        logger=False,
        use_distributed_sampler=False,
        **dict.fromkeys(["enable_progress_bar", "enable_model_summary"], False),
    )
    module, said = stage(), ""
    if job.resume is not None:
        start = folder / "checkpoints" / "step=00000005"
        shutil.copytree(folder.parent / job.resume / "checkpoints" / start.name, start)
        if job.poison == "checkpoint":
            poison_state(start)
        trainer.ckpt_path = str(Checkpoint.at(start).state)  # as the program does it, before anything is set up
    try:
        trainer.fit(module, datamodule=Data(), weights_only=True)
        weights = {name: gather(p, local_shard(p)).detach().clone() for name, p in trainable_parameters(module)}
        if rank == 0:
            save_file(weights, folder / "weights.safetensors")
    except (Diverged, NonFiniteError) as error:
        said = str(error)
    (folder / f"seen.{rank}.json").write_text(json.dumps({**watch.seen, "said": said}))
