"""Processor time and memory of FVD of two folders: the whole, and its parts alone, each in a process of its own.

    python -m benchmarks.metrics [--clips 2048] [--batch 16] [--threads 2] [--clip-frames 16] [--side 64]

Each side is a folder of H.264 files; the network is a scripted convolution with 400 values, as many as I3D gives. Ours is the whole without
decoding, network and torchmetrics: draws, blocks on disk, copies, the card. Its share is that of decoding plus network.
torchmetrics computes the distance of all clips, and of the four disjoint parts of the error bar.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from walt_pl.evaluation.draws import draw_generated, draw_real
from walt_pl.evaluation.measuring import measure
from walt_pl.evaluation.program import machine
from walt_pl.evaluation.rows import MeasureOptions
from walt_pl.evaluation.sources import open_source
from walt_pl.files import file_sha256
from walt_pl.media.writing import write_video
from walt_pl.metrics.catalog import choose_metrics
from walt_pl.metrics.extractor import ClipBatch, Extractor
from walt_pl.metrics.extractors.choice import ExtractorOptions, choose_extractors
from walt_pl.metrics.protocol import EvaluationProtocol

SIDES = ("real", "generated")
FEATURES = 400


class TinyNetwork(torch.nn.Module):
    """Has the call of the published torchscript of I3D."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv3d(3, FEATURES, 4, stride=4)

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True) -> torch.Tensor:
        if rescale:
            x = x / 127.5 - 1
        return torch.relu(self.convolution(x)).mean(dim=(2, 3, 4))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2048, help="of each side")
    parser.add_argument("--batch", type=int, default=16, help="clips of a block")
    parser.add_argument("--threads", type=int, default=2, help="of torch in each part")
    parser.add_argument("--clip-frames", type=int, default=16)
    parser.add_argument("--side", type=int, default=64, help="rows and columns of the files")
    given = parser.parse_args()
    protocol = EvaluationProtocol("all", given.clips, given.clips, frames=given.clip_frames, start="first", resize="inside")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _alone(partial(write_material, folder, given.clips, given.clip_frames, given.side), given.threads)
        parts: dict[str, Callable[[], object]] = {
            "whole": partial(run_whole, folder, protocol, given.batch),
            "decoding": partial(decode, folder, protocol, given.batch),
            "extractor": partial(extract, folder, protocol, given.batch, given.side),
            "torchmetrics": partial(sum_up, given.clips),
            "again": partial(run_whole, folder, protocol, given.batch),
        }
        begin = os.getloadavg()[0]
        figures = {part: _alone(work, given.threads) for part, work in parts.items()}
        load = [round(begin, 1), round(os.getloadavg()[0], 1)]
    cpu = {part: figure["cpu_seconds"] for part, figure in figures.items()}
    ours = cpu["whole"] - cpu["decoding"] - cpu["extractor"] - cpu["torchmetrics"]
    share = ours / (cpu["decoding"] + cpu["extractor"])
    print(
        json.dumps(
            {"machine": machine(), "load": load, **vars(given), **figures, "ours_seconds": round(ours, 2), "share": round(share, 4)},
            indent=2,
        )
    )


def _alone(work: Callable[[], object], threads: int) -> dict[str, float]:
    """Run a part in a new process, and return its processor time without imports, its wall time, and the memory that it added."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, work, threads).result()


def _measured(work: Callable[[], object], threads: int) -> dict[str, float]:
    import torchmetrics.image.fid  # noqa: F401  # its import is no work of a part

    torch.set_num_threads(threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    found = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - wall}
    return {
        **{name: round(value, 2) for name, value in found.items()},
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "added_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10,
    }


def write_material(folder: Path, clips: int, frames: int, side: int) -> None:
    """Write both sides and the network."""
    for number, name in enumerate(SIDES):
        draw = np.random.RandomState(number)
        for clip in range(clips):
            coarse = draw.randint(0, 256, (frames // 4 + 1, 8, 8, 3)).astype(np.uint8)
            pixels = coarse.repeat(4, axis=0)[:frames].repeat(side // 8, axis=1).repeat(side // 8, axis=2)
            write_video(folder / name / f"{clip:05d}.mp4", pixels, 8)
    torch.manual_seed(0)
    torch.jit.script(TinyNetwork()).save(folder / "network.pt")


def _open_extractor(folder: Path, protocol: EvaluationProtocol) -> Extractor:
    network = folder / "network.pt"
    return choose_extractors(choose_metrics("fvd"), ExtractorOptions(str(network), None, file_sha256(network)), protocol, False, "cpu")[0]


def run_whole(folder: Path, protocol: EvaluationProtocol, batch: int) -> None:
    """Measure; a second time, all rows are there."""
    real, generated = (open_source(str(folder / name), protocol.split) for name in SIDES)
    draws = draw_real(real, protocol), draw_generated(generated, protocol)
    options = MeasureOptions(folder / "cache", folder / "cache", batch)
    measure(choose_metrics("fvd"), real, generated, *draws, protocol, None, [_open_extractor(folder, protocol)], options)


def decode(folder: Path, protocol: EvaluationProtocol, batch: int) -> None:
    """Read every clip in blocks."""
    for name, draw in zip(SIDES, (draw_real, draw_generated), strict=True):
        source = open_source(str(folder / name), protocol.split)
        draws = draw(source, protocol).draws
        for start in range(0, len(draws), batch):
            source.read(draws[start : start + batch], protocol.frames, protocol.stride, protocol.size)


def extract(folder: Path, protocol: EvaluationProtocol, batch: int, side: int) -> None:
    """Compute the rows of as many clips, of random pixels."""
    extractor = _open_extractor(folder, protocol)
    clips = list(torch.randint(256, (batch, protocol.frames, side, side, 3), dtype=torch.uint8))
    for _ in range(2 * protocol.clips // batch):
        extractor(ClipBatch(clips))


def sum_up(clips: int) -> None:
    """Compute the distance of all rows and of four parts with torchmetrics."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    rows = torch.randn(2, clips, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = torch.nn.Identity()
    network.num_features = FEATURES  # type: ignore[assignment]
    for part in (rows, *rows.chunk(4, dim=1)):
        distance = FrechetInceptionDistance(network)
        for real, side in zip((True, False), part, strict=True):
            distance.update(side, real=real)
        distance.compute()


if __name__ == "__main__":
    main()
