"""The embedded set `shapes`: clips of one moving, textured shape, painted from a seed and written as ordinary files.

A caption names everything there is to see: "a striped red circle moving left". Shape, colour and motion survive at 32
pixels; the texture is too fine for that, and the super-resolution stages must take it from the caption. It sits fixed
on the object (its phase follows from the object's centre), so that the right answer is determined. Some (shape,
colour) pairs are in images and in no training video: only joint training can bring them to videos.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from walt_pl.data.index import write_index
from walt_pl.files import write_whole
from walt_pl.media.types import Frames
from walt_pl.media.writing import write_image, write_video

Array = NDArray[np.float32]

FRAMES, FPS, SIZE = 17, 8.0, 128

SHAPES = ("circle", "bar", "triangle")
# 60 degrees of hue apart; the brightest channel leaves room for the crests of the texture.
RGB = {
    "red": (158, 41, 41),
    "yellow": (155, 144, 36),
    "green": (40, 148, 50),
    "cyan": (36, 144, 155),
    "blue": (50, 76, 158),
    "magenta": (153, 50, 148),
}
COLOURS = tuple(RGB)
MOTIONS = ("left", "right", "up", "down", "growing", "shrinking")
TEXTURES = ("plain", "striped", "dotted")

PAIRS = tuple((shape, colour) for colour in COLOURS for shape in SHAPES)
UNSEEN_PAIRS = (("circle", "yellow"), ("bar", "cyan"), ("triangle", "blue"), ("bar", "red"))
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in UNSEEN_PAIRS)
# Images are few in a batch: nearly half of them show what no video does.
_IMAGE_PAIRS = PAIRS + 2 * UNSEEN_PAIRS

# Antialiased bicubic scaling leaves 79 % of such a wave at 64 pixels (2.75 pixels long there) and 8 % at 32 pixels.
PERIOD = 5.5
"""Length of a texture's wave in pixels of a 128-pixel picture."""
WAVES = {"plain": (0.0, 0.0), "striped": (0.0, 0.42), "dotted": (0.28, 0.28)}
"""Relative amplitude of a texture's waves along x and y."""

# Objects start on a lattice of whole waves and jump by one wave every second frame, so that the crests of a moving object stay where they
# are in the frame. Moving freely, four frames of one latent hold a phase and a velocity for each wave, and an autoencoder of the demo's
# budget lost the waves along the motion (75 % of textures right at 128 pixels after 5 minutes; moving half a wave a frame, 80 %).
_WAVE = PERIOD / SIZE
"""A texture's wave in sides of the frame."""
_JUMPS = (FRAMES - 1) // 2
_MOVE = _JUMPS * _WAVE
"""How far an object moves, in sides of the frame."""
_STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
# Half width and half height for a radius of 1: areas 3.1, 2.5 and 2.4. Laid over each other, any two differ in more than 1.4: with a square
# in place of the bar (0.7 from the circle), the base model of the demo painted circles for two thirds of the squares.
_EXTENT = {"circle": (1.0, 1.0), "bar": (1.12, 0.56), "triangle": (1.12, 1.06)}
_OVERHANG = 0.018  # sides of the frame that an object may stick out


@dataclass(frozen=True)
class Scene:
    """One clip or image: four words and the geometry, in sides of the frame with the origin at the upper left."""

    shape: str
    colour: str
    motion: str | None
    """None: a still image."""
    texture: str
    start: tuple[float, float]
    """Centre (x, y) of the object's bounding box in the first frame."""
    end: tuple[float, float]
    """The same in the last frame."""
    radius: tuple[float, float]
    """Radius in the first and the last frame."""
    background: int
    """Grey of the background, 0..255."""

    @property
    def caption(self) -> str:
        """The words as a sentence: "a striped red circle moving left", "a plain blue bar growing"."""
        return " ".join(["a", self.texture, self.colour, self.shape, *_motion_words(self.motion)])


def _motion_words(motion: str | None) -> list[str]:
    if motion is None:
        return []
    return ["moving", motion] if motion in _STEP else [motion]


class Words(NamedTuple):
    """The four words of a caption; `motion` is None for a still image."""

    shape: str
    colour: str
    motion: str | None
    texture: str


def parse_caption(caption: str) -> Words:
    """The words of a caption. Raises ValueError for a sentence that `Scene.caption` does not make."""
    words = caption.split(" ")
    if len(words) >= 4 and words[0] == "a":
        _, texture, colour, shape, *rest = words
        motion = rest[-1] if rest else None
        known = shape in SHAPES and colour in COLOURS and texture in TEXTURES
        if known and (motion is None or motion in MOTIONS) and rest == _motion_words(motion):
            return Words(shape, colour, motion, texture)
    raise ValueError(f'no caption of the shapes: "{caption}" (wanted for example "a striped red circle moving left")')


