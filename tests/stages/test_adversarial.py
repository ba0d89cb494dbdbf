"""The autoencoder against its discriminator: who wins, how much the discriminator counts, and when it rests."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from stages.vae import Reconstruction, VAEStage
from tests.helpers.experiments import FULL_SIZE, planned
from tests.helpers.tiny_vae import frozen, tiny_batch, tiny_stage, train
from walt_pl.diffusion.rng import PerSampleRNG
from walt_pl.models.losses import DiscriminatorPause, discriminator_accuracy, r1_penalty
from walt_pl.training.callbacks.spike_guard import SpikeGuard


def test_vae_stage_logs_discriminator_accuracy_and_logit_gap_at_every_step() -> None:
    seen = train(tiny_stage(), [tiny_batch()] * 2)
    for logged in seen.logged:
        assert 0 <= logged["train/discriminator_accuracy"] <= 1
        assert logged["train/logit_gap"] == pytest.approx(logged["train/logit_real"] - logged["train/logit_fake"], abs=1e-6)
        assert logged["train/gradient_ratio"] > 0 and logged["train/discriminator_gradient_norm"] > 0
    assert seen.moved == [(True, True)] * 2


def test_vae_stage_gradient_ratio_is_that_of_the_two_losses_at_the_pixels() -> None:
    """Against autograd asked for each term alone, on the reconstruction of the same step."""
    module, taken = tiny_stage(kl_weight=0.0), {}
    reconstruct = module._reconstruct

    def keep(*arguments: Any) -> Any:
        parts = reconstruct(*arguments)
        outputs = [part.y.detach().requires_grad_() for part in parts]
        values = sum(part.x.numel() for part in parts)
        error = torch.stack([(part.x - y).square().sum() / 4 for part, y in zip(parts, outputs, strict=True)]).sum() / values
        frames = torch.tensor([5.0, 5, 1, 1, 1])
        adversarial = (torch.nn.functional.softplus(-module._logits(outputs)) * frames / frames.sum()).sum()
        norms = [
            torch.cat([g.flatten() for g in torch.autograd.grad(weight * term, outputs)]).norm()
            for weight, term in ((module.adversarial_weight, adversarial), (module.reconstruction_weight, error))
        ]
        taken["ratio"] = float(norms[0] / norms[1])
        return parts

    module._reconstruct = keep  # type: ignore[method-assign]
    assert train(module, [tiny_batch()]).logged[0]["train/gradient_ratio"] == pytest.approx(taken["ratio"], rel=1e-4)


def test_adversarial_weight_grows_from_its_start() -> None:
    module = tiny_stage(adversarial_weight=0.1, adversarial_start=3, adversarial_warmup=4)
    assert [round(module._adversarial_weight(step), 3) for step in range(3, 9)] == [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]
    assert tiny_stage()._adversarial_weight(0) == 0.1
    ratios = [logged["train/gradient_ratio"] for logged in train(tiny_stage(adversarial_warmup=1000), [tiny_batch()]).logged]
    assert ratios[0] == pytest.approx(train(tiny_stage(), [tiny_batch()]).logged[0]["train/gradient_ratio"] / 1000, rel=1e-3)


def test_discriminator_pause_stops_the_discriminator_that_wins_until_it_does_not() -> None:
    """Its logit is put beyond doubt: first right, then wrong. The running mean forgets half at each step."""
    module = tiny_stage(discriminator_pause=0.9, discriminator_resume=0.6)
    module.discriminator_pause.decay = 0.5
    right = {"value": True}

    def decided(clips: list[torch.Tensor]) -> torch.Tensor:
        assert module.discriminator is not None
        real = not clips[0].requires_grad and torch.equal(clips[0], tiny_batch().videos)
        logits = torch.cat([module.discriminator(clip) for clip in clips])
        return logits * 1e-3 + (1.0 if real == right["value"] else -1.0)

    module._logits = decided  # type: ignore[method-assign]
    module.r1_weight = 0.0  # reals need no gradient

    class Turn(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            right["value"] = trainer.global_step < 4

    seen = train(module, [tiny_batch()] * 8, Turn())
    paused = [bool(logged["train/discriminator_paused"]) for logged in seen.logged]
    assert paused == [False, False, True, True, False, False, False, False]
    assert [discriminator for _, discriminator in seen.moved] == [True, True, True, False, False, True, True, True]
    assert all(vae for vae, _ in seen.moved), "the autoencoder learns on"


def test_discriminator_pause_is_in_the_checkpoint() -> None:
    module = tiny_stage(discriminator_pause=0.97)
    for _ in range(400):
        module.discriminator_pause.update(torch.tensor(1.0))
    other = tiny_stage()
    other.load_state_dict(module.state_dict())
    assert bool(other.discriminator_pause.paused) and other.discriminator_pause.accuracy == module.discriminator_pause.accuracy


def test_discriminator_accuracy_counts_both_sides_and_pause_forgets_nan() -> None:
    assert discriminator_accuracy(torch.tensor([2.0, 0.1, -1.0]), torch.tensor([-3.0, 1.0, 2.0])).tolist() == [1.0, 0.5, 0.0]
    balance = DiscriminatorPause(pause=0.97)
    balance.update(discriminator_accuracy(torch.tensor([torch.nan]), torch.tensor([-1.0]))[0])
    assert balance.accuracy == 0.5
    never = DiscriminatorPause()
    for _ in range(400):
        never.update(torch.tensor(1.0))
    assert not never.paused
    with pytest.raises(ValueError, match="discriminator_pause: wanted"):
        DiscriminatorPause(pause=0.8, resume=0.9)


def test_spike_guard_skips_a_nan_batch_in_both_networks(tmp_path: Path) -> None:
    module = tiny_stage()
    seen = train(module, [tiny_batch(), tiny_batch(float("nan")), tiny_batch()], SpikeGuard(window=4), folder=tmp_path)
    assert seen.moved == [(True, True), (False, False), (True, True)]
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_spike_guard_skips_a_nan_discriminator_step_and_writes_an_incident(tmp_path: Path) -> None:
    module = tiny_stage(r1_weight=0.0)
    assert module.discriminator is not None
    weight = next(module.discriminator.parameters())
    # The autoencoder's step counts: in the second batch the discriminator's gradients come after two of them.
    weight.register_hook(lambda gradient: gradient * (float("nan") if module.global_step == 2 else 1.0))
    seen = train(module, [tiny_batch()] * 3, SpikeGuard(window=4), folder=tmp_path)
    assert seen.moved == [(True, True), (True, False), (True, True)]
    (path,) = (tmp_path / "incidents").iterdir()
    incident = json.loads(path.read_text())
    assert (path.name, incident["why"]) == ("step=00000001.json", ["the discriminator's gradient norm is nan"])
    assert [layer for layer, norm in incident["gradient norm by layer"].items() if norm == "nan"] == ["discriminator.conv_in"]
    assert incident["loss"] > 0 and len(incident["loss before"]) == 2, "the autoencoder's stay in its own window"


def test_vae_stage_perceptual_frames_depend_on_the_global_batch_index() -> None:
    """A rank that has half of the batch gets the distances of its half."""
    module, clips = tiny_stage(perceptual_frames=2), tiny_batch().videos
    groups = [(clips, 0.5 * clips), (tiny_batch().images[:2], torch.zeros(2, 3, 1, 8, 8))]

    def metric(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (x - y).abs().mean(dim=(1, 2, 3))

    def distances(rows: list[int]) -> torch.Tensor:
        mine = [Reconstruction(x[rows], y[rows], None) for x, y in groups]  # type: ignore[arg-type]
        global_batch_index = torch.tensor([*rows, *(2 + row for row in rows)])
        return module._perceptual_distance(metric, mine, PerSampleRNG(0, 5, global_batch_index))  # type: ignore[arg-type]

    whole = distances([0, 1])
    assert whole.shape == (4,) and len(set(whole.tolist())) == 4
    for row in (0, 1):
        torch.testing.assert_close(distances([row]), whole[[row, 2 + row]])


def test_spike_guard_skips_the_discriminator_step_of_a_skipped_batch(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="deviations above the median"):
        seen = train(
            tiny_stage(), [*[tiny_batch()] * 4, tiny_batch(1e4), tiny_batch()], SpikeGuard(window=4, deviations=20), folder=tmp_path
        )
    assert seen.moved == [*[(True, True)] * 4, (False, False), (True, True)]


def test_spike_guard_takes_adversarial_start_for_no_spike(tmp_path: Path) -> None:
    heavy = tiny_stage(adversarial_start=6, adversarial_weight=1e4)
    seen = train(heavy, [tiny_batch()] * 10, SpikeGuard(window=8, deviations=20, max_incidents=0), folder=tmp_path)
    assert seen.moved == [*[(True, False)] * 6, *[(True, True)] * 4]
    assert seen.logged[6]["train/loss"] > 100 * seen.logged[5]["train/loss"]


def slope(clip: float | None, steps: int = 96) -> float:
    """Mean squared slope of a discriminator at real clips after training against a network that does not learn."""
    stage = tiny_stage(
        frozen,
        discriminator_optimizer=lambda p: torch.optim.Adam(p, lr=2e-3, betas=(0.0, 0.99)),
        r1_weight=10.0,
        discriminator_gradient_clip_val=clip,
    )
    train(stage, [tiny_batch(0.5, seed=seed) for seed in range(steps)])
    assert stage.discriminator is not None
    clips = tiny_batch(0.5).videos.requires_grad_()
    return float(r1_penalty(clips, stage.discriminator(clips)).mean())


def test_discriminator_gradient_clip_is_off_so_that_lazy_r1_works() -> None:
    """A limit on the gradient norm leaves next to nothing of a penalty that comes at one step in sixteen, weighted sixteen times."""
    assert tiny_stage().discriminator_gradient_clip_val is None
    assert slope(clip=None) < slope(clip=1.0) / 10


def test_discriminator_gradient_norm_is_clipped_where_asked() -> None:
    seen = train(tiny_stage(discriminator_gradient_clip_val=1e-12), [tiny_batch()])
    stage = tiny_stage(discriminator_gradient_clip_val=1e-3)
    stage.discriminator_optimizer = lambda p: torch.optim.SGD(p, lr=1.0)
    before = [p.detach().clone() for p in stage.discriminator.parameters()]  # type: ignore[union-attr]
    train(stage, [tiny_batch()])
    moved = torch.stack([(a - b).norm() for a, b in zip(before, stage.discriminator.parameters(), strict=True)]).norm()  # type: ignore[union-attr]
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)
    assert seen.logged[0]["train/discriminator_gradient_norm"] > 1e-3, "the logged norm is that before the limit"


def test_experiment_vae_has_the_published_loss_weights() -> None:
    """docs/METHOD.md, section 2.8: MAGVIT's, and neither a pause nor a limit of the discriminator's gradients."""
    stages = [stage for config in FULL_SIZE if isinstance(stage := planned("--config", str(config)).model, VAEStage)]
    assert len(stages) == 6
    wanted = {
        "reconstruction_weight": 5.0,
        "perceptual_weight": 0.1,
        "adversarial_weight": 0.1,
        "adversarial_start": 0,
        "adversarial_warmup": 5000,
        "r1_weight": 10.0,
        "r1_every": 16,
        "lecam_weight": 0.001,
        "kl_weight": 1e-6,
        "gradient_clip_val": 1.0,
        "discriminator_gradient_clip_val": None,
        "warmup_steps": 1000,
        "lr_schedule": "cosine",
    }
    for stage in stages:
        assert {name: getattr(stage, name) for name in wanted} == wanted
        assert stage.discriminator_pause.pause is None and stage.lecam.decay == 0.999
