"""Protocols of evaluation: the clips of both sides, their frames and sizes. Published ones have names (docs/EVALUATION.md)."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Resize = Literal["tf1", "half_pixel", "inside", "short_side"]
"""Resize to the side of the video extractor (224): bilinear as TensorFlow 1 (no half-pixel centres), bilinear with half-pixel centres,
that of the extractor itself (values 0..255), or the short side with a central crop."""
Start = Literal["random", "first", "spread", "window"]
"""First frame of a real clip: drawn at random, frame 0, or evenly spread over the video (the clips of `clips_per_video`). With "window",
every stretch of frames of the split is one clip, and all are equally likely: a long video gives more clips than a short one."""
Order = Literal["shuffled", "names"]
"""Order in which one pass takes the real videos: drawn at random, or by name."""


CROP = "scaled to cover the size, bicubic with antialias, then the centre"
"""Rule by which clips get the protocol's size (`walt_pl.evaluation.clip_reading.cover_and_crop`), for cards and caches."""


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
    """Clips of a real video in one pass over the split."""
    repeat: bool = False
    """True if passes over the split follow each other until there are enough real clips; otherwise there is one pass."""
    order: Order = "shuffled"
    """Order of the real videos in a pass."""
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
        object.__setattr__(self, "size", tuple(self.size) if self.size else None)  # JSON and YAML have lists
        for name in ("clips", "folds", "frames", "stride", "clips_per_video"):
            if getattr(self, name) < 1:
                raise ValueError(f"protocol: {name} must be at least 1, got {getattr(self, name)}")
        if self.real_clips is not None and self.real_clips < 1:
            raise ValueError(f"protocol: real_clips must be at least 1, got {self.real_clips}")
        if self.real_clips is None and self.folds > 1:
            raise ValueError(f"protocol: with every real clip of the split (real_clips None) folds must be 1, got {self.folds}")
        if self.start in ("first", "window") and self.clips_per_video > 1:
            raise ValueError(f'protocol: start "{self.start}" wants clips_per_video 1, got {self.clips_per_video}')
        if self.start == "window" and self.order == "names":
            raise ValueError('protocol: start "window" draws from all videos at once: order must be shuffled, got names')
        if self.seed < 0:
            raise ValueError(f"protocol: seed must be at least 0, got {self.seed}")
        if not 0 <= self.context_frames < self.frames:
            raise ValueError(f"protocol: context_frames must lie between 0 and frames - 1 = {self.frames - 1}, got {self.context_frames}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"protocol: size must be at least 1 x 1, got {self.size}")

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain values, for cards."""
        plain = asdict(self)
        return plain | {"size": list(self.size) if self.size else None, "crop": CROP if self.size else None}


PRESETS: dict[str, EvaluationProtocol] = {
    # MAGVIT and W.A.L.T on UCF-101. videogvt/configs/maskgvt_ucf101_config.py: eval.data_splits train, num_examples 10,000,
    # final_num_repeats 4, num_frames 16, stride 1, min_resize and crop_size 128. Its 9,537 videos are read again and again.
    "magvit_ucf": EvaluationProtocol("train", 10_000, 10_000, folds=4, repeat=True, size=(128, 128), resize="tf1"),
    # MAGVIT and W.A.L.T on Kinetics-600: 6 clips of each video of the evaluation split, 5 frames given, 11 predicted. 4 x 50,000 clips
    # are more than one pass. videogvt/tools/compute_fvd.py: pixels of 64 x 64, mean and standard deviation over the folds.
    "k600": EvaluationProtocol(
        "val",
        50_000,
        50_000,
        folds=4,
        clips_per_video=6,
        repeat=True,
        start="spread",
        size=(64, 64),
        resize="tf1",
        context_frames=5,
        paired=True,
    ),
    # StyleGAN-V, fvd2048_16f of src/metrics/metric_main.py: whole data set, short videos left out, a random offset in each video.
    # src/metrics/metric_utils.py takes the first 2,048 videos by name.
    "stylegan_v": EvaluationProtocol("all", 2048, 2048, order="names", resize="inside"),
    # TATS, scripts/sample_vqgan_transformer_short_videos.py: the first 2,048 of the shuffled windows (VideoClips) of the train split.
    "tats": EvaluationProtocol("train", 2048, 2048, start="window", size=(128, 128), resize="half_pixel"),
    # VideoGPT, scripts/compute_fvd.py: a batch of 256 shuffled windows of the test split, and samples under its conditions; 4 trials.
    "videogpt": EvaluationProtocol("test", 256, 256, folds=4, start="window", resize="short_side", paired=True),
    # common_metrics_on_video_quality: equal counts and lengths, 10 frames or more. It says nothing of counts and splits.
    "common_metrics": EvaluationProtocol("test", 2048, 2048, order="names", start="first", resize="short_side", paired=True),
    # ADM's evaluator: 50,000 images against every image of the training split.
    "adm_imagenet": EvaluationProtocol("train", 50_000, None, frames=1),
}
"""Published protocols by name."""


def resolve_protocol(preset: str | None, **changes: Any) -> tuple[str | None, EvaluationProtocol]:
    """Return a protocol and the name under which its figures may be published.

    Args:
        preset: name of a published protocol; None starts from the defaults.
        changes: fields with values of one's own.

    Returns:
        The preset's name, or None where a field differs from it; and the protocol.

    Raises:
        ValueError: there is no such preset, or a value is impossible.
    """
    if preset is not None and preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f'no preset "{preset}": {meant}There are {", ".join(PRESETS)}')
    base = EvaluationProtocol() if preset is None else PRESETS[preset]
    protocol = replace(base, **changes)
    return preset if protocol == base else None, protocol
