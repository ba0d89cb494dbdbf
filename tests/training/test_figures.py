"""Figures beside the progress: read when steps that log have passed, not in each step."""

from typing import Any

import torch

from walt_pl.training.figures import Figures


class Trainer:
    """A trainer with a step, logged values and the number of their reads."""

    def __init__(self, log_every_n_steps: int) -> None:
        self.log_every_n_steps = log_every_n_steps
        self.global_step = 0
        self.reads = 0
        self.progress_bar_metrics = {"val/loss": 2.0, "v_num": 3}

    @property
    def callback_metrics(self) -> dict[str, Any]:
        self.reads += 1
        return {"train/loss": torch.tensor(float(self.global_step)), "train/mse": torch.tensor(7.0)}

    def render(self, figures: Figures, step: int, fresh: bool = False) -> str:
        self.global_step = step
        return figures.render(self, fresh)  # type: ignore[arg-type]


def test_figures_are_read_once_a_log_period_also_between_its_steps() -> None:
    figures, trainer = Figures(), Trainer(10)
    shown = [trainer.render(figures, step) for step in (1, 9, 13, 17, 19, 21, 60)]
    losses = [text.split("  ")[0] for text in shown]
    assert losses == [f"train/loss {step}" for step in (1, 1, 13, 13, 13, 21, 60)]
    assert trainer.reads == 4 and shown[0] == "train/loss 1  val/loss 2"


def test_figures_without_log_steps_are_read_only_if_fresh() -> None:
    figures, trainer = Figures(), Trainer(0)
    assert [trainer.render(figures, step) for step in (1, 50)] == ["", ""] and trainer.reads == 0
    assert trainer.render(figures, 51, fresh=True) == "train/loss 51  val/loss 2" == trainer.render(figures, 99)
