"""Choices of `walt new`: sizes of an experiment that fit its data and each other, each with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from walt_pl.data.frame_rate import DEFAULT_FPS, same_rate
from walt_pl.data.transforms import ClipTransform
from walt_pl.indexing.usable_media import rows_of
from walt_pl.text.caption_lengths import CaptionLengths, measure_captions

Task = Literal["text", "class", "unconditional"]

LENGTHS = (17, 13, 9, 5)
"""Frames of a clip, 1 + a multiple of the autoencoder's temporal factor of 4; the paper has 17."""
LONG_ENOUGH = 0.9
"""Share of the videos with five frames or more that must be long enough."""
LEAST_SHARE = 1 / 20
"""Videos (or images) are used in joint batches from this share of the other kind on."""
MOST_VIEWS = 8
SMALL = 1000
"""Clips and images below which a set is called small."""
MOST_VALIDATED = 64
CAPTION_SAMPLE = 100_000
"""Captions that are read to choose the sizes of the text encoder."""


@dataclass(frozen=True)
class Picture:
    """Shape of the frames, in tokens of a transformer with a patch of one latent."""

    name: str
    rows: int
    columns: int
    window: tuple[int, int]
    """Rows and columns of the spatiotemporal window; they divide those of the frame."""


PICTURES = (
    Picture("square", 16, 16, (8, 8)),
    Picture("landscape 16:9", 16, 28, (8, 14)),
    Picture("landscape 4:3", 12, 16, (6, 8)),
    Picture("portrait 9:16", 28, 16, (14, 8)),
    Picture("portrait 3:4", 16, 12, (8, 6)),
)
"""Square and 16:9 are the paper's latents, 16 x 16 and 16 x 28."""


@dataclass(frozen=True)
class Scale:
    """Pixels of the stages' frames for clips of a size."""

    least: int
    """Pixels that the median clip has at least for each token of a `Picture`."""
    factor: int
    """Pixels of a latent, rows and columns."""
    doublings: int
    """Super-resolution stages."""
    divisor: int
    """Divides the tokens of a `Picture`: small clips have fewer."""


SCALES = (Scale(32, 8, 2, 1), Scale(16, 8, 1, 1), Scale(8, 4, 1, 1), Scale(4, 4, 1, 2), Scale(2, 4, 0, 2))
"""The first one that the median clip is large enough for is taken: the last stage never enlarges it."""


@dataclass(frozen=True)
class Choices:
    """Everything that the files of an experiment say about its data."""

    frames: int
    fps: float | None
    """Value of data.fps; None where every frame of the files is read."""
    picture: Picture
    scale: Scale
    task: Task
    num_classes: int | None
    text: CaptionLengths | None
    videos: int
    """Training videos in use; 0: images alone."""
    images: int
    """Training images in use; 0: videos alone."""
    views: int
    val_videos: int
    reasons: tuple[str, ...]
    """Sentences for the person, one for each choice."""

    @property
    def latent_frames(self) -> int:
        """Latent frames of a clip."""
        return 1 + (self.frames - 1) // 4

    @property
    def aspect(self) -> float:
        """Columns per row."""
        return self.picture.columns / self.picture.rows

    def tokens(self) -> tuple[int, int]:
        """Return rows and columns of the tokens of a frame, equal in all diffusion stages."""
        return self.picture.rows // self.scale.divisor, self.picture.columns // self.scale.divisor

    def pixels(self, doublings: int) -> tuple[int, int]:
        """Return rows and columns of the frames in pixels, after so many super-resolution stages."""
        rows, columns = self.tokens()
        times = self.scale.factor << doublings
        return rows * times, columns * times


def choose(usable: pa.Table, has_classes: bool, class_count: int) -> Choices:
    """Return the choices for the usable rows of an index.

    Args:
        usable: Rows, as `read_usable` returns them.
        has_classes: Whether the source has a folder for each class; its captions are then only their names.
        class_count: Named classes of the index.

    Raises:
        ValueError: There is nothing to train on. The message says what to do.
    """
    trained = usable.filter(pc.equal(usable["split"], "train"))
    if not trained.num_rows:
        splits = ", ".join(sorted(set(usable["split"].to_pylist())))
        raise ValueError(f"no usable file is of split train (there are: {splits}): move files, or give a smaller --val")
    task, num_classes, why = choose_task(trained, has_classes, class_count)
    if task == "class":  # training leaves out all others, too
        usable = usable.filter(pc.greater_equal(usable["label"], 0))
    videos, images = rows_of(usable, "train", "video"), rows_of(usable, "train", "image")
    frames, fps, motion = choose_motion(videos)
    videos, images, kinds = _choose_kinds(videos, images, frames)
    if videos.num_rows:
        videos = videos.filter(pa.array(_long_enough(videos, frames, fps)))
    else:
        frames, fps, motion = 1, None, ""
    picture, scale, size = choose_size(videos if videos.num_rows else images)
    text = measure_captions(sample_captions(pa.concat_tables([videos, images]))) if task == "text" else None
    views = choose_views(videos, frames, fps)
    val_videos, held_out = _count_validation(usable, "video" if videos.num_rows else "image", frames, fps)
    counts = videos.num_rows, images.num_rows
    reasons = [kinds, motion, *_describe_views(views, frames), size, why, *_describe_text(text), held_out, *_describe_small(sum(counts))]
    return Choices(frames, fps, picture, scale, task, num_classes, text, *counts, views, val_videos, tuple(filter(None, reasons)))


