"""Tell the end of a training from a stop before it, and report either in the last lines of the output."""

import re
from collections.abc import Mapping

import lightning as L
from lightning.pytorch.callbacks import Timer

from walt_pl.runs.checkpoint_card import validation_values


def is_out_of_time(trainer: L.Trainer) -> bool:
    """Return whether trainer.max_time is over."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    return any(left is not None and left <= 0 for left in (timer.time_remaining() for timer in timers))


def has_reached_end(trainer: L.Trainer) -> bool:
    """Return whether a training ended by itself: by max_steps, by max_epochs, or by a callback of the user such as EarlyStopping.

    The autoencoder has two optimisers. Only the first one counts steps, so `trainer.global_step` is a step a batch for it, too.
    """
    out_of_time, loop = is_out_of_time(trainer), trainer.fit_loop
    if 0 <= trainer.max_steps <= trainer.global_step:
        return True
    # Lightning also counts an epoch that the time limit cut off.
    epochs = 0 if out_of_time and not trainer.is_last_batch else loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    if loop.max_epochs is not None and 0 <= loop.max_epochs <= epochs:
        return True
    return bool(trainer.should_stop) and not out_of_time


def validation_metrics(trainer: L.Trainer) -> dict[str, float]:
    """Return the figures of the last validation of this start by name, such as val/loss."""
    return validation_values(trainer.callback_metrics)  # type: ignore[arg-type]


def render_metrics(metrics: Mapping[str, float]) -> str:
    """Render validation figures in one line, without those of single timesteps such as val/loss_050, which TensorBoard shows."""
    shown = [f"{name} {value:.4g}" for name, value in sorted(metrics.items()) if not re.search(r"_\d+$", name)]
    return "last validation: " + ("  ".join(shown) or "none in this start")
