"""The autoencoder against its critic: who wins, what the critic's say is, and when it rests."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from stages.vae import VAEStage
from walt_pl.callbacks.guard import Guard
from walt_pl.data.batch import JointBatch
from walt_pl.diffusion.chance import Chance
from walt_pl.losses import Balance, discriminator_accuracy
from walt_pl.models.discriminator import DiscriminatorConfig
from walt_pl.models.vae import VAEConfig

SIZE = VAEConfig(width=8, multipliers=(1, 1), strides=((2, 2, 2),), blocks=(0, 1), middle_blocks=0, norm="layer", latent_channels=2)
CRITIC = DiscriminatorConfig(width=4, multipliers=(2,), size=(8, 8))


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2, betas=(0.0, 0.99))


def stage(**settings: Any) -> VAEStage:
    torch.manual_seed(0)
    return VAEStage(SIZE, adam, CRITIC, warmup=0, decay="constant", **settings)


def batch(scale: float = 1.0) -> JointBatch:
    chance = torch.Generator().manual_seed(0)
    return JointBatch(
        videos=scale * torch.randn(2, 3, 5, 8, 8, generator=chance),
        images=scale * torch.randn(3, 3, 1, 8, 8, generator=chance),
        captions=[""] * 5,
        labels=torch.arange(5),
        weight=torch.ones(5),
        slots=torch.arange(5),
        low_videos=None,
        low_images=None,
        space="pixels",
        paths=[""] * 5,
    )


class Seen(L.Callback):
    """What TensorBoard is told, step by step, and whether each network moved."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.moved: list[tuple[bool, bool]] = []
        self._before: list[list[torch.Tensor]] = []

    def _weights(self, module: Any) -> list[list[torch.Tensor]]:
        return [[p.detach().clone() for p in part.parameters()] for part in (module.vae, module.discriminator)]

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._before = self._weights(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        pairs = zip(self._before, self._weights(pl_module), strict=True)
        vae, critic = (any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairs)
        self.moved.append((vae, critic))
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def trained(module: VAEStage, batches: list[JointBatch], *more: L.Callback, folder: Path | None = None) -> Seen:
    seen = Seen()
    quiet = {
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(accelerator="cpu", devices=1, max_steps=len(batches), callbacks=[*more, seen], **quiet)  # type: ignore[arg-type]
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return seen


def test_who_wins_is_told_at_every_step() -> None:
    seen = trained(stage(), [batch()] * 2)
    for logged in seen.logged:
        assert 0 <= logged["train/discriminator_accuracy"] <= 1
        assert logged["train/logit_gap"] == pytest.approx(logged["train/logit_real"] - logged["train/logit_fake"], abs=1e-6)
        assert logged["train/gradient_ratio"] > 0 and logged["train/discriminator_gradient_norm"] > 0
    assert seen.moved == [(True, True)] * 2


def test_gradient_ratio_is_that_of_the_two_terms_at_the_pixels() -> None:
    """Against autograd asked for each term alone, on the reconstruction of the same step."""
    module, taken = stage(kl_weight=0.0), {}
    reconstruct = module._reconstruct

    def keep(*arguments: Any) -> Any:
        kinds = reconstruct(*arguments)
        pixels = [(x, y.detach().requires_grad_(), posterior) for x, y, posterior in kinds]
        outputs = [y for _, y, _ in pixels]
        values = sum(x.numel() for x, _, _ in pixels)
        error = torch.stack([(x - y).square().sum() for x, y, _ in pixels]).sum() / values
        adversarial = torch.nn.functional.softplus(-module._logits(outputs)).mean()
        norms = [
            torch.cat([g.flatten() for g in torch.autograd.grad(weight * term, outputs)]).norm()
            for weight, term in ((module.adversarial_weight, adversarial), (module.reconstruction_weight, error))
        ]
        taken["ratio"] = float(norms[0] / norms[1])
        return kinds

    module._reconstruct = keep  # type: ignore[method-assign]
    assert trained(module, [batch()]).logged[0]["train/gradient_ratio"] == pytest.approx(taken["ratio"], rel=1e-4)


def test_the_weight_of_the_critic_grows_from_its_start() -> None:
    module = stage(adversarial_weight=0.1, adversarial_start=3, adversarial_warmup=4)
    assert [round(module._adversarial_weight(step), 3) for step in range(3, 9)] == [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]
    assert stage()._adversarial_weight(0) == 0.1
    ratios = [logged["train/gradient_ratio"] for logged in trained(stage(adversarial_warmup=1000), [batch()]).logged]
    assert ratios[0] == pytest.approx(trained(stage(), [batch()]).logged[0]["train/gradient_ratio"] / 1000, rel=1e-3)


def test_a_critic_that_wins_outright_rests_until_it_does_not() -> None:
    """Its logit is put beyond doubt: first right, then wrong. The running mean forgets half at each step."""
    module = stage(discriminator_pause=0.9, discriminator_resume=0.6)
    module.balance.decay = 0.5
    right = {"value": True}

    def decided(clips: list[torch.Tensor]) -> torch.Tensor:
        assert module.discriminator is not None
        real = not clips[0].requires_grad and torch.equal(clips[0], batch().videos)
        logits = torch.cat([module.discriminator(clip) for clip in clips])
        return logits * 1e-3 + (1.0 if real == right["value"] else -1.0)

    module._logits = decided  # type: ignore[method-assign]
    module.r1_weight = 0.0  # reals need no gradient

    class Turn(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            right["value"] = trainer.global_step < 4

    seen = trained(module, [batch()] * 8, Turn())
    paused = [bool(logged["train/discriminator_paused"]) for logged in seen.logged]
    assert paused == [False, False, True, True, False, False, False, False]
    assert [critic for _, critic in seen.moved] == [True, True, True, False, False, True, True, True]
    assert all(vae for vae, _ in seen.moved), "the autoencoder learns on"


def test_rest_is_part_of_the_checkpoint() -> None:
    module = stage()
    for _ in range(400):
        module.balance.update(torch.tensor(1.0))
    other = stage()
    other.load_state_dict(module.state_dict())
    assert bool(other.balance.paused) and other.balance.accuracy == module.balance.accuracy


def test_accuracy_counts_both_sides_and_one_number_that_is_none_does_not_stay() -> None:
    assert discriminator_accuracy(torch.tensor([2.0, 0.1, -1.0]), torch.tensor([-3.0])).item() == 0.75
    balance = Balance()
    balance.update(discriminator_accuracy(torch.tensor([torch.nan]), torch.tensor([-1.0])))
    assert balance.accuracy == 0.5
    never = Balance(pause=None)
    for _ in range(400):
        never.update(torch.tensor(1.0))
    assert not never.paused
    with pytest.raises(ValueError, match="discriminator_pause: wanted"):
        Balance(pause=0.8, resume=0.9)


def test_a_batch_that_is_no_number_leaves_both_networks_and_the_running_means(tmp_path: Path) -> None:
    module = stage()
    seen = trained(module, [batch(), batch(float("nan")), batch()], Guard(window=4), folder=tmp_path)
    assert seen.moved == [(True, True), (False, False), (True, True)]
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_a_step_of_the_critic_that_is_no_number_is_an_incident_and_is_not_taken(tmp_path: Path) -> None:
    module = stage(r1_weight=0.0)
    assert module.discriminator is not None
    weight = next(module.discriminator.parameters())
    # The autoencoder's step counts: in the second batch the critic's gradients come after two of them.
    weight.register_hook(lambda gradient: gradient * (float("nan") if module.global_step == 2 else 1.0))
    seen = trained(module, [batch()] * 3, Guard(window=4), folder=tmp_path)
    assert seen.moved == [(True, True), (True, False), (True, True)]
    (path,) = (tmp_path / "incidents").iterdir()
    incident = json.loads(path.read_text())
    assert (path.name, incident["why"]) == ("step=00000001.json", ["the discriminator's gradient norm is nan"])
    assert [layer for layer, norm in incident["gradient norm by layer"].items() if norm == "nan"] == ["discriminator.conv_in"]
    assert incident["loss"] > 0 and len(incident["loss before"]) == 2, "the autoencoder's stay in its own window"


def test_frames_of_a_clip_are_drawn_by_its_place_in_the_global_batch() -> None:
    """The perceptual term of a batch is the mean over two ranks that have half of it each."""
    module, clips = stage(perceptual_frames=2), batch().videos
    kinds = [(clips, 0.5 * clips, None), (batch().images[:2], torch.zeros(2, 3, 1, 8, 8), None)]

    def metric(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (x - y).abs().mean(dim=(1, 2, 3))

    def distance(rows: list[int]) -> torch.Tensor:
        mine = [(x[rows], y[rows], posterior) for x, y, posterior in kinds]
        slots = torch.tensor([*rows, *(2 + row for row in rows)])
        return module._perceptual_distance(metric, mine, Chance(0, 5, slots))  # type: ignore[arg-type]

    whole = distance([0, 1])
    torch.testing.assert_close(whole, (distance([0]) + distance([1])) / 2)
    assert whole != distance([0])


def test_the_critic_does_not_learn_from_a_batch_that_was_skipped(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="deviations above the median"):
        seen = trained(stage(), [*[batch()] * 4, batch(1e4), batch()], Guard(window=4, deviations=20), folder=tmp_path)
    assert seen.moved == [*[(True, True)] * 4, (False, False), (True, True)]


def test_the_step_at_which_the_critic_begins_to_count_is_no_spike(tmp_path: Path) -> None:
    heavy = stage(adversarial_start=6, adversarial_weight=1e4)
    seen = trained(heavy, [batch()] * 10, Guard(window=8, deviations=20, most=0), folder=tmp_path)
    assert seen.moved == [*[(True, False)] * 6, *[(True, True)] * 4]
    assert seen.logged[6]["train/loss"] > 100 * seen.logged[5]["train/loss"]
