"""The embedded set `shapes`: clips of one moving, textured shape, painted from a seed and written as ordinary files.

A caption describes all of the content: "a striped red circle moving left". Shape, colour and motion are visible at 32 pixels. The
texture is too fine for 32 pixels, so the super-resolution stages must take it from the caption. The texture is fixed on the object:
its phase follows from the object's centre, so the right answer is determined. Some (shape, colour) pairs are in images and in no
training video. A model can show them in videos only by joint training.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import signal
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from walt_pl.data.index import write_index
from walt_pl.data.index_table import read_table
from walt_pl.files import write_whole
from walt_pl.indexing.doctor import is_table
from walt_pl.lock import hold_lock, lock_beside
from walt_pl.media.types import Frames
from walt_pl.media.writing import write_image, write_video
from walt_pl.removal import describe_left, remove_own
from walt_pl.untrusted import read_json

Array = NDArray[np.float32]

FRAMES, FPS, SIZE = 17, 8.0, 128

SHAPES = ("circle", "bar", "triangle")
# 60 degrees of hue apart. The brightest channel is at most 158, so the crests of the texture (x 1.56) stay below 255.
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
# A batch has few images, so nearly half of them show a pair that no video shows.
_IMAGE_PAIRS = PAIRS + 2 * UNSEEN_PAIRS

# Antialiased bicubic scaling leaves 79 % of this wave's amplitude at 64 pixels (2.75 pixels long there) and 8 % at 32 pixels.
PERIOD = 5.5
"""Length of a texture's wave, in pixels of a 128-pixel picture."""
WAVES = {"plain": (0.0, 0.0), "striped": (0.0, 0.42), "dotted": (0.28, 0.28)}
"""Relative amplitude of a texture's waves along x and y."""

# Objects start on a lattice of whole waves and move by one wave every second frame. The crests of a moving object therefore keep their
# positions in the frame. With free motion, the four frames of one latent hold a phase and a velocity for each wave. An autoencoder of
# the demo's budget then lost the waves along the motion: 75 % of textures were right at 128 pixels after 5 minutes. With motion by half
# a wave a frame, 80 % were right.
_WAVE = PERIOD / SIZE
"""Length of a texture's wave, in sides of the frame."""
_JUMPS = (FRAMES - 1) // 2
_MOVE = _JUMPS * _WAVE
"""Distance that an object moves, in sides of the frame."""
_STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
# Half width and half height for a radius of 1: areas 3.1, 2.5 and 2.4. Any two shapes with one centre differ in an area above 1.4. With
# a square instead of the bar (0.7 from the circle), the base model of the demo painted circles for two thirds of the squares.
_EXTENT = {"circle": (1.0, 1.0), "bar": (1.12, 0.56), "triangle": (1.12, 1.06)}
_OVERHANG = 0.018  # sides of the frame that an object may stick out


@dataclass(frozen=True)
class Scene:
    """One clip or image: four words, and the geometry with the origin at the upper left.

    Lengths are in sides of the frame; of a frame that is not square, in its height.
    """

    shape: str
    colour: str
    motion: str | None
    """None for a still image."""
    texture: str
    start: tuple[float, float]
    """Centre (x, y) of the object's bounding box in the first frame."""
    end: tuple[float, float]
    """Centre (x, y) of that box in the last frame."""
    radius: tuple[float, float]
    """Radius in the first and the last frame."""
    background: int
    """Grey of the background, 0..255."""

    @property
    def caption(self) -> str:
        """Caption of the four words: "a striped red circle moving left", "a plain blue bar growing"."""
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
    """Return the words of a caption.

    Raises:
        ValueError: the caption is not one that `Scene.caption` returns.
    """
    words = caption.split(" ")
    if len(words) >= 4 and words[0] == "a":
        _, texture, colour, shape, *rest = words
        motion = rest[-1] if rest else None
        known = shape in SHAPES and colour in COLOURS and texture in TEXTURES
        if known and (motion is None or motion in MOTIONS) and rest == _motion_words(motion):
            return Words(shape, colour, motion, texture)
    raise ValueError(f'no caption of the shapes: "{caption}" (wanted for example "a striped red circle moving left")')


