"""A training small enough to be run on any engine in a second: joint batches of latents, lost clips, given pasts, self-conditioning.

:func:`start` runs :class:`Job`s on so many ranks; rank zero leaves what the tests look at in the folder of each job: ``result.json``,
``weights.safetensors``, ``ema.safetensors`` and the checkpoint ``at=STEP/``.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset

from stages.base import BaseStage
from tests.helpers.starts import launch
from walt_pl.data.batch import Sample, SampleRef
from walt_pl.data.loader import JointLoader
from walt_pl.data.sampler import JointSampler, SequentialSampler
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.text.small_encoder import SmallTextConfig, train_vocabulary
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.strategies.shards import gather, local_shard, trainable_parameters
from walt_pl.training.strategies.zero import ZeROStrategy

CAPTIONS = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "square", "bar")]
SIZE = (3, 4, 4)
CHANNELS = 4
LOST = 3


@dataclass(frozen=True)
class Job:
    """One training."""

    name: str
    engine: str = "single"
    """single, ddp, zero1, zero2, zero3 or zero2_offload."""
    steps: int = 8
    save: int | None = None
    """Step of a checkpoint."""
    resume: str | None = None
    """Folder of one."""
    validate: bool = False
    """Do not train: validate what `resume` holds."""
    precision: str = "32-true"
    accumulate: int = 1
    activation_checkpointing: bool = False
    cpu_average: bool = False


class Latents(Dataset[Sample]):
    """Noise by item, every so many of them lost."""

    def __getitem__(self, draw: SampleRef) -> Sample:  # type: ignore[override]
        rng = torch.Generator().manual_seed(2 * draw.item + (draw.kind == "image"))
        frames = SIZE[0] if draw.kind == "video" else 1
        content = torch.randn(CHANNELS, frames, *SIZE[1:], generator=rng)
        lost = "lost" if draw.item % LOST == 0 else ""
        caption = CAPTIONS[draw.item % len(CAPTIONS)]
        return Sample(draw, content * (not lost), None, caption, -1, f"{draw.kind}{draw.item}", lost, "latents")


class Stage(BaseStage):
    """The base stage without an autoencoder: its batches are latents."""

    def setup(self, stage: str) -> None:
        assert self.text is not None
        self.text.load_vocabulary(train_vocabulary(CAPTIONS, 64))


def adamw(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)


def stage(activation_checkpointing: bool = False) -> Stage:
    """Return a stage with equal weights on every rank and engine, and a gradient limit that every step exceeds."""
    torch.manual_seed(0)
    denoiser = DenoiserConfig(
        width=32,
        depth=2,
        num_heads=2,
        latent_channels=CHANNELS,
        size=SIZE,
        window_size=(3, 2, 2),
        frame_prediction=0.5,
        text_width=16,
        activation_checkpointing=activation_checkpointing,
    )
    text = SmallTextConfig(width=16, depth=1, num_heads=2, vocab_size=64, max_length=8)
    return Stage(denoiser, adamw, text, warmup_steps=2, gradient_clip_val=0.3)


class Watch(L.Callback):
    """Writes down what happens, and the checkpoint of the job."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.validations: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        if "train/gradient_norm" in trainer.callback_metrics:
            self.norms.append(float(trainer.callback_metrics["train/gradient_norm"]))
        if trainer.global_step == self.job.save:
            at = self.folder / f"at={trainer.global_step}"
            trainer.save_checkpoint(at / "state.ckpt")
            average(trainer).save(at, trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validations.append(float(trainer.callback_metrics["val/loss"]))


def average(trainer: L.Trainer) -> EMA:
    return next(c for c in trainer.callbacks if isinstance(c, EMA))  # type: ignore[attr-defined]


def strategy(engine: str) -> Any:
    """As the overlays of experiments/strategy give it; small buckets, and nothing that stays whole."""
    if not engine.startswith("zero"):
        return {"single": "auto", "ddp": "ddp"}[engine]
    return ZeROStrategy(int(engine[4]), offload=engine.endswith("_offload"), bucket=5000, keep_whole=0)  # type: ignore[arg-type]


def run(job: Job, folder: Path, rank: int, ranks: int) -> None:
    """Train and write the results."""
    watch, ema = Watch(job, folder), EMA(0.5, cpu=job.cpu_average)
    module = stage(job.activation_checkpointing)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy(job.engine),
        precision=job.precision,  # type: ignore[arg-type]
        max_steps=job.steps,
        val_check_interval=4 * job.accumulate,
        check_val_every_n_epoch=None,
        accumulate_grad_batches=job.accumulate,
        callbacks=[ema, watch],
        default_root_dir=folder,
        logger=False,
        use_distributed_sampler=False,
        **dict.fromkeys(["enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False),
        num_sanity_val_steps=0,
    )
    training = JointLoader(Latents(), JointSampler(70, 90, 4, 4, rank, ranks))
    validation = JointLoader(Latents(), SequentialSampler(8, 8, 4, 4, rank, ranks))
    state = None if job.resume is None else Path(job.resume) / "state.ckpt"
    if job.resume is not None:
        ema.load(Path(job.resume))
    if job.validate:
        trainer.validate(module, validation, ckpt_path=state, verbose=False, weights_only=True)
    else:
        trainer.fit(module, training, validation, ckpt_path=state, weights_only=True)
    weights = {name: gather(p, local_shard(p)).detach().clone() for name, p in trainable_parameters(module)}
    averages = ema.whole(module)
    held = {
        "weights": sum(p.ds_tensor.numel() if hasattr(p, "ds_tensor") else p.numel() for p in module.parameters()),
        "average": sum(piece.numel() for piece in ema._average.values()),
    }
    everyones: list[Any] = [None] * ranks
    if ranks > 1:
        torch.distributed.all_gather_object(everyones, held)
    else:
        everyones = [held]
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "weights.safetensors")
        save_file(averages, folder / "ema.safetensors")
        seen = {"losses": watch.losses, "norms": watch.norms, "validations": watch.validations, "held": everyones}
        (folder / "result.json").write_text(json.dumps(seen))


Work = Callable[[Any, Path, int, int], None]


def start(folder: Path, ranks: int, *jobs: Any, run: Work = run) -> None:
    """Run jobs one after the other, on so many processes."""
    started = launch(_work, folder, jobs, run, ranks=ranks)
    started.wait(timeout=1200)
    assert not any(process.exitcode for process in started.ranks), started.said[-6000:]


def _work(folder: Path, jobs: Sequence[Any], run: Work) -> None:
    place = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # a trainer removes the second when it ends
    for job in jobs:
        run(job, folder / job.name, *place)