def sample_scene(rng: np.random.Generator, *, still: bool = False, pairs: Sequence[tuple[str, str]] = PAIRS) -> Scene:
    """Draw a scene: a pair of `pairs`, a motion (none if `still`), a texture, and a place within the frame.

    An object of radius 0.26 to 0.305 (in sides of the frame) moves by 0.34; one that grows does so from about 0.20 to about 0.34.
    The first centre is a whole number of waves from the corner of the frame.
    """
    shape, colour = pairs[int(rng.integers(len(pairs)))]
    motion = None if still else MOTIONS[rng.integers(len(MOTIONS))]
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    radius = _sample_radius(rng, motion)
    start, end = _sample_path(rng, motion, np.array(_EXTENT[shape]) * max(radius))
    return Scene(shape, colour, motion, texture, start, end, radius, int(rng.integers(30, 51)))


def _sample_radius(rng: np.random.Generator, motion: str | None) -> tuple[float, float]:
    if motion in ("growing", "shrinking"):
        small, large = float(rng.uniform(0.19, 0.21)), float(rng.uniform(0.325, 0.34))
        return (small, large) if motion == "growing" else (large, small)
    radius = float(rng.uniform(0.26, 0.305))
    return radius, radius


def _sample_path(
    rng: np.random.Generator, motion: str | None, extent: NDArray[np.float64]
) -> tuple[tuple[float, float], tuple[float, float]]:
    direction = np.array(_STEP.get(motion or "", (0, 0)))
    margin = extent - _OVERHANG
    move = direction * _MOVE
    # Centre of the path: its two ends keep the margin, to half a wave.
    low = margin + abs(move) / 2
    middle = rng.uniform(low, 1 - low)
    start = np.round((middle - move / 2) / _WAVE) * _WAVE
    end = start + move
    return (float(start[0]), float(start[1])), (float(end[0]), float(end[1]))


def distance(shape: str, x: Array, y: Array, radius: Array) -> Array:
    """Signed distance to the shape's edge, negative inside; `x` and `y` are relative to the centre of its bounding box.

    All in the same unit, broadcast against each other. Outside a corner it is the distance to the nearest edge's line.
    """
    if shape == "circle":
        return np.asarray(np.sqrt(x * x + y * y) - radius, np.float32)
    wide, high = _EXTENT[shape]
    if shape == "bar":
        return np.asarray(np.maximum(abs(x) - wide * radius, abs(y) - high * radius), np.float32)
    # The slanted edge runs from (0, -high) to (wide, high).
    slope = math.hypot(2 * high, wide)
    slanted = (2 * high * abs(x) - wide * (y + high * radius)) / slope
    return np.asarray(np.maximum(slanted, y - high * radius), np.float32)


def paint(scene: Scene, frames: int = FRAMES, size: int = SIZE) -> Frames:
    """Paint a scene, uint8 [t h w 3], with edges one pixel soft.

    A still image is painted with `frames=1`. The texture's wave is `PERIOD * size / 128` pixels long; below two pixels,
    where no grid of pixels can hold it, it is left out.
    """
    time = np.linspace(0, 1, frames, dtype=np.float32) if frames > 1 else np.zeros(1, np.float32)
    start, end = np.array(scene.start, np.float32), np.array(scene.end, np.float32)
    jumped = np.floor(time * _JUMPS + 1e-3) / _JUMPS
    centre = (start + (end - start) * jumped[:, None]) * size
    radius = (scene.radius[0] + (scene.radius[1] - scene.radius[0]) * time) * size
    grid = np.arange(size, dtype=np.float32) + 0.5
    x = (grid - centre[:, :1])[:, None, :]  # [t 1 w]
    y = (grid - centre[:, 1:])[:, :, None]  # [t h 1]
    inside = np.clip(0.5 - distance(scene.shape, x, y, radius[:, None, None]), 0, 1)  # [t h w]
    lit = inside * (1 + _texture(scene.texture, x, y, PERIOD * size / SIZE))
    picture = np.empty((frames, size, size, 3), np.uint8)
    ground = (1 - inside) * scene.background + 0.5
    for channel, value in enumerate(RGB[scene.colour]):
        picture[..., channel] = np.minimum(ground + value * lit, 255)
    return picture


def _texture(texture: str, x: Array, y: Array, period: float) -> Array:
    if period < 2:
        return np.zeros(1, np.float32)
    along_x, along_y = WAVES[texture]
    turn = 2 * math.pi / period
    return np.asarray(along_x * np.cos(turn * x) + along_y * np.cos(turn * y), np.float32)


class _Job(NamedTuple):
    """One file of the set, painted from nothing but this."""

    path: str
    split: str
    still: bool
    pair: tuple[str, str]
    seed: tuple[int, ...]


_FORMAT = 3  # raise it when the same arguments give other pictures
_SPLITS = ("train", "val", "unseen")
_CHUNK = 25  # files that a worker paints between two steps of the bar


