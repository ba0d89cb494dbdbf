"""Speed of a training since its start, and the time left."""

import lightning as L


class Pace:
    """Measure the mean time of a step since this start of a training, validations included.

    Args:
        trainer: trainer at the start of the training.
        now: seconds of a clock, at the start; those of the methods are of the same clock.
    """

    def __init__(self, trainer: L.Trainer, now: float) -> None:
        self.trainer = trainer
        self._began = now
        self._first = trainer.global_step

    @property
    def total(self) -> int | None:
        """Steps of the whole training; None for a training without an end."""
        return self.trainer.max_steps if self.trainer.max_steps > 0 else None

    def seconds_a_step(self, now: float) -> float:
        """Return the mean seconds of a step; the seconds since the start before the first one."""
        return max(now - self._began, 1e-9) / max(1, self.trainer.global_step - self._first)

    def seconds_left(self, now: float) -> float | None:
        """Return the seconds to the last step; None for a training without an end."""
        return None if self.total is None else max(0, self.total - self.trainer.global_step) * self.seconds_a_step(now)
