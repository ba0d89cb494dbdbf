"""The average of the weights."""

from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from walt_pl.callbacks.ema import EMA


class Line(L.LightningModule):
    """One weight that gradient descent moves by 1 each step, beside a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.validated: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return -self.weight

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(float(self.weight))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=1.0)


def fit(steps: int, ema: EMA, folder: Path, resume: Path | None = None) -> tuple[Line, L.Trainer]:
    module = Line()
    trainer = L.Trainer(
        max_steps=steps,
        callbacks=[ema],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    batches = torch.utils.data.DataLoader(torch.zeros(steps, 1))
    trainer.fit(module, batches, torch.utils.data.DataLoader(torch.zeros(1, 1)), ckpt_path=resume, weights_only=True)
    return module, trainer


def expected(steps: int, decay: float) -> float:
    average = 0.0
    for step in range(1, steps + 1):
        d = min(decay, (1 + step) / (10 + step))
        average = d * average + (1 - d) * step
    return average


def test_average_follows_its_formula_and_validation_sees_it(tmp_path: Path) -> None:
    ema = EMA(decay=0.5)
    module, _ = fit(6, ema, tmp_path)
    assert float(module.weight) == 6, "the raw weight trains on"
    assert abs(module.validated[-1] - expected(6, 0.5)) < 1e-5


def test_swapping_twice_changes_nothing(tmp_path: Path) -> None:
    ema = EMA(decay=0.5)
    module, _ = fit(3, ema, tmp_path)
    with ema.swapped(module):
        assert abs(float(module.weight) - expected(3, 0.5)) < 1e-5
    assert float(module.weight) == 3


def test_average_survives_a_checkpoint(tmp_path: Path) -> None:
    ema = EMA(decay=0.5)
    _, trainer = fit(3, ema, tmp_path)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    module, _ = fit(6, EMA(decay=0.5), tmp_path, resume=tmp_path / "three.ckpt")
    assert abs(module.validated[-1] - expected(6, 0.5)) < 1e-5


def test_zero_decay_switches_it_off(tmp_path: Path) -> None:
    module, _ = fit(3, EMA(decay=0.0), tmp_path)
    assert module.validated[-1] == 3