def sample_scene(rng: np.random.Generator, *, still: bool = False, pairs: Sequence[tuple[str, str]] = PAIRS, aspect: float = 1.0) -> Scene:
    """Draw a scene: shape and colour, motion, texture, and a position within the frame.

    In sides of the frame, an object of radius 0.26 to 0.305 moves by 0.34. The radius of a growing object changes from about 0.20 to
    about 0.34. The first centre is a whole number of waves from the corner of the frame.

    Args:
        rng: source of all draws.
        still: draw no motion, for an image.
        pairs: (shape, colour) pairs to draw from.
        aspect: width of the frame divided by its height, 1 or more.
    """
    shape, colour = pairs[int(rng.integers(len(pairs)))]
    motion = None if still else MOTIONS[rng.integers(len(MOTIONS))]
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    radius = _sample_radius(rng, motion)
    start, end = _sample_path(rng, motion, np.array(_EXTENT[shape]) * max(radius), aspect)
    return Scene(shape, colour, motion, texture, start, end, radius, int(rng.integers(30, 51)))


def _sample_radius(rng: np.random.Generator, motion: str | None) -> tuple[float, float]:
    if motion in ("growing", "shrinking"):
        small, large = float(rng.uniform(0.19, 0.21)), float(rng.uniform(0.325, 0.34))
        return (small, large) if motion == "growing" else (large, small)
    radius = float(rng.uniform(0.26, 0.305))
    return radius, radius


