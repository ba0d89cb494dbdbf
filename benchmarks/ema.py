"""Cost of averaging the weights: steps of the embedded set's base model with and without, turn and turn about in one run.

python -m benchmarks.ema [--steps 40] [--cpu]
"""

import argparse
import json
import os
import statistics
import time
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from benchmarks.sharding import Bare
from walt_pl.data.batch import JointBatch
from walt_pl.evaluation.program import machine
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.training.callbacks.ema import EMA

VIDEOS, IMAGES = 16, 5


class EveryOther(EMA):
    """Averages at every other step, and writes down what each step takes."""

    def __init__(self, cpu: bool) -> None:
        super().__init__(0.995, cpu=cpu)
        self.seconds: dict[bool, list[float]] = {True: [], False: []}

    def on_train_batch_start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        averaged = trainer.global_step % 2 == 0
        if averaged:
            super().on_train_batch_end(trainer, pl_module)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if trainer.global_step > 4:  # the first ones warm up
            self.seconds[averaged].append(time.perf_counter() - self._began)


def main() -> None:
    """Print the medians and their ratio, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--cpu", action="store_true", help="the average lies in the CPU's memory")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    denoiser = DenoiserConfig(
        width=192, depth=6, num_heads=3, self_conditioning=0, size=(5, 8, 8), patch_size=2, window_size=(5, 4, 4), attention="math"
    )
    module = Bare(denoiser, lambda parameters: torch.optim.AdamW(parameters, lr=1e-4), warmup_steps=1)
    ema = EveryOther(arguments.cpu)
    trainer = L.Trainer(
        devices=1,
        max_steps=arguments.steps,
        callbacks=[ema],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    video, image = (torch.randn(count, 8, frames, 8, 8) for count, frames in ((VIDEOS, 5), (IMAGES, 1)))
    global_batch_index = torch.arange(VIDEOS + IMAGES)
    names = [""] * len(global_batch_index)
    batch = JointBatch(
        video, image, names, global_batch_index, torch.ones(len(global_batch_index)), global_batch_index, None, None, "latents", names
    )
    trainer.fit(module, DataLoader([batch] * arguments.steps, collate_fn=lambda batches: batches[0]))
    medians = {averaged: statistics.median(seconds) for averaged, seconds in ema.seconds.items()}
    figures = {
        "machine": machine(),
        "parameters": sum(p.numel() for p in module.parameters()),
        "seconds": {"with": round(medians[True], 4), "without": round(medians[False], 4)},
        "with_over_without": round(medians[True] / medians[False], 3),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
