"""Cost of checkpoints: seconds a step with one every so many steps over seconds a step without, in one run.

    python -m benchmarks.checkpoints

Both are measured in one process, in turns of a few steps, on the same model: a base denoiser with AdamW and its average, on random
latents. The cost of a checkpoint is the median difference of two turns that follow each other, so that a machine which is slower for a
while counts little. A checkpoint is the real one: state, averages, hashes, sync, rename. The hashing is timed once more alone: reading
the files of a checkpoint back and hashing them, as a start does before it uses one. Writing hashes the state without reading it back.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset

from stages.base import BaseStage
from walt_pl.data.batch import JointBatch
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.runs.checkpoint import steps
from walt_pl.runs.checkpoint_card import describe_files
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.ema import EMA


class Latents(Dataset[JointBatch]):
    """Endless batches of random latents."""

    def __init__(self, videos: int, config: DenoiserConfig) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (videos, config.latent_channels, *config.size)
        self.batch = JointBatch(
            videos=torch.randn(shape, generator=generator),
            images=torch.zeros(0, config.latent_channels, 1, *config.size[1:]),
            captions=[""] * videos,
            labels=torch.zeros(videos, dtype=torch.int64),
            weight=torch.ones(videos),
            global_batch_index=torch.arange(videos),
            low_res_videos=None,
            low_res_images=None,
            space="latents",
            paths=[""] * videos,
        )

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, _: int) -> JointBatch:
        return self.batch


class Data(L.LightningDataModule):
    """Stand-in for the data: the number of samples that a step sees."""

    images_per_batch = 0

    def __init__(self, videos: int, config: DenoiserConfig) -> None:
        super().__init__()
        self.videos_per_batch, self.dataset = videos, Latents(videos, config)

    def train_dataloader(self) -> DataLoader[JointBatch]:
        return DataLoader(self.dataset, batch_size=None)


class Stage(BaseStage):
    """A base stage without parents: its latents are given."""

    def setup(self, stage: str) -> None:
        pass


class Clock(L.Callback):
    """Seconds of each turn of steps, all that happens between two steps included."""

    def __init__(self, every: int) -> None:
        self.every, self.turns, self._began = every, list[float](), 0.0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step % self.every == 1:  # a checkpoint of step k * every lies within a turn
            now = time.perf_counter()
            if self._began:
                self.turns.append(now - self._began)
            self._began = now


class InTurns(Checkpoints):
    """Writes at the end of every second turn, and notes how long that took."""

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__(str(folder), every_n_train_steps=every, every_n_minutes=0)
        self.took: list[float] = []

    def save(self, trainer: L.Trainer, *arguments: Any, **more: Any) -> None:
        if trainer.global_step // self.every_n_train_steps % 2:
            return
        began = time.perf_counter()
        super().save(trainer, *arguments, **more)
        self.took.append(time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=50, help="steps between two checkpoints, of the training asked about")
    parser.add_argument("--turn", type=int, default=5, help="steps of a turn")
    parser.add_argument("--pairs", type=int, default=30, help="turns with a checkpoint, and as many without")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk that is asked about; a temporary one by default")
    asked = parser.parse_args()
    config = DenoiserConfig(width=asked.width, depth=asked.layers, num_heads=4, size=(5, 8, 8), window_size=(5, 4, 4))
    stage = Stage(config, lambda parameters: AdamW(parameters, lr=1e-4), lr_schedule="constant", warmup_steps=0)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        clock, checkpoints = Clock(asked.turn), InTurns(Path(folder), asked.turn)
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=asked.turn * (2 * asked.pairs + 1) + 2,
            max_epochs=-1,
            callbacks=[clock, EMA(decay=0.99), checkpoints],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(stage, Data(asked.videos, config))
        began = time.perf_counter()
        for path in steps(Path(folder)):
            describe_files(path, {})
        hashing = (time.perf_counter() - began) / len(steps(Path(folder)))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / checkpoints.keep
    # The first turn warms up; it and every second one after it write nothing.
    step = statistics.median(clock.turns[2::2]) / asked.turn
    more = [one - other for one, other in zip(clock.turns[1::2], clock.turns[2::2], strict=False)]
    low_res, cost, high = statistics.quantiles(more, n=4)
    weights, took = sum(p.numel() for p in stage.parameters()), statistics.median(checkpoints.took)
    print(f"{weights / 1e6:.1f} million weights, {size / 1e6:.0f} MB a checkpoint, {torch.get_num_threads()} threads")
    print(f"a step takes {step * 1e3:.1f} ms, a checkpoint {took:.3f} s (median of {len(checkpoints.took)})")
    print(f"hashing its files takes {hashing:.4f} s, {hashing / took:.1%} of that ({size / hashing / 1e9:.1f} GB/s)")
    print(f"a turn with a checkpoint takes {cost:.3f} s more (median of {len(more)}; half of them between {low_res:.3f} and {high:.3f})")
    print(f"a checkpoint every {asked.every} steps: {1 + cost / (asked.every * step):.4f} x the time of a training without")


if __name__ == "__main__":
    main()