def _sample_path(
    rng: np.random.Generator, motion: str | None, extent: NDArray[np.float64], aspect: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    direction = np.array(_STEP.get(motion or "", (0, 0)))
    margin = extent - _OVERHANG
    move = direction * _MOVE
    # Centre of the path. Its two ends keep the margin, up to half a wave from the rounding.
    low = margin + abs(move) / 2
    middle = rng.uniform(low, np.array([aspect, 1.0]) - low)
    start = np.round((middle - move / 2) / _WAVE) * _WAVE
    end = start + move
    return (float(start[0]), float(start[1])), (float(end[0]), float(end[1]))


def distance(shape: str, x: Array, y: Array, radius: Array) -> Array:
    """Return the signed distance to the shape's edge, negative inside.

    All lengths have one unit, and the arrays broadcast against each other.

    Args:
        shape: one of `SHAPES`.
        x: relative to the centre of the shape's bounding box.
        y: relative to the centre of the shape's bounding box.
        radius: of the shape.

    Returns:
        Distance, float32. Outside a corner it is the distance to the line of the nearest edge.
    """
    if shape == "circle":
        return np.asarray(np.sqrt(x * x + y * y) - radius, np.float32)
    wide, high = _EXTENT[shape]
    if shape == "bar":
        return np.asarray(np.maximum(abs(x) - wide * radius, abs(y) - high * radius), np.float32)
    # For radius 1, the slanted edge runs from (0, -high) to (wide, high).
    slope = math.hypot(2 * high, wide)
    slanted = (2 * high * abs(x) - wide * (y + high * radius)) / slope
    return np.asarray(np.maximum(slanted, y - high * radius), np.float32)


def paint(scene: Scene, frames: int = FRAMES, size: int = SIZE, aspect: float = 1.0) -> Frames:
    """Paint a scene, with antialiased edges one pixel wide.

    The texture's wave is `PERIOD * size / 128` pixels long. Below two pixels it is left out, since a grid of pixels cannot represent it.

    Args:
        scene: to paint.
        frames: number of frames; 1 for a still image.
        size: rows in pixels.
        aspect: columns per row, as the scene was drawn for.

    Returns:
        Frames, uint8 [t h w 3].
    """
    time = np.linspace(0, 1, frames, dtype=np.float32) if frames > 1 else np.zeros(1, np.float32)
    start, end = np.array(scene.start, np.float32), np.array(scene.end, np.float32)
    centre = (start + (end - start) * stepwise_time(time)[:, None]) * size
    radius = (scene.radius[0] + (scene.radius[1] - scene.radius[0]) * time) * size
    columns = round(size * aspect)
    grid = np.arange(max(size, columns), dtype=np.float32) + 0.5
    x = (grid[:columns] - centre[:, :1])[:, None, :]  # [t 1 w]
    y = (grid[:size] - centre[:, 1:])[:, :, None]  # [t h 1]
    inside = np.clip(0.5 - distance(scene.shape, x, y, radius[:, None, None]), 0, 1)  # [t h w]
    lit = inside * (1 + _texture(scene.texture, x, y, PERIOD * size / SIZE))
    picture = np.empty((frames, size, columns, 3), np.uint8)
    ground = (1 - inside) * scene.background + 0.5
    for channel, value in enumerate(RGB[scene.colour]):
        picture[..., channel] = np.minimum(ground + value * lit, 255)
    return picture


def stepwise_time(time: NDArray[Any]) -> NDArray[Any]:
    """Return the time that centres move in, for times 0..1 of a clip: it grows by one wave's length every second frame."""
    return np.asarray(np.floor(time * _JUMPS + 1e-3) / _JUMPS, time.dtype)


def _texture(texture: str, x: Array, y: Array, period: float) -> Array:
    if period < 2:
        return np.zeros(1, np.float32)
    along_x, along_y = WAVES[texture]
    turn = 2 * math.pi / period
    return np.asarray(along_x * np.cos(turn * x) + along_y * np.cos(turn * y), np.float32)


class _Job(NamedTuple):
    """One file of the set: all arguments that its content depends on."""

    path: str
    split: str
    still: bool
    pair: tuple[str, str]
    seed: tuple[int, ...]
    aspect: float


_FORMAT = 4  # increase it when a change of the code gives other pictures for equal arguments
_SPLITS = ("train", "val", "unseen")
_CHUNK = 25  # files that a worker paints between two updates of the progress bar


def write_set(out: Path, videos: int = 2000, images: int = 1000, validation: int = 300, seed: int = 0, aspect: float = 1.0) -> Path:
    """Write the set into a folder.

    Splits: "train" has `videos` clips without `UNSEEN_PAIRS` and `images` images with them. "val" has `validation` clips and a sixth as
    many images. "unseen" has a third as many clips, all of `UNSEEN_PAIRS`. The label is the index of (shape, colour) in `PAIRS`.

    An interrupted call can be repeated: it paints only files that are missing or differ in size from the index. It returns at once
    where the set for these arguments is complete. It replaces a set of another seed or aspect.

    Args:
        out: folder of the set.
        videos: number of training videos, at least 1.
        images: number of training images.
        validation: number of validation videos, at least 3.
        seed: of all scenes.
        aspect: columns per row, 1 or more; 1.75 paints 128 x 224 pixels. Objects have the size that they have in square frames.

    Returns:
        Path of the index, `out/index.parquet`.

    Raises:
        ValueError: a number is out of range, or `out` holds other files.
        MediaError: a file cannot be written.
    """
    if videos < 1 or images < 0 or validation < 3 or seed < 0:
        found = f"{videos} videos, {images} images, {validation} validation videos, seed {seed}"
        raise ValueError(f"{out}: wanted at least 1 video and 3 validation videos and no negative number, got {found}")
    if aspect < 1 or SIZE * aspect % 2:  # a video's columns are even
        raise ValueError(f"{out}: wanted an aspect of 1 or more that gives {SIZE} rows an even number of columns, got {aspect:g}")
    index = out / "index.parquet"
    jobs = _jobs(videos, images, validation, seed, aspect)
    recipe = {"set": "shapes", "format": _FORMAT, "seed": seed} | ({"aspect": aspect} if aspect != 1 else {})
    out.mkdir(parents=True, exist_ok=True)
    with hold_lock(lock_beside(index), work=f"index {index}"):
        _clear(out, recipe)
        if not _is_whole(index, jobs):
            write_index(_paint_files(out, jobs), index)
    return index


def _jobs(videos: int, images: int, validation: int, seed: int, aspect: float = 1.0) -> list[_Job]:
    """Return all files of the set, in the order of the index. The pairs alternate."""
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
            # Both formats of image files, as in a user's own folder.
            name = f"images/{number:05d}.{'jpg' if number % 2 else 'png'}" if still else f"videos/{number:05d}.mp4"
            place = (seed, _SPLITS.index(split), int(still), number)
            jobs.append(_Job(f"{split}/{name}", split, still, pairs[number % len(pairs)], place, aspect))
    return jobs


def _clear(out: Path, recipe: dict[str, object]) -> None:
    """Prepare `out` for files of this recipe: remove the files of another recipe.

    Raises:
        ValueError: `out` holds files that are not of the set.
    """
    note = out / "recipe.json"
    try:
        before = read_json(note)
    except FileNotFoundError:
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise ValueError(f"{out}: holds files that are not of the set shapes; give an empty folder with --out") from None
    else:
        if not isinstance(before, dict) or before.get("set") != "shapes":
            raise ValueError(f"{note} is not that of the set shapes; give an empty folder with --out")
        if before != recipe and (left := [path for path in remove_set(out) if path.parent != out]):
            warnings.warn(f"not of the set shapes, and left: {describe_left(left)}", stacklevel=3)
    write_whole(note, json.dumps(recipe).encode())


def remove_set(out: Path) -> list[Path]:
    """Remove a set: its painted files, its index with the doctor's lists and tables, and the note of its recipe.

    Returns:
        The entries that are not of the set, and stay.
    """
    painted = rf"({'|'.join(_SPLITS)})/(videos|images)/\d{{5,}}\.(mp4|png|jpg)"
    # A quarantine list is worth nothing without the files that it names. The tables have the names of experiments.
    index = r"index\.(parquet|arrow|sha256|quarantine\.csv)"
    tables = [re.escape(path.name) for path in out.glob("index.*.csv") if is_table(path)]
    lock = lock_beside(out / "index.parquet")  # this process holds it
    return [path for path in remove_own(out, [painted, index, *tables, r"recipe\.json"]) if path.absolute() != lock]


def _is_whole(index: Path, jobs: list[_Job]) -> bool:
    """Return whether the index lists these files and all exist. Delete files that differ in size from the index."""
    try:
        table = read_table(index)
    except ValueError:  # missing or damaged
        return False
    painted = {job.path for job in jobs}
    whole = bool(table["path"].to_pylist() == [job.path for job in jobs])
    for name, size in zip(table["path"].to_pylist(), table["bytes"].to_pylist(), strict=True):
        path = index.parent / name
        if name not in painted:  # an index of other files, which may lie anywhere
            whole = False
        elif not path.is_file() or path.stat().st_size != size:
            path.unlink(missing_ok=True)
            whole = False
    return whole


def _paint_files(out: Path, jobs: list[_Job]) -> list[dict[str, object]]:
    """Paint the missing files in parallel, with at most 16 processes, and return the index rows in the order of `jobs`."""
    chunks = [jobs[first : first + _CHUNK] for first in range(0, len(jobs), _CHUNK)]
    rows: list[dict[str, object]] = []
    # Spawn the workers, since native decoders and encoders must not be forked. Workers ignore SIGINT: the main process handles it.
    context = multiprocessing.get_context("spawn")
    workers = min(os.cpu_count() or 1, len(chunks), 16)
    with ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            parts = pool.map(_paint_chunk, [out] * len(chunks), chunks)
            console = Console(stderr=True)
            for part in track(parts, f"painting {len(jobs)} files into {out}", total=len(chunks), console=console):
                rows.extend(part)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # running chunks finish, the others do not start
            raise
    return rows


def _paint_chunk(out: Path, jobs: list[_Job]) -> list[dict[str, object]]:
    return [_paint_file(out, job) for job in jobs]


def _paint_file(out: Path, job: _Job) -> dict[str, object]:
    """Paint one file unless it exists, and return its row of the index."""
    scene = sample_scene(np.random.default_rng(job.seed), still=job.still, pairs=(job.pair,), aspect=job.aspect)
    path = out / job.path
    if not path.is_file():  # writes are atomic, so an existing file is complete
        if job.still:
            write_image(path, paint(scene, frames=1, aspect=job.aspect)[0])
        else:
            write_video(path, paint(scene, aspect=job.aspect), FPS)
    return {
        "path": job.path,
        "kind": "image" if job.still else "video",
        "frames": 1 if job.still else FRAMES,
        "fps": 0.0 if job.still else FPS,
        "width": round(SIZE * job.aspect),
        "height": SIZE,
        "caption": scene.caption,
        "label": PAIRS.index(job.pair),
        "split": job.split,
        "bytes": path.stat().st_size,
    }
