"""Exact resume: 4 steps at once against 2 steps, a checkpoint, and 2 more in a new Trainer; weights and averages bit by bit.

"again" compares two trainings of 4 steps, which differ where a kernel is not deterministic. The base is the L model with 4 layers, its
attention and compilation as shipped. The autoencoder is that of the embedded set with its discriminator,
which trains from the first step.
"""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, Figure
from benchmarks.gpu.stage_training import average, build_data, build_stage, build_trainer, quick_changes
from walt_pl.training.callbacks.ema import EMA

STEPS, SAVED = 4, 2
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("ucf101/base_l", {"denoiser": {"depth": 4}}),
    "autoencoder": ("shapes/vae_gan", {"adversarial_start": 0, "adversarial_warmup": 0}),
}
State = dict[str, Tensor]


class Save(L.Callback):
    """Write a checkpoint at a step."""

    def __init__(self, folder: Path, ema: EMA) -> None:
        self.folder = folder
        self.ema = ema

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == SAVED:
            trainer.save_checkpoint(self.folder / "state.ckpt")
            self.ema.save(self.folder, trainer, pl_module)


def measure(bench: Bench) -> None:
    for name, (experiment, changes) in KINDS.items():
        changes = {**changes, **(quick_changes(experiment) if bench.quick else {})}
        kept: list[State] = []
        folder = bench.folder / name
        folder.mkdir()

        def again(experiment: str = experiment, changes: Any = changes, kept: list[State] = kept, at: Path = folder) -> dict[str, Figure]:
            kept.append(_train(bench, experiment, changes, at, STEPS, save=True))
            return _compare(_train(bench, experiment, changes, at, STEPS), kept[0])

        def resumed(experiment: str = experiment, changes: Any = changes, kept: list[State] = kept, at: Path = folder) -> dict[str, Figure]:
            return _compare(_train(bench, experiment, changes, at, STEPS, resume=True), kept[0])

        bench.attempt(f"{name}, again", again)
        bench.attempt(f"{name}, {SAVED} + {STEPS - SAVED} steps", resumed)


def _train(bench: Bench, experiment: str, changes: Any, folder: Path, steps: int, save: bool = False, resume: bool = False) -> State:
    stage, ema = build_stage(experiment, changes), average()
    if resume:
        ema.load(folder)
    trainer = build_trainer(bench, folder, steps, [ema, *([Save(folder, ema)] if save else [])])
    videos, images = (4, 0) if experiment.startswith("ucf101") else (2, 2)
    data = build_data(stage, videos, images, (5, 16, 16) if bench.quick else (17, 32, 32))
    trainer.fit(stage, data, ckpt_path=folder / "state.ckpt" if resume else None, weights_only=True)
    averages = {f"average {name}": value for name, value in ema.whole(stage).items()}
    return {name: value.detach().cpu().clone() for name, value in {**stage.state_dict(), **averages}.items()}


def _compare(found: State, wanted: State) -> dict[str, Figure]:
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    largest = max((float((found[name].double() - wanted[name].double()).abs().max()) for name in different), default=0.0)
    return {"equal": int(not different), "different_tensors": len(different), "tensors": len(wanted), "largest_difference": largest}
