"""Figures beside the progress of a training: the loss and those of the last validation."""

import lightning as L

LOSS = "train/loss"


class Figures:
    """Render the figures, and read them from the device at most once in `log_every_n_steps` steps, since reading waits for it."""

    def __init__(self) -> None:
        self._text = ""
        self._read = -1

    def render(self, trainer: L.Trainer, fresh: bool = False) -> str:
        """Return names and values in one line.

        Args:
            trainer: its logged values are shown. With `log_every_n_steps` of 0 they are read only where `fresh`.
            fresh: read them in any step.
        """
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it elsewhere
        period = trainer.global_step // every if every else self._read  # a bar is drawn by the clock, and may miss the multiples
        if fresh or period > self._read or (every and not self._text):
            self._read = period
            values = {name: value for name, value in trainer.callback_metrics.items() if name == LOSS}
            values |= {name: value for name, value in trainer.progress_bar_metrics.items() if name != "v_num"}  # type: ignore[misc]
            self._text = "  ".join(f"{name} {float(value):.4g}" for name, value in values.items())
        return self._text
