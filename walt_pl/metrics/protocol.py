"""Protocols of evaluation: the clips of both sides, their frames and sizes. Published ones have names (docs/EVALUATION.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Resize = Literal["tf1", "half_pixel", "inside", "short_side"]
"""Resize to the side of the video extractor (224): bilinear as TensorFlow 1 (no half-pixel centres), bilinear with half-pixel centres,
that of the extractor itself (values 0..255), or the short side with a central crop."""
Start = Literal["random", "first", "spread"]
"""First frame of a real clip: drawn at random, frame 0, or evenly spread over the video (the clips of `clips_per_video`)."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """Everything that determines a figure beside the data and the extractor."""

    split: str = "val"
    """Split of the real clips, where they come from an index."""
    clips: int = 2048
    """Generated clips of a fold."""
    real_clips: int | None = 2048
    """Real clips of a fold; None for every clip of the split, once."""
    folds: int = 1
    """Folds, each with clips of its own on both sides. The figure is the mean over folds."""
    frames: int = 16
    """Frames of a clip, of both sides; 1 for images."""
    stride: int = 1
    """Distance between frames of a real clip, in frames of the file."""
    clips_per_video: int = 1
    """Clips of a real video in one pass over the split. Passes follow each other until there are enough clips."""
    start: Start = "random"
    """First frame of a real clip. Generated clips begin with frame 0."""
    size: tuple[int, int] | None = None
    """Rows and columns in pixels to which both sides are scaled (to cover them) and centrally cropped; None leaves them as they are."""
    resize: Resize = "half_pixel"
    """Resize from `size` to the input of the video extractor."""
    context_frames: int = 0
    """Frames of the real clip that the generated one is given and that count in (frame prediction)."""
    paired: bool = False
    """True if generated clip i belongs to real clip i."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        for name in ("clips", "folds", "frames", "stride", "clips_per_video"):
            if getattr(self, name) < 1:
                raise ValueError(f"protocol: {name} must be at least 1, got {getattr(self, name)}")
        if self.real_clips is not None and self.real_clips < 1:
            raise ValueError(f"protocol: real_clips must be at least 1, got {self.real_clips}")
        if not 0 <= self.context_frames < self.frames:
            raise ValueError(f"protocol: context_frames must lie between 0 and frames - 1 = {self.frames - 1}, got {self.context_frames}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"protocol: size must be at least 1 x 1, got {self.size}")

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain values, for cards."""
        plain = asdict(self)
        return plain | {"size": list(self.size) if self.size else None}


PRESETS: dict[str, EvaluationProtocol] = {
    # MAGVIT and W.A.L.T on UCF-101: 10,000 clips in each of 4 folds (videogvt/configs/maskgvt_ucf101_config.py: final_num_repeats).
    "magvit_ucf": EvaluationProtocol("train", 10_000, 10_000, folds=4, size=(128, 128), resize="tf1"),
    # MAGVIT and W.A.L.T on Kinetics-600: 6 clips of each video of the evaluation split, 5 frames given, 11 predicted.
    "k600": EvaluationProtocol(
        "val", 50_000, 50_000, folds=4, clips_per_video=6, start="spread", size=(64, 64), resize="tf1", context_frames=5, paired=True
    ),
    # StyleGAN-V: a random offset of each of 2,048 videos of the whole data set.
    "stylegan_v": EvaluationProtocol("all", 2048, 2048, resize="inside"),
    "tats": EvaluationProtocol("train", 2048, 2048, size=(128, 128), resize="half_pixel"),
    # VideoGPT: 256 clips against the test clips that they belong to, several trials.
    "videogpt": EvaluationProtocol("test", 256, 256, folds=4, resize="short_side", paired=True),
    # common_metrics_on_video_quality: equal counts and lengths, 10 frames or more.
    "common_metrics": EvaluationProtocol("test", 2048, 2048, frames=16, start="first", resize="short_side", paired=True),
    # ADM's evaluator: 50,000 images against every image of the training split.
    "adm_imagenet": EvaluationProtocol("train", 50_000, None, frames=1),
}
"""Published protocols by name."""
