"""The data side against what others do, in one run.

    python benchmarks/data.py [--clips 96] [--rounds 3]

decoding: 17 frames to 128 x 128 from 256 x 256 H.264 at random places, in a DataLoader with one worker: clips per second of
the worker's processor time, so that what else runs on the machine counts little. Against a plain loop of decord and
torchvision's resize, and of torchcodec where it can be imported (it needs FFmpeg's shared libraries on the system).
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import resize

from walt_pl.data.batch import Draw
from walt_pl.data.index import Entry
from walt_pl.data.transforms import Framing, PixelDataset, view_of
from walt_pl.data.video import probe
from walt_pl.evaluation import machine

FILES, LENGTH, SIDE = 4, 300, 256
FRAMES, SIZE, BATCH = 17, 128, 8
SPARE = LENGTH - FRAMES
Read = Callable[[Draw], Tensor]


def paint(path: Path, seed: int) -> None:
    """A noisy picture that a camera wanders over, as x264 encodes it by default."""
    rng = np.random.default_rng(seed)
    spots = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
    scene = np.asarray(spots.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for number in range(LENGTH):
            top, left = (int(SIDE * (0.5 + 0.4 * wave(number / 40 + seed))) for wave in (np.sin, np.cos))
            picture = scene[top : top + SIDE, left : left + SIDE] + rng.normal(0, 3, (SIDE, SIDE, 1)).astype(np.int16)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())


def start_of(draw: Draw) -> int:
    """The first frame that PixelDataset takes for this draw."""
    return view_of("video", draw.item, draw.pass_number, SPARE).start


def resized(frames: Tensor) -> Tensor:
    """uint8 [t c h w] as PixelDataset gives it."""
    return resize(frames, [SIZE, SIZE], antialias=True).permute(1, 0, 2, 3).contiguous().float().div_(127.5).sub_(1)


def with_ours(dataset: PixelDataset, draw: Draw) -> Tensor:
    return dataset[draw].content


def with_decord(entries: list[Entry], draw: Draw) -> Tensor:
    """The plain loop."""
    import decord

    start = start_of(draw)
    reader = decord.VideoReader(str(entries[draw.item].path), ctx=decord.cpu(0), num_threads=1)
    return resized(torch.from_numpy(reader.get_batch(range(start, start + FRAMES)).asnumpy()).permute(0, 3, 1, 2))


def with_torchcodec(entries: list[Entry], draw: Draw) -> Tensor:
    """The plain loop, with the fastest way to seek that torchcodec has."""
    from torchcodec.decoders import VideoDecoder

    start = start_of(draw)
    decoder = VideoDecoder(str(entries[draw.item].path), num_ffmpeg_threads=1, seek_mode="approximate")
    return resized(decoder.get_frames_in_range(start, start + FRAMES).data)


class Timed(Dataset[tuple[Tensor, float]]):
    """Clips, each with the processor time that its worker has used so far."""

    def __init__(self, read: Read, draws: list[Draw]) -> None:
        self.read = read
        self.draws = draws

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, number: int) -> tuple[Tensor, float]:
        return self.read(self.draws[number]), time.process_time()


def seconds_of_batches(read: Read, draws: list[Draw]) -> NDArray[np.float64]:
    """Processor time of each batch but the first."""
    loader = DataLoader(Timed(read, draws), batch_size=BATCH, num_workers=1, drop_last=True, multiprocessing_context="forkserver")
    return np.diff([times[-1].item() for _, times in loader])


def decoding(clips: int, rounds: int) -> dict[str, object]:
    """Ours and the others alternately."""
    with tempfile.TemporaryDirectory() as folder:
        entries = []
        for number in range(FILES):
            path = Path(folder) / f"{number}.mp4"
            paint(path, number)
            found = probe(path)
            assert found.frames == LENGTH, found
            facts = (
                found.frames,
                found.fps,
                found.width,
                found.height,
                "",
                -1,
                "train",
                path.stat().st_size,
                found.duration,
                found.decoder,
            )
            entries.append(Entry(path, "video", *facts))
        draws = [Draw("video", n % FILES, 1 + n // FILES, n % BATCH) for n in range(clips)]
        framing = Framing(SIZE, FRAMES, views=2 + clips // FILES)
        readers: dict[str, Read] = {
            "walt_pl": partial(with_ours, PixelDataset(entries, [], framing)),
            "decord": partial(with_decord, entries),
        }
        try:
            import torchcodec.decoders  # noqa: F401

            readers["torchcodec"] = partial(with_torchcodec, entries)
            absent = ""
        except (ImportError, RuntimeError, OSError) as error:
            absent = str(error).splitlines()[0]
        seconds: dict[str, list[NDArray[np.float64]]] = {name: [] for name in readers}
        for _ in range(rounds):
            for name, read in readers.items():
                seconds[name].append(seconds_of_batches(read, draws))
    count = clips - clips % BATCH - BATCH
    # Each batch as fast as it ever was: the same clips, undisturbed.
    best = {name: round(count / np.min(found, axis=0).sum(), 1) for name, found in seconds.items()}
    return {
        "decoder": entries[0].decoder,
        "clips_per_second_and_core": best,
        "rounds": {name: [round(count / one.sum(), 1) for one in found] for name, found in seconds.items()},
        "walt_pl_over": {name: round(best["walt_pl"] / speed, 2) for name, speed in best.items() if name != "walt_pl"},
        **({"torchcodec": absent} if absent else {}),
    }


def main() -> None:
    """Print the figures, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {"machine": machine(), "decoding": decoding(arguments.clips, arguments.rounds), "load": os.getloadavg()[0]}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