# ---- Frames ----------------------------------------------------------------------------------------------------------


def choose_motion(videos: pa.Table) -> tuple[int, float | None, str]:
    """Return frames, data.fps and the reason.

    The rate is the most common one, divided by the largest whole number that leaves the 8 frames a second of the paper. A smaller number
    is taken where the clips would be too short. Frames are 1 where no video has five of them.
    """
    if not videos.num_rows:
        return 1, None, ""
    rates = _column(videos, "fps")
    known, counts = np.unique(rates[rates > 0], return_counts=True)
    if not len(known):
        return _choose_frames(videos, [None])
    alike = [sum(count for other, count in zip(known, counts, strict=True) if same_rate(rate, other)) for rate in known[:1000]]
    common = float(known[int(np.argmax(alike))])
    differ = not all(same_rate(common, rate) for rate in known) or bool((rates <= 0).any()) or bool(_column(videos, "variable_rate").any())
    divisors = range(max(1, int(common / DEFAULT_FPS * 1.005)), 0, -1)
    found, fps, reason = _choose_frames(videos, [float(f"{common / d:.5g}") if differ or d > 1 else None for d in divisors])
    if found == 1:
        return found, fps, reason
    slower = int((rates < (fps or 0) * 0.995).sum())
    rate = "most clips have" if differ else "all clips have"
    reason = f"frame rate: {fps or common:g} a second; {rate} {common:g}" + (f"; {reason}" if reason else "")
    return found, fps, reason + (f"; {slower:,} clips have fewer than {fps:g}, so some of their frames come twice" if slower else "")


def _choose_frames(videos: pa.Table, rates: Sequence[float | None]) -> tuple[int, float | None, str]:
    """Return the first number of frames, and for it the first rate, that most of the videos are long enough for."""
    reach = max(_long_enough(videos, LENGTHS[-1], rate).mean() for rate in rates)
    if not reach:
        return 1, None, f"no video has {LENGTHS[-1]} frames, so their first frames are trained on as pictures"
    for frames in LENGTHS:
        for fps in rates:
            share = _long_enough(videos, frames, fps).mean()
            if share >= LONG_ENOUGH * reach:
                return frames, fps, f"frames: {frames}, for which {share * 100:.0f} % of the videos are long enough"
    raise AssertionError("the rate that reaches most videos of five frames is among the rates")


def _long_enough(videos: pa.Table, frames: int, fps: float | None) -> NDArray[np.bool_]:
    count = _column(videos, "frames")
    needs = ClipTransform(size=1, frames=frames, fps=fps).needs(count, _column(videos, "fps"), _column(videos, "duration"))
    return np.asarray(count >= needs)


def choose_views(videos: pa.Table, frames: int, fps: float | None) -> int:
    """Return the number of windows that the median video has room for, at most `MOST_VIEWS`; 1 for pictures."""
    if not videos.num_rows or frames == 1:
        return 1
    count = _column(videos, "frames")
    needs = ClipTransform(size=1, frames=frames, fps=fps).needs(count, _column(videos, "fps"), _column(videos, "duration"))
    return int(np.clip(np.median(count / needs), 1, MOST_VIEWS))


# ---- Kinds and sizes -------------------------------------------------------------------------------------------------


def _choose_kinds(videos: pa.Table, images: pa.Table, frames: int) -> tuple[pa.Table, pa.Table, str]:
    """Return the videos and images that are trained on: a kind that is rare beside the other is left out."""
    of = f"{videos.num_rows:,} videos and {images.num_rows:,} images"
    none = videos.slice(0, 0)
    if not images.num_rows or (frames > 1 and images.num_rows < LEAST_SHARE * videos.num_rows):
        return videos, none, f"videos alone: {of}" if images.num_rows else ""
    if frames == 1 or videos.num_rows < LEAST_SHARE * images.num_rows:
        return none, images, f"images alone: {of}" + (", which are too short" if videos.num_rows and frames == 1 else "")
    return videos, images, f"joint batches: {of}; a quarter of each batch are stacks of images"


