"""The loader: what it holds over many samples, how soon the first batch comes, and what cached latents save."""

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from datamodules.joint import JointData
from walt_pl.data.batch import JointBatch, SampleSource
from walt_pl.data.cache import LatentCache
from walt_pl.data.index import Index, write_table
from walt_pl.data.index_table import SCHEMA
from walt_pl.data.latent_dataset import LatentDataset
from walt_pl.data.loader import JointLoader
from walt_pl.data.sampler import JointSampler
from walt_pl.data.transforms import ClipTransform, PixelDataset
from walt_pl.media.writing import write_video
from walt_pl.models.vae import VAE, VAEConfig

FRAMES, SIDE, BATCH = 17, 128, 8
SHAPES_VAE = VAEConfig(
    width=32, channel_multipliers=(1, 1, 3), strides=((2, 2, 2), (2, 2, 2)), num_res_blocks=(0, 1, 1), num_middle_blocks=1, norm="layer"
)  # experiments/shapes/vae.yaml


def paint(folder: Path, count: int) -> list[str]:
    """Clips of 17 frames, 128 x 128: coarse noise that moves."""
    names = [f"{number}.mp4" for number in range(count)]
    for number, name in enumerate(names):
        coarse = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        write_video(folder / name, np.stack([coarse[t : t + SIDE, 2 * t : 2 * t + SIDE] for t in range(FRAMES)]), fps=8)
    return names


def index_of(folder: Path, names: list[str], rows: int) -> str:
    """An index whose rows go round a few real files."""
    given = {"path": [names[row % len(names)] for row in range(rows)], "caption": [f"clip number {row}" for row in range(rows)]}
    same = {"kind": "video", "frames": FRAMES, "fps": 8.0, "width": SIDE, "height": SIDE, "label": -1, "split": "train", "bytes": 1}
    columns = {name: pa.array(values) for name, values in given.items()}
    columns |= {name: pa.repeat(value, rows) for name, value in (same | {"duration": FRAMES / 8}).items()}
    table = pa.table({name: column.cast(SCHEMA.field(name).type) for name, column in columns.items()})
    write_table(table, folder / "index.parquet")
    return str(folder / "index.parquet")


def endless(loader: JointLoader) -> Iterator[JointBatch]:
    while True:
        yield from loader


def held() -> dict[str, float]:
    """MB that this process, and that its workers hold: anonymous pages, in memory or swapped out, and those of shared memory.

    Not those of files: they count as a process's own or as shared by what else on the machine has mapped the same libraries.
    """

    def size(pid: int | None) -> float:
        lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return sum(int(words[1]) for words in lines if words[0] in ("RssAnon:", "RssShmem:", "VmSwap:")) / 1e3

    return {"training process": size(os.getpid()), "workers": sum(size(child.pid) for child in multiprocessing.active_children())}


def memory(folder: Path, samples: int, figure: Path | None) -> dict[str, object]:
    """Memory held while a worker reads many clips, every 500 clips, and its growth over the last three quarters."""
    data = JointData(index_of(folder, paint(folder, 40), 40), SIDE, FRAMES, BATCH, val_videos=0, num_workers=1)
    seen: list[int] = []
    held_then: dict[str, list[float]] = {"training process": [], "workers": []}
    for number, _ in enumerate(endless(data.train_dataloader())):
        if number * BATCH % 496 == 0:
            seen.append(number * BATCH)
            for name, size in held().items():
                held_then[name].append(size)
        if number * BATCH >= samples:
            break
    data.teardown("fit")
    if figure is not None:
        draw(figure, seen, held_then)
    later = len(seen) // 4
    growth = {
        name: statistics.linear_regression(seen[later:], sizes[later:]).slope * 1000 if len(seen) > later + 1 else 0.0
        for name, sizes in held_then.items()
    }
    return {
        "clips": seen[-1],
        "MB at a quarter and at the end": {name: [round(sizes[later]), round(sizes[-1])] for name, sizes in held_then.items()},
        "MB more per 1,000 clips": {name: round(slope, 3) for name, slope in growth.items()},
    }


def draw(figure: Path, seen: list[int], held_then: dict[str, list[float]]) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for name, sizes in held_then.items():
        axes.plot(seen, sizes, label=name)
    axes.set(xlabel="clips read", ylabel="MB held", ylim=(0, None))
    axes.legend()
    plt.savefig(figure, dpi=120)


FIRST_BATCH = f"""
import sys, time
from datamodules.joint import JointData

began, spent = time.perf_counter(), time.process_time()
data = JointData(sys.argv[1], {SIDE}, {FRAMES}, {BATCH}, val_videos=0, num_workers=int(sys.argv[2]))
data.setup("test")
chosen = time.perf_counter()
next(iter(data.train_dataloader()))
print(chosen - began, time.perf_counter() - began, time.process_time() - spent)
data.teardown("fit")
"""


def first_batch(folder: Path, rows: int) -> dict[str, object]:
    """From the first line after the imports to the first batch of 8 clips, in fresh processes.

    The first time the file that workers map is not there yet.
    """
    index = index_of(folder, paint(folder, 40), rows)
    Path(index).with_suffix(".arrow").unlink(missing_ok=True)
    figures: dict[str, object] = {"rows": rows}
    for name, workers in (("mapped file missing, no worker", 0), ("no worker", 0), ("one worker, which starts with its own imports", 1)):
        command = [sys.executable, "-c", FIRST_BATCH, index, str(workers)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})
        chosen, whole, spent = (round(float(word), 2) for word in done.stdout.split()[-3:])
        figures[name] = {"seconds": whole, "of which opening the index and choosing": chosen, "processor time of this process": spent}
    return figures


def cache(folder: Path, rounds: int = 3, batches: int = 40) -> dict[str, object]:
    """Latents from disk against pixels through the encoder of experiments/shapes, alternately, with one worker each."""
    index = Index(index_of(folder, paint(folder, 40), 160), "train")
    pixels = PixelDataset(index.videos, (), ClipTransform(SIDE, FRAMES))
    vae = VAE(SHAPES_VAE).eval()

    @torch.inference_mode()
    def encode(x: Tensor) -> Tensor:
        return vae.encode(x).mean

    latents = LatentCache(folder / "cache", {}, len(index.videos))
    latents.build(pixels, "video", lambda: encode, BATCH, readers=1)
    latents.open()
    sources: dict[str, SampleSource] = {"cached": LatentDataset(index.videos, (), {"video": latents}), "pixels": pixels}
    loaders = {name: JointLoader(source, JointSampler(len(index.videos), 0, BATCH, 0), num_workers=1) for name, source in sources.items()}
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(rounds + 1):
        for name, loader in loaders.items():
            count = batches if name == "cached" else 5
            began, cache = time.perf_counter(), endless(loader)
            for _ in range(count):
                batch = next(cache)
                if name == "pixels":
                    encode(batch.videos)
            if number:  # the first round starts the workers
                seconds[name].append((time.perf_counter() - began) / count)
    for loader in loaders.values():
        loader.close()
    best = {name: min(values) for name, values in seconds.items()}
    ratio = round(best["pixels"] / best["cached"], 1)
    return {"ms a batch of 8": {name: round(1000 * value, 2) for name, value in best.items()}, "times faster": ratio}
