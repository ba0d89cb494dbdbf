"""A training step of each stage in Lightning's Trainer, on synthetic data: the embedded set's stages, and on a GPU full-size ones.

A full-size autoencoder has its discriminator and no perceptual term, whose weights are a download.
"""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.bench import Bench, Figure
from benchmarks.gpu.stage_training import average, build_data, build_stage, build_trainer, quick_changes
from benchmarks.gpu.step_clock import StepClock

WARM_UP, STEPS = 5, 10
QUICK_WARM_UP, QUICK_STEPS = 1, 1


@dataclass(frozen=True)
class Batch:
    """The videos and images of a step."""

    videos: int
    images: int = 0
    clip: tuple[int, int, int] = (17, 32, 32)
    """Frames, rows and columns in pixels, for an autoencoder."""
    changes: dict[str, Any] = field(default_factory=dict)


ADVERSARIAL: dict[str, Any] = {"adversarial_start": 0, "adversarial_warmup": 0}
"""The discriminator trains from the first step. Experiments let it start after more steps than are measured."""
NO_WEIGHTS: dict[str, Any] = {**ADVERSARIAL, "perceptual": "none"}
SMALL = {
    "shapes/vae": Batch(4, 4),
    "shapes/vae_gan": Batch(4, 4, changes=ADVERSARIAL),
    "shapes/base": Batch(16, 5),
    "shapes/sr1": Batch(8, 5),
    "shapes/sr2": Batch(8, 5),
}
FULL = {
    "ucf101/vae": Batch(2, 0, (17, 128, 128), NO_WEIGHTS),
    "ucf101/base_l": Batch(32),
    "ucf101/base_xl": Batch(32),
}


def measure(bench: Bench) -> None:
    for experiment, batch in ({} if bench.quick else FULL).items():
        bench.attempt(experiment, lambda experiment=experiment, batch=batch: _measure(bench, experiment, batch))
    for experiment, batch in SMALL.items():
        bench.attempt(experiment, lambda experiment=experiment, batch=batch: _measure(bench, experiment, batch))


def _measure(bench: Bench, experiment: str, batch: Batch) -> dict[str, Figure]:
    if experiment in FULL:
        bench.require_gpu()
    stage = build_stage(experiment, {**batch.changes, **(quick_changes(experiment) if bench.quick else {})})
    clip, videos, images = ((5, 16, 16), 1, 1) if bench.quick else (batch.clip, batch.videos, batch.images)
    clock = StepClock(QUICK_WARM_UP if bench.quick else WARM_UP)
    steps = QUICK_WARM_UP + QUICK_STEPS if bench.quick else WARM_UP + STEPS
    trainer = build_trainer(bench, bench.folder, steps, [average(), clock])
    trainer.fit(stage, build_data(stage, videos, images, clip))
    return {"ms": 1e3 * clock.seconds, **bench.peak_gb(), "videos": videos, "images": images}