def write_set(out: Path, videos: int = 2000, images: int = 1000, validation: int = 300, seed: int = 0) -> Path:
    """Write the set into the folder `out` and return the path of its index, `out/index.parquet`.

    Splits: "train" has `videos` clips without `UNSEEN_PAIRS` and `images` images with them; "val" has `validation`
    clips and a sixth as many images; "unseen" has a third as many clips, all of `UNSEEN_PAIRS`. The label is the
    place of (shape, colour) in `PAIRS`.

    Goes on where it was interrupted, repaints files that are gone or of another size than the index says, and returns
    at once where the set for these arguments is whole. A set painted from another seed is painted over.

    Raises ValueError where `out` holds something else, MediaError where a file cannot be written.
    """
    if videos < 1 or images < 0 or validation < 3 or seed < 0:
        found = f"{videos} videos, {images} images, {validation} validation videos, seed {seed}"
        raise ValueError(f"{out}: wanted at least 1 video and 3 validation videos and no negative number, got {found}")
    index = out / "index.parquet"
    jobs = _jobs(videos, images, validation, seed)
    _clear(out, {"set": "shapes", "format": _FORMAT, "seed": seed})
    if not _is_whole(index, jobs):
        write_index(_paint_files(out, jobs), index)
    return index


def _jobs(videos: int, images: int, validation: int, seed: int) -> list[_Job]:
    """Every file of the set, in the order of the index. Pairs take turns."""
    parts = (
        ("train", False, videos, SEEN_PAIRS),
        ("train", True, images, _IMAGE_PAIRS),
        ("unseen", False, validation // 3, UNSEEN_PAIRS),
        ("val", False, validation, SEEN_PAIRS),
        ("val", True, validation // 6, PAIRS),
    )
    jobs = []
    for split, still, count, pairs in parts:
        for number in range(count):
            # Both kinds of image file, as a user's own folder has them.
            name = f"images/{number:05d}.{'jpg' if number % 2 else 'png'}" if still else f"videos/{number:05d}.mp4"
            place = (seed, _SPLITS.index(split), int(still), number)
            jobs.append(_Job(f"{split}/{name}", split, still, pairs[number % len(pairs)], place))
    return jobs


def _clear(out: Path, recipe: dict[str, object]) -> None:
    """Make `out` ready for files of this recipe: remove those of another one, refuse what is not ours."""
    note = out / "recipe.json"
    if not note.exists():
        if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise ValueError(f"{out}: holds files that are not of the set shapes; give an empty folder with --out")
    elif json.loads(note.read_text()) != recipe:
        (out / "index.parquet").unlink(missing_ok=True)
        for split in _SPLITS:
            shutil.rmtree(out / split, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(note, json.dumps(recipe).encode())


def _is_whole(index: Path, jobs: list[_Job]) -> bool:
    """Whether the index lists these files and all are there. Files of another size than it says are removed."""
    try:
        table = pq.read_table(index, columns=["path", "bytes"])
    except (OSError, pa.ArrowInvalid):  # not there, or damaged
        return False
    whole = bool(table["path"].to_pylist() == [job.path for job in jobs])
    for name, size in zip(table["path"].to_pylist(), table["bytes"].to_pylist(), strict=True):
        path = index.parent / name
        if not path.is_file() or path.stat().st_size != size:
            path.unlink(missing_ok=True)
            whole = False
    return whole


def _paint_files(out: Path, jobs: list[_Job]) -> list[dict[str, object]]:
    """Paint what is missing, in as many processes as there are processors; rows of the index in the order of `jobs`."""
    chunks = [jobs[first : first + _CHUNK] for first in range(0, len(jobs), _CHUNK)]
    rows: list[dict[str, object]] = []
    # Workers start afresh: native decoders and encoders must not be forked. They leave Ctrl-C to us.
    context = multiprocessing.get_context("spawn")
    workers = min(os.cpu_count() or 1, len(chunks), 16)
    with ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            parts = pool.map(_paint_chunk, [out] * len(chunks), chunks)
            console = Console(stderr=True)
            for part in track(parts, f"painting {len(jobs)} files into {out}", total=len(chunks), console=console):
                rows.extend(part)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what is being painted is finished, the rest is not begun
            raise
    return rows


def _paint_chunk(out: Path, jobs: list[_Job]) -> list[dict[str, object]]:
    return [_paint_file(out, job) for job in jobs]


def _paint_file(out: Path, job: _Job) -> dict[str, object]:
    """Paint one file unless it is there; its row of the index."""
    scene = sample_scene(np.random.default_rng(job.seed), still=job.still, pairs=(job.pair,))
    path = out / job.path
    if not path.is_file():  # files appear whole or not at all
        if job.still:
            write_image(path, paint(scene, frames=1)[0])
        else:
            write_video(path, paint(scene), FPS)
    return {
        "path": job.path,
        "kind": "image" if job.still else "video",
        "frames": 1 if job.still else FRAMES,
        "fps": 0.0 if job.still else FPS,
        "width": SIZE,
        "height": SIZE,
        "caption": scene.caption,
        "label": PAIRS.index(job.pair),
        "split": job.split,
        "bytes": path.stat().st_size,
    }
