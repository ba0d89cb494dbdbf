"""Turn decoded frames into training pixels: start frame, size, crop, mirror; each once for the whole clip."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from walt_pl.data.batch import Kind, Sample, SampleRef
from walt_pl.data.caption_draw import draw_caption
from walt_pl.data.index import IndexEntry
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.reading import picture_sizes, read_sizes
from walt_pl.media.resizing import cover_size
from walt_pl.media.spans import EARLY, FrameRange
from walt_pl.media.types import Frames, MediaError, Size

_KIND_NUMBER: dict[Kind, int] = {"video": 0, "image": 1}


def to_square(clip: Frames, size: int, place: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """Resize the shorter side to `size` (bicubic with antialias) and crop a square from the longer one.

    Args:
        clip: uint8 [t h w 3].
        size: Side of the square in pixels.
        place: Position of the square between the first (0) and the last (1) possible row and column. (0.5, 0.5) is the centre.
            It is a share, so it names one region at every size.

    Returns:
        float32 [3 t size size] in -1..1.
    """
    return to_size(clip, size, size, place)


def to_size(clip: Frames, rows: int, columns: int, place: tuple[float, float] = (0.5, 0.5), mirrored: bool = False) -> Tensor:
    """Resize a clip until it covers `rows` x `columns` pixels (bicubic with antialias), and crop a rectangle of that size.

    Args:
        clip: uint8 [t h w 3].
        rows: Rows of the rectangle in pixels.
        columns: Columns of the rectangle in pixels.
        place: Position of the rectangle, see `to_square`.
        mirrored: Whether the rectangle is flipped left to right after cropping.

    Returns:
        float32 [3 t rows columns] in -1..1.
    """
    height, width = clip.shape[1:3]
    frames = rearrange(torch.tensor(clip), "t h w c -> t c h w")
    target = cover_size(height, width, rows, columns)
    if target != (height, width):
        frames = F.interpolate(frames.float(), size=target, mode="bicubic", antialias=True, align_corners=False)
        frames = frames.clamp(0, 255)  # bicubic overshoots at edges
    top = round(place[0] * (frames.shape[2] - rows))
    left = round(place[1] * (frames.shape[3] - columns))
    part = frames[:, :, top : top + rows, left : left + columns]
    part = rearrange(part.flip(-1) if mirrored else part, "t c h w -> c t h w")
    # Convert to float and -1..1 last: after resizing and cropping, few pixels are left.
    return torch.empty(part.shape, dtype=torch.float32).copy_(part).div_(127.5).sub_(1)


def random_crop(clip: Tensor, crop: int, rng: np.random.Generator) -> Tensor:
    """Crop a window at a uniformly drawn position, equal in all frames.

    Args:
        clip: [c t h w].
        crop: Side of the window in pixels, at most h and w.
        rng: Draws the position.

    Returns:
        [c t crop crop].
    """
    top = int(rng.integers(clip.shape[2] - crop + 1))
    left = int(rng.integers(clip.shape[3] - crop + 1))
    return clip[:, :, top : top + crop, left : left + crop].contiguous()


def center_crop(clip: Tensor, crop: int) -> Tensor:
    """Crop the window in the middle, [c t h w] to [c t crop crop]."""
    top, left = (clip.shape[2] - crop) // 2, (clip.shape[3] - crop) // 2
    return clip[:, :, top : top + crop, left : left + crop].contiguous()


@dataclass(frozen=True)
class View:
    """The part of a longer or wider clip that is read."""

    start: int
    """First frame."""
    place: tuple[float, float]
    """Position of the crop, see `to_square`."""
    mirrored: bool = False
    """True if the view is flipped left to right, where the clip transform flips."""


def draw_view(kind: Kind, item: int, number: int, spare_frames: int) -> View:
    """Return view `number` of a clip or image.

    View 0 is frame 0 and the centre. The other views are drawn at random, but each is fixed for its (number, item, kind). They do not
    depend on the training seed, so that a latent cache holds for every seed.

    Args:
        kind: Video or image.
        item: Number of the clip or image in its list.
        number: Number of the view, from 0.
        spare_frames: Frames of the clip beyond those that are read.
    """
    if number == 0:
        return View(start=0, place=(0.5, 0.5))
    rng = np.random.default_rng([number, item, _KIND_NUMBER[kind]])
    top, left = rng.random(2)
    start = int(rng.integers(max(0, spare_frames) + 1))
    return View(start, (float(top), float(left)), mirrored=bool(rng.random() < 0.5))


@dataclass(frozen=True)
class ClipTransform:
    """The frames and pixels that are read of every clip and image."""

    size: int
    """Rows in pixels. There are as many columns, unless `aspect` differs from 1."""
    frames: int = 17
    """Frames of a video."""
    low_res_size: int | None = None
    """Rows of the low-resolution copy in pixels (super-resolution)."""
    views: int = 1
    """Number of fixed views of an item. An epoch reads one of them: view = epoch mod views."""
    sizes: tuple[int, ...] = ()
    """More sizes beside `size`: with `crop`, every sample draws one of all sizes. A size that is named twice comes twice as often."""
    crop: int | None = None
    """Side of the random window in pixels (autoencoder)."""
    seed: int = 0
    """Seed of sizes, windows and start frames when `crop` is set."""
    aspect: float = 1.0
    """Columns per row, at every size: 1.75 makes 128 x 224 of size 128."""
    fps: float | None = None
    """Frames read per second of a video, whatever its own rate; None: every `stride`-th frame."""
    stride: int = 1
    """Distance between frames that are read, in frames of the file; only without `fps`."""
    flip: bool = False
    """Mirror half of the views and windows, left to right (not where captions say left or right)."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    """Options with which files are read."""
    first_view: bool = False
    """With `crop`, read frame 0 and the centre at `size` in place of a random window (validation)."""

    def __post_init__(self) -> None:
        for name in ("size", "frames", "views"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        # Rounding errors must pass: in floating point, 232 / 56 * 56 is not exactly 232.
        columns = [size * self.aspect for size in (*self.all_sizes, self.low_res_size or 0)]
        if not self.aspect > 0 or not all(abs(number - round(number)) < 1e-6 for number in columns):
            raise ValueError(f"data.aspect times each size must be a number of columns, got {self.aspect:g} and sizes {self.all_sizes}")
        if self.low_res_size is not None and not 0 < self.low_res_size < self.size:
            raise ValueError(f"data.low_res_size must lie between 1 and data.size - 1 = {self.size - 1}, got {self.low_res_size}")
        if self.stride < 1 or not (self.fps is None or self.fps > 0):
            raise ValueError(f"data.stride must be at least 1 and data.fps above 0, got {self.stride} and {self.fps}")
        if self.stride != 1 and self.fps is not None:
            raise ValueError("data.stride counts frames and data.fps is a rate: give one of them")
        if self.flip and self.crop is None and self.views == 1:
            raise ValueError("data.flip mirrors half of the windows or views, and view 0 is never mirrored: give data.crop or data.views")
        if self.sizes and self.crop is None:
            raise ValueError("data.sizes needs data.crop: a batch has one shape, so a window of one size is taken of all")
        if self.crop is None:
            return
        smallest = min(min(self.shape(size)) for size in self.all_sizes)
        if not 0 < self.crop <= smallest:
            raise ValueError(f"data.crop must lie between 1 and the smallest side {smallest}, got {self.crop}")
        if self.low_res_size is not None or self.views != 1:
            raise ValueError("data.crop draws a new window in every epoch: leave out data.low_res_size and data.views")

    @property
    def all_sizes(self) -> tuple[int, ...]:
        """Return `size` and `sizes`, ascending."""
        return tuple(sorted((self.size, *self.sizes)))

    def needs(self, frames: ArrayLike, fps: ArrayLike, duration: ArrayLike) -> NDArray[np.float64]:
        """Return the number of frames that each video must have at least.

        A video is long enough where `frames >= needs(frames, fps, duration)`.

        Args:
            frames: Frames of each video; this and the next two are columns of the index, numbers or arrays alike.
            fps: Frames per second of each video, 0 where unknown.
            duration: Seconds of each video, 0 where unknown.

        Returns:
            float64, shaped like the columns. Infinite where a video of unknown rate should be sampled by time.
        """
        if self.fps is None:
            return np.full(np.shape(frames), 1.0 + (self.frames - 1) * self.stride)
        rate = _rate(frames, fps, duration)
        return np.where(rate > 0, np.floor((self.frames - 1) / self.fps * rate + EARLY) + 1, np.inf)

    def frame_range(self, entry: IndexEntry, start: int = 0) -> FrameRange:
        """Return the frame range that is read of a video.

        A range that is sampled by time begins when frame `start` would be shown at the mean rate.
        """
        rate = _rate(entry.frames, entry.fps, entry.duration)
        return FrameRange(self.frames, self.fps, self.stride, start if self.fps is None or not rate else start / float(rate))

    def spare(self, entry: IndexEntry) -> int:
        """Return the frames of a video beyond those that it must have; 0 for an image."""
        if entry.kind == "image":
            return 0
        return int(max(0.0, entry.frames - float(self.needs(entry.frames, entry.fps, entry.duration))))

    def shape(self, size: int) -> tuple[int, int]:
        """Return rows and columns of a picture of this size, in pixels."""
        return size, round(size * self.aspect)


def _rate(frames: ArrayLike, fps: ArrayLike, duration: ArrayLike) -> NDArray[np.float64]:
    """Return the mean frames per second, 0 where it is unknown."""
    seconds = np.asarray(duration, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(seconds > 0, np.asarray(frames) / seconds, np.asarray(fps, np.float64))


class PixelDataset(Dataset[Sample]):
    """Read clips and images as pixels, by `SampleRef`.

    A sample depends only on (seed, epoch, item), never on the worker that reads it. A file that cannot be read gives zeros and its
    reason.

    Args:
        videos: Entries of the clips.
        images: Entries of the images.
        clip_transform: Says which frames and pixels are read of each.
        caption_seed: Seed of the draw among several captions of a clip; None takes the first.
    """

    def __init__(
        self,
        videos: Sequence[IndexEntry],
        images: Sequence[IndexEntry],
        clip_transform: ClipTransform,
        caption_seed: int | None = None,
    ) -> None:
        self.videos = videos
        self.images = images
        self.clip_transform = clip_transform
        self.caption_seed = caption_seed

    def __getitem__(self, draw: SampleRef) -> Sample:
        """Read one clip [3 t h w] or image [3 1 h w], with its low-resolution copy if the clip transform asks for one."""
        entry = (self.videos if draw.kind == "video" else self.images)[draw.item]
        try:
            content, low_res = self._read(entry, draw)
        except MediaError as error:
            return self.replace_failed(draw, str(error))
        caption = draw_caption(entry, draw, self.caption_seed)
        return Sample(draw, content, low_res, caption, entry.label, str(entry.place), "", "pixels")

    def replace_failed(self, draw: SampleRef, reason: str) -> Sample:
        """Return the zeros that stand for a clip or image, without reading its file."""
        entry = (self.videos if draw.kind == "video" else self.images)[draw.item]
        content, low_res = self._blank(draw.kind)
        return Sample(draw, content, low_res, entry.caption, entry.label, str(entry.place), reason, "pixels")

    def _read(self, entry: IndexEntry, draw: SampleRef) -> tuple[Tensor, Tensor | None]:
        clip_transform = self.clip_transform
        if clip_transform.crop is not None:
            return self._crop(entry, draw, clip_transform.crop), None
        view = draw_view(draw.kind, draw.item, draw.epoch % clip_transform.views, clip_transform.spare(entry))
        shapes = [clip_transform.shape(size) for size in (clip_transform.size, clip_transform.low_res_size) if size is not None]
        clips = self._decode(entry, view.start, shapes)
        pictures = [
            to_size(clip, *shape, view.place, view.mirrored and clip_transform.flip) for clip, shape in zip(clips, shapes, strict=True)
        ]
        return pictures[0], pictures[1] if clip_transform.low_res_size is not None else None

    def _crop(self, entry: IndexEntry, draw: SampleRef, crop: int) -> Tensor:
        clip_transform = self.clip_transform
        if clip_transform.first_view:
            (clip,) = self._decode(entry, 0, [clip_transform.shape(clip_transform.size)])
            return center_crop(to_size(clip, *clip_transform.shape(clip_transform.size)), crop)
        rng = np.random.default_rng([clip_transform.seed, draw.epoch, draw.item, _KIND_NUMBER[draw.kind]])
        shape = clip_transform.shape(int(rng.choice(clip_transform.all_sizes)))
        start = int(rng.integers(clip_transform.spare(entry) + 1))
        top, left = rng.random(2)
        (clip,) = self._decode(entry, start, [shape])
        window = random_crop(to_size(clip, *shape, (float(top), float(left))), crop, rng)
        return window.flip(-1) if clip_transform.flip and rng.random() < 0.5 else window

    def _decode(self, entry: IndexEntry, start: int, shapes: Sequence[Size]) -> list[Frames]:
        if entry.kind == "image":
            return picture_sizes(entry, shapes, self.clip_transform.decoding)
        return read_sizes(entry, self.clip_transform.frame_range(entry, start), shapes, self.clip_transform.decoding)

    def _blank(self, kind: Kind) -> tuple[Tensor, Tensor | None]:
        frames = self.clip_transform.frames if kind == "video" else 1
        crop, low_res = self.clip_transform.crop, self.clip_transform.low_res_size
        twin = None if low_res is None else torch.zeros(3, frames, *self.clip_transform.shape(low_res), dtype=torch.float32)
        side = (crop, crop) if crop else self.clip_transform.shape(self.clip_transform.size)
        return torch.zeros(3, frames, *side, dtype=torch.float32), twin
