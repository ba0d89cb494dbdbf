"""The spike guard on the device: its decision against that of the host, and trainings whose fused optimiser skips by it."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from tests.helpers.engine_training import stage
from tests.helpers.guarded_training import Data, Spoil, Watch
from tests.helpers.tiny_vae import tiny_batch, tiny_stage, train
from walt_pl.blocks.transfer import HostCopy
from walt_pl.runs.checkpoint import Checkpoint
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.spike_detector import SpikeDetector
from walt_pl.training.callbacks.spike_guard import Diverged, Policy, SpikeGuard, StepReport
from walt_pl.training.skipped_step import skips_on_device

NAN, SPIKE = float("nan"), 1e4


@pytest.mark.parametrize(("known", "window"), [(0, 4), (3, 16), (16, 16), (40, 16), (7, 5)])
def test_spike_detector_decides_as_the_guard_on_the_host(known: int, window: int) -> None:
    generator = torch.Generator().manual_seed(known)
    values = (10 * torch.randn(known + 60, 2, generator=generator)).exp()
    values[known + 5, 0], values[known + 6, 1], values[known + 7] = NAN, math.inf, 0.0
    guard = SpikeGuard(window=window, deviations=2)
    for row in values[:known]:
        guard._reasons(dict(zip(guard._history, row.tolist(), strict=True)), discriminator=False)
    detector = SpikeDetector(guard._history.values(), window, 2, torch.device("cpu"))
    decided = []
    for row in values[known:]:
        wanted = guard._reasons(dict(zip(guard._history, row.tolist(), strict=True)), discriminator=False)
        decided.append(bool(wanted))
        assert bool(detector.judge(row)) == bool(wanted), wanted
    assert 3 < sum(decided) < 50


def fused(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=2e-3, fused=True)


def fit(folder: Path, spoil: dict[int, float], resume: Path | None = None, steps: int = 10, **guard: Any) -> dict[str, Any]:
    """Train ten steps whose optimiser is fused, as on GPUs, and return what was seen."""
    watch, module, said = Watch(), stage(), ""
    module.optimizer = fused
    guarded, writer = SpikeGuard(window=16, deviations=30, **guard), Checkpoints(str(folder / "checkpoints"), 5, every_n_minutes=0, keep=9)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        callbacks=[EMA(0.5), guarded, Spoil(spoil), watch, writer],
        default_root_dir=folder,
        **dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"], False),  # type: ignore[arg-type]
    )
    if resume is not None:
        shutil.copytree(resume, folder / "checkpoints" / resume.name)
        trainer.ckpt_path = str(Checkpoint.at(folder / "checkpoints" / resume.name).state)
    try:
        trainer.fit(module, datamodule=Data(), weights_only=True)
    except Diverged as error:
        said = str(error)
    assert all(map(skips_on_device, trainer.optimizers)) and guarded._detector is not None
    return {**watch.seen, "said": said, "state": guarded.state_dict()}


def stayed(marks: list[float]) -> list[int]:
    return [step for step in range(1, len(marks)) if marks[step] == marks[step - 1]]


def incident(folder: Path, step: int) -> dict[str, Any]:
    return json.loads((folder / "incidents" / f"step={step:08d}.json").read_text())


def test_spike_guard_on_the_device_skips_reports_and_resumes_exactly(tmp_path: Path) -> None:
    """A step before a checkpoint is bad, too: the decision about it is read before the checkpoint is written."""
    spoil = {2: NAN, 4: NAN, 8: SPIKE, 9: NAN}
    whole = fit(tmp_path / "whole", spoil)
    assert stayed(whole["weights"]) == stayed(whole["moments"]) == sorted(spoil), "moments are those of before, step counts too"
    assert sorted(path.name for path in (tmp_path / "whole" / "incidents").iterdir()) == [f"step={step:08d}.json" for step in sorted(spoil)]
    spike = incident(tmp_path / "whole", 8)
    assert "deviations above the median" in spike["why"][0] and spike["action"] == "skipped"
    assert len(spike["ranks"][0]["files"][0]) == 8 and spike["gradient norm before"][-1] == spike["gradient norm"]
    resumed = fit(tmp_path / "resumed", spoil, tmp_path / "whole" / "checkpoints" / "step=00000005")
    assert resumed["weights"] == whole["weights"][5:] and resumed["state"] == whole["state"]
    assert incident(tmp_path / "resumed", 8) == spike


def test_spike_guard_on_the_device_rolls_back_a_step_later_also_after_a_resume(tmp_path: Path) -> None:
    spoil = {4: NAN, 8: NAN}
    whole = fit(tmp_path / "whole", spoil, policy="rollback")
    assert whole["weights"][9] == whole["weights"][4], "the checkpoint is of five steps"
    assert whole["weights"][5] == whole["weights"][3], "step 5 is undone, and the checkpoint of step 5 has the weights of step 3"
    resumed = fit(tmp_path / "resumed", spoil, tmp_path / "whole" / "checkpoints" / "step=00000005", policy="rollback")
    assert resumed["weights"] == whole["weights"][5:] and resumed["state"] == whole["state"]


@pytest.mark.parametrize("bad", ["batch", "discriminator"])
def test_spike_guard_on_the_device_skips_both_networks_or_the_discriminator_alone(bad: str, tmp_path: Path) -> None:
    stage = tiny_stage(lambda parameters: torch.optim.Adam(parameters, lr=1e-2, betas=(0.0, 0.99), fused=True))
    before: list[tuple[float, float]] = []

    class Breaks(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if bad == "discriminator" and batch_idx == 2:
                pl_module.discriminator.logit.weight.register_hook(lambda gradient: gradient * NAN if batch_idx == 2 else gradient)

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            before.append((float(pl_module.lecam.real), float(pl_module.lecam.fake)))

    batches = [tiny_batch(NAN if bad == "batch" and step == 2 else 1.0) for step in range(3)]
    seen = train(stage, batches, SpikeGuard(window=4), Breaks(), folder=tmp_path)
    assert seen.moved == [(True, True), (True, True), (bad == "discriminator", False)]
    assert before[2] == before[1] != before[0], "LeCAM's means have not seen the step"
    why = incident(tmp_path, 2)["why"]
    assert all(("discriminator" in reason) == (bad == "discriminator") for reason in why) and why
    assert [path.name for path in (tmp_path / "incidents").iterdir()] == ["step=00000002.json"], "one incident a batch"


def test_spike_guard_on_the_device_ends_the_training_after_too_many_incidents(tmp_path: Path) -> None:
    seen = fit(tmp_path, {3: NAN, 4: NAN, 6: NAN}, max_incidents=2)
    assert "step 6: the loss is nan" in seen["said"] and len(seen["weights"]) <= 8
    assert incident(tmp_path, 6)["action"] == "stopped"


def test_spike_guard_keeps_the_rollback_of_the_first_of_two_bad_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = SpikeGuard(policy="rollback")
    rolled: list[int] = []
    guard._detector, guard._step = SpikeDetector(guard._history.values(), 4, 8, torch.device("cpu")), 9
    guard._reports = [StepReport(step, HostCopy(torch.tensor([NAN, 1.0, NAN, 1.0])), {}, [], False) for step in (8, 9)]
    monkeypatch.setattr(SpikeGuard, "_report", lambda *_: None)
    monkeypatch.setattr(SpikeGuard, "_roll_back", lambda *_: rolled.append(guard._step))
    guard.on_train_batch_end(SimpleNamespace(global_step=10, max_steps=10), None)  # type: ignore[arg-type]
    assert rolled == [9]


@pytest.mark.parametrize(("policy", "due"), [("rollback", 8), ("skip", None), ("off", None)])
def test_spike_guard_takes_a_rollback_that_is_due_under_that_policy_alone(policy: Policy, due: int | None) -> None:
    guard = SpikeGuard(policy=policy)
    guard.load_state_dict({"history": {}, "incidents": [], "rollback_due": 8})
    assert guard._rollback_due == due
