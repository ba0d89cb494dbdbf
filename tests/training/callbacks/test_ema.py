"""The average of the weights."""

import re
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers.environment import ROOT
from walt_pl.training.callbacks.ema import EMA


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


def test_ema_follows_its_formula_and_validation_sees_it(tmp_path: Path) -> None:
    ema = EMA(decay=0.5)
    module, _ = fit(6, ema, tmp_path)
    assert float(module.weight) == 6, "the raw weight trains on"
    assert abs(module.validated[-1] - expected(6, 0.5)) < 1e-5


@pytest.mark.parametrize("decay, end", [(0.99, 890), (0.999, 8_990), (0.9999, 89_990)])
def test_ema_warmup_ends_at_the_steps_that_its_help_names(decay: float, end: int) -> None:
    ema = EMA(decay)
    assert ema.decay_at(end - 1) < decay - 1e-9 and ema.decay_at(end) == pytest.approx(decay, abs=1e-12)
    assert f"{end:,}" in (EMA.__doc__ or "")
    assert EMA(decay, warmup=1).decay_at(1) == decay


@pytest.mark.parametrize("config", ["base", "vae"])
def test_ema_warmup_is_stated_in_the_common_files(config: str) -> None:
    text = (ROOT / "experiments" / "common" / f"{config}.yaml").read_text(encoding="utf-8")
    ema = EMA(**yaml.safe_load(text)["ema"])
    found = re.search(r"at step n is min\(([\d.]+), \(1 \+ n\) / \((\d+) \+ n\)\): it is ([\d.]+) from step ([\d,]+) on", text)
    assert found and (float(found[1]), int(found[2]), float(found[3])) == (ema.decay, ema.warmup, ema.decay)
    end = int(found[4].replace(",", ""))
    assert ema.decay_at(end - 1) < ema.decay - 1e-9 and ema.decay_at(end) == pytest.approx(ema.decay, abs=1e-12)


def test_ema_swapping_twice_changes_nothing(tmp_path: Path) -> None:
    ema = EMA(decay=0.5)
    module, _ = fit(3, ema, tmp_path)
    with ema.swap_weights(module):
        assert abs(float(module.weight) - expected(3, 0.5)) < 1e-5
    assert float(module.weight) == 3


def saved(ema: EMA, folder: Path) -> Line:
    """Three steps, saved as the writer of checkpoints does."""
    module, trainer = fit(3, ema, folder)
    trainer.save_checkpoint(folder / "state.ckpt")
    ema.save(folder, trainer, module)
    return module


@pytest.mark.parametrize("cpu", [False, True])
def test_ema_is_stored_in_its_own_file_of_the_checkpoint(tmp_path: Path, cpu: bool) -> None:
    saved(EMA(decay=0.5, cpu=cpu), tmp_path)
    averages = load_file(tmp_path / "ema.safetensors")
    assert {name: value.dtype for name, value in averages.items()} == {"weight": torch.float32}
    assert abs(float(averages["weight"]) - expected(3, 0.5)) < 1e-5
    assert "EMA" not in torch.load(tmp_path / "state.ckpt", weights_only=True)["callbacks"]
    again = EMA(decay=0.5, cpu=cpu)
    again.load(tmp_path)
    module, _ = fit(6, again, tmp_path, resume=tmp_path / "state.ckpt")
    assert abs(module.validated[-1] - expected(6, 0.5)) < 1e-5


def test_ema_of_a_checkpoint_is_used_by_validate_alone(tmp_path: Path) -> None:
    saved(EMA(decay=0.5), tmp_path)
    ema, module = EMA(decay=0.5), Line()
    ema.load(tmp_path)
    trainer = L.Trainer(accelerator="cpu", callbacks=[ema], logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    batches = torch.utils.data.DataLoader(torch.zeros(1, 1))
    trainer.validate(module, batches, ckpt_path=tmp_path / "state.ckpt", verbose=False, weights_only=True)
    assert abs(module.validated[-1] - expected(3, 0.5)) < 1e-5


def test_ema_load_warns_of_a_checkpoint_without_one(tmp_path: Path) -> None:
    saved(EMA(decay=0.0), tmp_path)
    assert not (tmp_path / "ema.safetensors").exists()
    with pytest.warns(UserWarning, match=r"has no ema.safetensors"):
        EMA(decay=0.5).load(tmp_path)


def test_ema_of_another_model_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(()), "other": torch.zeros(2)}, tmp_path / "ema.safetensors")
    ema = EMA(decay=0.5)
    ema.load(tmp_path)
    with pytest.raises(ValueError, match=r"ema.safetensors is of another model: 0 weights missing .*1 too many .*other"):
        fit(1, ema, tmp_path)


def test_ema_decay_of_zero_switches_it_off(tmp_path: Path) -> None:
    module, _ = fit(3, EMA(decay=0.0), tmp_path)
    assert module.validated[-1] == 3
