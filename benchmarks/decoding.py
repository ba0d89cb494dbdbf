"""Clips per second of processor time, ours and others'.

17 frames to 128 x 128 from 256 x 256 H.264 at random places, in the worker of a DataLoader; of processor time, so that what else runs
on the machine counts little. Against a plain loop of decord and torchvision's resize, and of torchcodec where it can be imported (it
needs FFmpeg's shared libraries on the system). All read each clip one after the other, in changing order; of each clip the fastest
round counts.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import resize

from walt_pl.data.batch import SampleRef
from walt_pl.data.index import IndexEntry
from walt_pl.data.transforms import ClipTransform, PixelDataset, draw_view
from walt_pl.media.probing import probe

FILES, LENGTH, SIDE = 4, 300, 256
FRAMES, SIZE, BATCH = 17, 128, 8
SPARE = LENGTH - FRAMES
Read = Callable[[SampleRef], Tensor]


def paint(path: Path, seed: int) -> None:
    """A noisy picture that a camera wanders over, as x264 encodes it by default."""
    rng = np.random.default_rng(seed)
    spots = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
    scene = np.asarray(spots.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
    with av.open(str(path), "w") as container:
        cache = container.add_stream("libx264", rate=30)
        cache.height, cache.width, cache.pix_fmt = SIDE, SIDE, "yuv420p"
        for number in range(LENGTH):
            top, left = (int(SIDE * (0.5 + 0.4 * wave(number / 40 + seed))) for wave in (np.sin, np.cos))
            picture = scene[top : top + SIDE, left : left + SIDE] + rng.normal(0, 3, (SIDE, SIDE, 1)).astype(np.int16)
            container.mux(cache.encode(av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")))
        container.mux(cache.encode())


def start_of(draw: SampleRef) -> int:
    """The first frame that PixelDataset takes for this draw."""
    return draw_view("video", draw.item, draw.epoch, SPARE).start


def resized(frames: Tensor) -> Tensor:
    """uint8 [t c h w] as PixelDataset gives it."""
    return resize(frames, [SIZE, SIZE], antialias=True).permute(1, 0, 2, 3).contiguous().float().div_(127.5).sub_(1)


def with_ours(dataset: PixelDataset, draw: SampleRef) -> Tensor:
    return dataset[draw].content


def with_decord(entries: list[IndexEntry], draw: SampleRef) -> Tensor:
    """The plain loop."""
    import decord

    start = start_of(draw)
    reader = decord.VideoReader(str(entries[draw.item].path), ctx=decord.cpu(0), num_threads=1)
    return resized(torch.from_numpy(reader.get_batch(range(start, start + FRAMES)).asnumpy()).permute(0, 3, 1, 2))


def with_torchcodec(entries: list[IndexEntry], draw: SampleRef, itself: bool = False) -> Tensor:
    """The plain loop, with the fastest way to seek that torchcodec has; it can resize while it decodes, itself."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    start = start_of(draw)
    transforms = [Resize((SIZE, SIZE))] if itself else None
    decoder = VideoDecoder(str(entries[draw.item].path), num_ffmpeg_threads=1, seek_mode="approximate", transforms=transforms)
    return resized(decoder.get_frames_in_range(start, start + FRAMES).data)


class Timed(Dataset[Tensor]):
    """Processor time that each reader takes for each clip."""

    def __init__(self, readers: list[Read], draws: list[SampleRef]) -> None:
        self.readers = readers
        self.draws = draws

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, number: int) -> Tensor:
        """[r] seconds."""
        seconds = torch.zeros(len(self.readers), dtype=torch.float64)
        for turn in range(len(self.readers)):
            reader = (turn + number) % len(self.readers)
            began = time.process_time()
            clip = self.readers[reader](self.draws[number])
            seconds[reader] = time.process_time() - began
            assert clip.shape == (3, FRAMES, SIZE, SIZE) and clip.dtype == torch.float32
        return seconds


def painted(folder: Path) -> list[IndexEntry]:
    """Clips of ten seconds, as the index would have them."""
    entries = []
    for number in range(FILES):
        path = folder / f"{number}.mp4"
        paint(path, number)
        found = probe(path)
        assert found.frames == LENGTH, found
        shape = (found.frames, found.fps, found.width, found.height)
        entries.append(IndexEntry(path, "video", *shape, "", -1, "train", path.stat().st_size, found.duration, found.decoder))
    return entries


def decoding(folder: Path, clips: int, rounds: int) -> dict[str, object]:
    """Clips per second of ours and of the others."""
    entries = painted(folder)
    draws = [SampleRef("video", n % FILES, 1 + n // FILES, n % BATCH) for n in range(clips)]
    clip_transform = ClipTransform(SIZE, FRAMES, views=2 + clips // FILES)
    readers: dict[str, Read] = {
        "walt_pl": partial(with_ours, PixelDataset(entries, [], clip_transform)),
        "decord": partial(with_decord, entries),
    }
    try:
        import torchcodec.decoders  # noqa: F401

        readers["torchcodec"] = partial(with_torchcodec, entries)
        readers["torchcodec, which resizes itself"] = partial(with_torchcodec, entries, itself=True)
        absent = ""
    except (ImportError, RuntimeError, OSError) as error:
        absent = str(error).splitlines()[0]
    dataset = Timed(list(readers.values()), draws)
    # [rounds clips readers], without the first batch: libraries are loaded in it.
    seconds = torch.stack(
        [torch.cat(list(DataLoader(dataset, BATCH, num_workers=1, multiprocessing_context="forkserver"))[1:]) for _ in range(rounds)]
    )
    speeds = dict(zip(readers, (1 / seconds.amin(0).mean(0)).tolist(), strict=True))
    return {
        "decoder the index names": entries[0].decoder,
        "clips per second and core": {name: round(speed, 1) for name, speed in speeds.items()},
        "walt_pl over": {name: round(speeds["walt_pl"] / speed, 2) for name, speed in speeds.items() if name != "walt_pl"},
        **({"torchcodec does not run": absent} if absent else {}),
    }
