"""Figures beside the progress of a training: the loss and those of the last validation."""

import lightning as L

LOSS = "train/loss"


class Figures:
    """Render the figures, and read them from the device only in steps that log, since reading waits for it."""

    def __init__(self) -> None:
        self._text = ""

    def render(self, trainer: L.Trainer, fresh: bool = False) -> str:
        """Return names and values in one line.

        Args:
            trainer: its logged values are shown.
            fresh: read them in any step.
        """
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it elsewhere
        if fresh or not self._text or trainer.global_step % every == 0:
            values = {name: value for name, value in trainer.callback_metrics.items() if name == LOSS}
            values |= {name: value for name, value in trainer.progress_bar_metrics.items() if name != "v_num"}  # type: ignore[misc]
            self._text = "  ".join(f"{name} {float(value):.4g}" for name, value in values.items())
        return self._text
