"""Choose the metric whose best checkpoint is kept, and refuse one that nothing measures."""

from typing import Any

from walt_pl.runs.stage_names import kind_of
from walt_pl.training.callbacks.metrics import PREFIX, chosen_metrics

BEST = {"vae": ("val/psnr_video", "max"), "base": ("val/loss", "min"), "super_resolution": ("val/loss", "min")}
"""Validation metric whose best checkpoint is kept, and its mode, by kind of stage."""

MODES = {"val/psnr": "max", "val/loss": "min"}
"""Mode of the validation metrics, by the beginning of their names."""


def fill_monitor(stage: str, options: Any) -> None:
    """Set `checkpoint.monitor` and `checkpoint.mode` where they are not given, and check them.

    Args:
        stage: name of the stage.
        options: parsed arguments; those of the checkpoints may change.

    Raises:
        ValueError: the metric is one of the callback metrics, which does not measure it, or its mode is unknown and not given.
    """
    checkpoint, metrics = options.checkpoint, options.metrics
    if checkpoint.monitor is None:
        checkpoint.monitor, checkpoint.mode = BEST[kind_of(stage)]
        return
    if not checkpoint.monitor.startswith(PREFIX):
        checkpoint.mode = checkpoint.mode or _find_mode(checkpoint.monitor)
        return
    name, names = checkpoint.monitor.removeprefix(PREFIX), tuple(metrics.names)
    (metric,) = chosen_metrics((name,))
    missing = [] if name in names else [f"--metrics.names '[{', '.join([*names, name])}]'"]
    missing += [] if metrics.every_steps else ["--metrics.every_steps 1000"]
    if missing:
        raise ValueError(
            f"checkpoint.monitor is {checkpoint.monitor}, but this training does not measure it (metrics.names [{', '.join(names)}], "
            f"metrics.every_steps {metrics.every_steps}): add {' '.join(missing)}, or leave checkpoint.monitor out"
        )
    checkpoint.mode = checkpoint.mode or metric.better


def _find_mode(monitor: str) -> str:
    """Return whether the lowest or the highest value of a validation metric is the best.

    Raises:
        ValueError: nobody knows.
    """
    mode = next((mode for beginning, mode in MODES.items() if monitor.startswith(beginning)), None)
    if mode is None:
        raise ValueError(
            f"checkpoint.monitor is {monitor}, and nothing says whether its lowest or its highest value is the best: add "
            "--checkpoint.mode min or --checkpoint.mode max"
        )
    return mode
