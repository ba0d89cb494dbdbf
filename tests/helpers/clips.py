"""Clips whose every frame carries its number, and files of them as the world has them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from walt_pl.data.index import IndexEntry
from walt_pl.media.probing import Probe, probe
from walt_pl.media.types import Frames
from walt_pl.media.writing import write_video

FRAMES = 64
KEYS = 12
RATE = 8


def counting_clip(frames: int, height: int = 64, width: int = 96) -> Frames:
    """Every frame shows its number as eight black or white bars, above a moving red box."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    for time, frame in enumerate(clip):
        for bit in range(8):
            frame[: height // 2, bit * width // 8 : (bit + 1) * width // 8] = 255 * (time >> bit & 1)
        left = time * 2 % (width - 16)
        frame[height // 2 :, left : left + 16] = (200, 50, 50)
    return clip


def numbers(clip: Frames) -> list[int]:
    """The number that each frame carries, whatever the size."""
    height, width = clip.shape[1:3]
    edges = (np.arange(8)[:, None] + [0.3, 0.7]) * width / 8
    bars = np.stack([clip[:, : int(0.4 * height), int(left) : int(right) + 1].mean((1, 2, 3)) for left, right in edges], axis=1)
    return [int(number) for number in (bars > 128) @ (1 << np.arange(8))]


def textured_clip(frames: int, height: int, width: int) -> Frames:
    """Soft colours, fine stripes and a little noise, moving."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    clip = []
    for time in range(frames):
        waves = [np.sin((x + 3 * time) / (9 + 4 * c)) * np.cos((y - time) / (13 - 3 * c)) for c in range(3)]
        stripes = np.sin(x * y / height / 2 + time)
        clip.append(128 + 60 * np.stack(waves, -1) + 30 * stripes[..., None] + rng.normal(0, 4, (height, width, 1)))
    return np.stack(clip).clip(0, 255).astype(np.uint8)


def woven_clip(frames: int, height: int = 96, width: int = 128) -> Frames:
    """A bar that moves on with every half picture, from the upper lines to the lower ones, before a texture that stands still."""
    clip = np.empty((frames, height, width, 3), np.uint8)
    clip[:] = 60 + 20 * np.sin(np.arange(width) / 5)[:, None]
    for time, frame in enumerate(clip):
        for second in (0, 1):
            left = (8 * time + 4 * second) % (width - 20)
            frame[second::2, left : left + 20] = 220
    return clip


@contextmanager
def usual_priority() -> Iterator[None]:
    """Take back the real-time priority that libsvtav1 gives to a thread of root: children inherit it, and all other processes starve."""
    linux = sys.platform == "linux"
    before = (os.sched_getscheduler(0), os.sched_getparam(0)) if linux else None
    yield
    if before is not None:
        os.sched_setscheduler(0, *before)


def encode(
    path: Path,
    clip: Frames,
    codec: str,
    *,
    pix_fmt: str = "yuv420p",
    rate: Fraction | int = RATE,
    times: Sequence[int] | None = None,
    matrix: Sequence[int] | None = None,
    **options: str,
) -> None:
    """Write a file; `times` are those of the frames in milliseconds, `matrix` turns it when it is shown."""
    with usual_priority(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if matrix is not None:
            stream.set_display_matrix(list(matrix))
        for number, picture in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_transparent(folder: Path, height: int, width: int, frames: int) -> None:
    """Write a.png and a.mov of clear pictures whose hidden colour is green."""
    picture = np.full((height, width, 4), (0, 255, 0, 0), np.uint8)
    Image.fromarray(picture).save(folder / "a.png")
    with av.open(str(folder / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=RATE)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "rgba"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba")))
        container.mux(stream.encode())


def x264(**settings: object) -> dict[str, str]:
    settings = {"keyint": KEYS, "min-keyint": KEYS, "scenecut": 0, **settings}
    return {"x264-params": ":".join(f"{name}={value}" for name, value in settings.items())}


CLOSED = x264(**{"open-gop": 0, "bframes": 0})
B_FRAMES = x264(**{"open-gop": 0, "bframes": 3})
OPEN = x264(**{"open-gop": 1, "bframes": 3})
HEVC = {"x265-params": f"keyint={KEYS}:log-level=0"}
VP9 = {"g": str(KEYS), "deadline": "realtime", "cpu-used": "8"}
AV1 = {"g": str(KEYS), "preset": "12", "svtav1-params": "lp=1"}
# Seconds of film, a pause of half a second, and one frame that stays.
UNEVEN = [125 * n + 500 * (n > 20) + 37 * (n % 3) + 900 * (n > 45) for n in range(FRAMES)]


@dataclass(frozen=True)
class Case:
    """One kind of file."""

    name: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    pix_fmt: str = "yuv420p"
    height: int = 64
    width: int = 96
    times: tuple[int, ...] | None = None
    rate: int = RATE

    def write(self, folder: Path) -> Path:
        """The file, with as many frames as `FRAMES`."""
        path = folder / self.name
        clip = counting_clip(FRAMES, self.height, self.width)
        encode(path, clip, self.codec, pix_fmt=self.pix_fmt, rate=self.rate, times=self.times, **self.options)
        return path


CASES = [
    Case("closed.mp4", "libx264", CLOSED),
    Case("closed.mkv", "libx264", CLOSED),
    Case("closed.avi", "libx264", CLOSED),
    Case("b_frames.avi", "libx264", B_FRAMES),
    Case("b_frames.flv", "libx264", B_FRAMES),
    Case("b_frames.mp4", "libx264", B_FRAMES),
    Case("b_frames.mkv", "libx264", B_FRAMES),
    Case("open.mp4", "libx264", OPEN),
    Case("open.mkv", "libx264", OPEN),
    Case("open.ts", "libx264", OPEN),
    Case("uneven.mp4", "libx264", B_FRAMES, times=tuple(UNEVEN)),
    Case("uneven.mkv", "libx264", OPEN, times=tuple(UNEVEN)),
    Case("uneven.webm", "libvpx-vp9", VP9, times=tuple(UNEVEN)),
    Case("hevc.mp4", "libx265", HEVC),
    Case("hevc.mkv", "libx265", HEVC, pix_fmt="yuv420p10le"),
    Case("vp9.webm", "libvpx-vp9", VP9),
    Case("vp9.mp4", "libvpx-vp9", VP9, height=63, width=95),
    Case("av1.mp4", "libsvtav1", AV1),
    Case("av1.mkv", "libsvtav1", AV1),
    Case("av1.webm", "libsvtav1", AV1),
    Case("b_frames.h264", "libx264", B_FRAMES, rate=25),
    Case("mpeg2.mpg", "mpeg2video", {"g": str(KEYS), "bf": "2"}, rate=25),
    Case("mpeg2.ts", "mpeg2video", {"g": str(KEYS), "bf": "2"}, rate=25),
    Case("mpeg4.avi", "mpeg4", {"g": str(KEYS)}),
    Case("mpeg4_b_frames.avi", "mpeg4", {"g": str(KEYS), "bf": "2"}),
    Case("mpeg4.mp4", "mpeg4", {"g": str(KEYS), "bf": "2"}),
    Case("mpeg4.mkv", "mpeg4", {"g": str(KEYS)}, height=63, width=95),
    Case("odd.mp4", "libx264", OPEN, pix_fmt="yuv444p", height=63, width=95),
    Case("odd.avi", "mpeg4", {"g": str(KEYS)}, height=61, width=99),
]


def entry_of(path: Path, found: Probe | None = None, **changes: object) -> IndexEntry:
    """The file as the index would have it."""
    found = found or probe(path)
    assert not found.reason, found.reason
    fields: dict[str, object] = {
        "path": path,
        "kind": "video",
        "frames": found.frames,
        "fps": float(np.float32(found.fps)),
        "width": found.width,
        "height": found.height,
        "caption": "",
        "label": -1,
        "split": "train",
        "bytes": path.stat().st_size,
        "duration": float(np.float32(found.duration)),
        "decoder": found.decoder,
        "variable_rate": found.variable_rate,
    }
    return IndexEntry(**(fields | changes))  # type: ignore[arg-type]


def film(path: Path, frames: int = 60) -> Path:
    """Write a film of 10 frames a second, every frame with its number."""
    write_video(path, counting_clip(frames, 64, 64), fps=10)
    return path