def choose_size(rows: pa.Table) -> tuple[Picture, Scale, str]:
    """Return the shape that crops the clips least, and the sizes of the stages, at most that of the median clip.

    Raises:
        ValueError: The median clip is too small for every size.
    """
    height, width = _column(rows, "height"), _column(rows, "width")
    aspect = width / height
    kept = {p: np.minimum(aspect * p.rows / p.columns, p.columns / p.rows / aspect) for p in PICTURES}
    # The geometric mean: a shape that loses most of every second clip is worse than one that loses some of all.
    picture = max(PICTURES, key=lambda p: float(np.log(kept[p]).mean()))
    room = float(np.median(np.minimum(height / picture.rows, width / picture.columns)))
    median = f"{np.median(height):g} rows x {np.median(width):g} columns"
    scale = next((scale for scale in SCALES if room >= scale.least), None)
    if scale is None:
        least = f"{picture.rows * SCALES[-1].least} x {picture.columns * SCALES[-1].least}"
        raise ValueError(f"the median clip has {median}, and the smallest size of {picture.name} is {least}: bring larger clips")
    made = [f"{picture.rows // scale.divisor * s} x {picture.columns // scale.divisor * s}" for s in _pixels(scale)]
    share = f"{picture.name} keeps {kept[picture].mean() * 100:.0f} % of the pixels"
    reason = f"frame size: {', then '.join(made)}; the median clip has {median}, and {share}"
    return picture, scale, reason


def _pixels(scale: Scale) -> list[int]:
    return [scale.factor << doublings for doublings in range(scale.doublings + 1)]


# ---- Conditions ------------------------------------------------------------------------------------------------------


def choose_task(rows: pa.Table, has_classes: bool, class_count: int) -> tuple[Task, int | None, str]:
    """Return the condition of the model, its number of classes, and the reason."""
    captioned = int(pc.sum(pc.not_equal(rows["caption"], "")).as_py() or 0)
    labels = _column(rows, "label")
    labelled = int((labels >= 0).sum())
    if not has_classes and captioned >= rows.num_rows / 2:
        return "text", None, f"condition: text; {captioned:,} of {rows.num_rows:,} have a caption"
    if labelled >= rows.num_rows / 2:
        count = max(class_count, int(labels.max()) + 1)
        return "class", count, f"condition: {count:,} classes; {labelled:,} of {rows.num_rows:,} have a label"
    few = f"; only {captioned:,} of {rows.num_rows:,} have a caption" if captioned else "; there are neither captions nor labels"
    return "unconditional", None, f"condition: none{few}"


def sample_captions(rows: pa.Table) -> list[str]:
    """Return the captions of the rows, all of each clip, or evenly spaced ones of so many rows that more would take long."""
    part = rows.take(pa.array(range(0, rows.num_rows, 1 + rows.num_rows // CAPTION_SAMPLE)))
    more = [caption for captions in part["more_captions"].to_pylist() for caption in captions]
    return [caption for caption in (*part["caption"].to_pylist(), *more) if caption.strip()]


def _describe_text(text: CaptionLengths | None) -> list[str]:
    if text is None:
        return []
    cut = f"; {text.cut:,} captions are longer and lose their ends" if text.cut else ""
    return [
        f"text: at most {text.max_length} tokens, the longest caption has {text.longest}{cut}; vocabulary of {text.vocab_size:,} pieces"
    ]


def _describe_small(count: int) -> list[str]:
    """Return a warning where a model would learn its clips by heart."""
    if count >= SMALL:
        return []
    return [f"small set: {count:,} clips and images; the models will memorise them, so there are fewer steps. Stop when val/loss rises"]


def _describe_views(views: int, frames: int) -> list[str]:
    return [f"views: {views}, the windows of {frames} frames that the median clip has room for"] if frames > 1 else []


def _count_validation(usable: pa.Table, kind: str, frames: int, fps: float | None) -> tuple[int, str]:
    """Return data.val_videos, and the reason."""
    rows = rows_of(usable, "val", kind)
    found = int(_long_enough(rows, frames, fps).sum()) if kind == "video" else rows.num_rows
    if not found:
        return 0, "validation: none, since no usable clip is of split val; a larger --val or a folder val gives some"
    return min(MOST_VALIDATED, found), f"validation: {min(MOST_VALIDATED, found)} of {found:,} {kind}s of split val"


def _column(rows: pa.Table, name: str) -> NDArray[Any]:
    return np.asarray(rows[name].to_numpy())
