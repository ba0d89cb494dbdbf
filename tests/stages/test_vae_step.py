"""One training step of stage one against its loss written out: what each network's weights move by under SGD."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stages.latent_statistics import training_latents
from tests.helpers.tiny_vae import frozen, sgd, tiny_batch, tiny_stage, train
from walt_pl.data.batch import JointBatch
from walt_pl.diffusion.rng import PerSampleRNG
from walt_pl.models.vae import VAE


class Distance(torch.nn.Module):
    """A perceptual distance with a gradient that the squared error does not have."""

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return (y - x).abs().flatten(1).mean(dim=1)


def by_frame(values: list[Tensor], clips: list[Tensor]) -> Tensor:
    """Mean over all frames of a value of each clip, [b] for videos and [b] for images."""
    frames = [value for group, x in zip(values, clips, strict=True) for value in group.repeat_interleave(x.shape[2])]
    return torch.stack(frames).mean()


def reconstruct(vae: VAE, batch: JointBatch, step: int = 0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Clips, their reconstructions from sampled latents, and the KL divergence of each clip."""
    rng, clips, outputs, divergences = PerSampleRNG(0, step, batch.global_batch_index), [batch.videos, batch.images], [], []
    noises = rng.randn([vae.encode(x[:1]).mean.shape[1:] for x in clips for _ in x])
    for x in clips:
        posterior = vae.encode(x)
        noise = torch.stack([noises.pop(0) for _ in x])
        outputs.append(vae.decode(posterior.mean + posterior.logvar.div(2).exp() * noise))
        normal = torch.distributions.Normal(posterior.mean, posterior.logvar.div(2).exp())
        divergences.append(torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(dim=1))
    return clips, outputs, divergences


def gradients_of(loss: Tensor, network: torch.nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(network.parameters(), found, strict=True)]


def movement(network: torch.nn.Module, before: list[Tensor]) -> list[Tensor]:
    return [a - b.detach() for a, b in zip(before, network.parameters(), strict=True)]


def weights_of(network: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def assert_moved_by(network: torch.nn.Module, before: list[Tensor], gradients: list[Tensor]) -> None:
    for got, want in zip(movement(network, before), gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5 * float(want.abs().max() + 1e-3))


def discriminating_stage(**settings: Any) -> Any:
    """A stage whose discriminator's logits are far enough from zero for LeCAM and the two losses to have different slopes."""
    stage = tiny_stage(**settings)
    with torch.no_grad():
        stage.discriminator.logit.bias.fill_(0.7)
        stage.discriminator.logit.weight.mul_(3)
    stage.lecam.update(torch.tensor(900.0), torch.tensor(-400.0))
    return stage


def test_vae_step_moves_the_vae_by_the_written_out_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = discriminating_stage(
        optimizer=sgd, discriminator_optimizer=frozen, gradient_clip_val=None, kl_weight=0.5, adversarial_weight=0.3
    )
    monkeypatch.setattr(stage, "setup", lambda stage: None)
    stage._perceptual = [Distance()]
    batch, before = tiny_batch(0.5), weights_of(stage.vae)
    clips, outputs, divergences = reconstruct(stage.vae, batch)
    values = [x[0].numel() for x in clips]
    squared = [((x - y) / 2).square().flatten(1).mean(dim=1) for x, y in zip(clips, outputs, strict=True)]  # of pixels in 0..1
    kl = [one / n for one, n in zip(divergences, values, strict=True)]
    perceptual = [(x - y).abs().flatten(1).mean(dim=1) for x, y in zip(clips, outputs, strict=True)]
    adversarial = [-torch.log(torch.sigmoid(stage.discriminator(y))) for y in outputs]
    weighted = ((5.0, squared), (0.5, kl), (0.1, perceptual), (0.3, adversarial))
    terms = [weight * by_frame(term, clips) for weight, term in weighted]
    shares = [torch.stack([g.norm() for g in gradients_of(term, stage.vae)]).norm() for term in terms]
    assert min(shares) > 0.02 * max(shares), "every term weighs enough to be missed"
    wanted = gradients_of(torch.stack(terms).sum(), stage.vae)
    logged = train(stage, [batch]).logged[0]
    assert_moved_by(stage.vae, before, wanted)
    assert logged["train/loss"] == pytest.approx(float(torch.stack(terms).sum()), rel=1e-5)
    for name, (weight, _), term in zip(("mse", "kl", "perceptual", "adversarial"), weighted, terms, strict=True):
        assert logged[f"train/{name}"] == pytest.approx(float(term) / weight, rel=1e-4), name


def written_out_discriminator_loss(stage: Any, batch: JointBatch, step: int, r1_weight: float) -> dict[str, Tensor]:
    """Every term of the discriminator's loss, with slopes taken with respect to pixels in 0..1."""
    clips, outputs, _ = reconstruct(stage.vae, batch, step)
    d, lecam = stage.discriminator, stage.lecam
    real, fake = [d(x) for x in clips], [d(y.detach()) for y in outputs]
    terms = {
        "real": by_frame([-torch.log(torch.sigmoid(one)) for one in real], clips),
        "fake": by_frame([-torch.log(1 - torch.sigmoid(one)) for one in fake], clips),
        "lecam": 0.2
        * (
            by_frame([(one - lecam.fake).clamp(min=0) ** 2 for one in real], clips)
            + by_frame([(lecam.real - one).clamp(min=0) ** 2 for one in fake], clips)
        ),
    }
    if r1_weight:
        slopes = []
        for x in clips:
            pixels = ((x + 1) / 2).requires_grad_()
            (slope,) = torch.autograd.grad(d(2 * pixels - 1).sum(), pixels, create_graph=True)
            slopes.append(slope.square().flatten(1).sum(dim=1))
        terms["r1"] = r1_weight * by_frame(slopes, clips)
    return terms


@pytest.mark.parametrize(("step", "penalty"), [(0, 16.0), (1, 0.0), (15, 0.0), (16, 16.0)])
def test_discriminator_step_moves_the_discriminator_by_the_written_out_loss(step: int, penalty: float) -> None:
    """R1 comes at every sixteenth step, with sixteen times its cost; it is 10 times the squared slope, without a half."""
    stage = discriminating_stage(optimizer=frozen, discriminator_optimizer=sgd, r1_weight=10.0, lecam_weight=0.2)
    batch, seen = tiny_batch(0.5), {}
    idle = [tiny_batch(0.5)] * step

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)

    stage.discriminator_optimizer = optimizer
    update = stage._update_discriminator

    def watched(inner: Any, *arguments: Any) -> None:
        if stage.global_step - 1 < step:  # the autoencoder's step has been counted
            return
        terms = written_out_discriminator_loss(stage, batch, step, 10.0 * penalty)
        seen["gradients"] = gradients_of(torch.stack(list(terms.values())).sum(), stage.discriminator)
        shares = [torch.stack([g.norm() for g in gradients_of(term, stage.discriminator)]).norm() for term in terms.values()]
        assert min(shares) > 0.01 * max(shares), dict(zip(terms, shares, strict=True))
        before = weights_of(stage.discriminator)
        update(inner, *arguments)
        assert_moved_by(stage.discriminator, before, seen["gradients"])

    stage._update_discriminator = watched
    logged = train(stage, [*idle, batch]).logged[-1]
    norm = torch.stack([g.norm() for g in seen["gradients"]]).norm()
    name = "train/discriminator_gradient_norm" + "_with_r1" * bool(penalty)
    assert logged[name] == pytest.approx(float(norm), rel=1e-3)
    assert ("train/r1" in logged) == bool(penalty)
    if penalty:
        assert logged["train/discriminator_gradient_norm"] < 0.99 * logged[name]


def test_vae_step_unreadable_clips_move_neither_network() -> None:
    """A batch with a lost video and a lost image moves both networks as the same batch without them."""
    batch = tiny_batch(0.5)
    batch.weight[1] = batch.weight[4] = 0
    short = tiny_batch(0.5)
    short.videos, short.images = short.videos[:1], short.images[:2]
    short.global_batch_index, short.weight, short.captions, short.paths = torch.tensor([0, 2, 3]), torch.ones(3), [""] * 3, [""] * 3
    moved = []
    for one in (batch, short):
        stage = discriminating_stage(optimizer=sgd, gradient_clip_val=None, lecam_weight=0.2)
        before = weights_of(stage)
        logged = train(stage, [one]).logged[0]
        moved.append((movement(stage, before), logged, stage.lecam.real, stage.lecam.fake))
    (got, told, *means), (want, expected, *wanted) = moved
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert told == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(means, wanted)


def test_discriminator_step_on_separable_clips_raises_the_logit_gap() -> None:
    """Real clips are bright, reconstructions of a network that does not learn are not."""
    stage = tiny_stage(frozen, discriminator_optimizer=lambda p: torch.optim.Adam(p, lr=2e-3, betas=(0.0, 0.99)), r1_weight=0.0)
    batch = tiny_batch(0.2)
    batch.videos, batch.images = batch.videos + 0.7, batch.images + 0.7
    gaps = [logged["train/logit_gap"] for logged in train(stage, [batch] * 30).logged]
    assert gaps[0] < 0.5 and gaps[-1] > gaps[0] + 1


def test_vae_step_raises_the_logits_of_reconstructions() -> None:
    """With a discriminator that does not learn and no other term, reconstructions come to pass for real."""
    stage = discriminating_stage(
        optimizer=lambda p: torch.optim.Adam(p, lr=2e-3), discriminator_optimizer=frozen, reconstruction_weight=0.0, adversarial_weight=1.0
    )
    fakes = [logged["train/logit_fake"] for logged in train(stage, [tiny_batch(0.5)] * 20).logged]
    assert fakes[-1] > fakes[0]


def test_lecam_follows_the_logits_of_the_global_batch() -> None:
    stage = tiny_stage(frozen, discriminator_optimizer=frozen, lecam_decay=0.75)
    batch = tiny_batch(0.5)
    clips, outputs, _ = reconstruct(stage.vae, batch)
    train(stage, [batch])
    assert stage.discriminator is not None
    for running, group in ((stage.lecam.real, clips), (stage.lecam.fake, outputs)):
        mean = by_frame([stage.discriminator(x).detach() for x in group], clips)
        torch.testing.assert_close(running, 0.25 * mean)


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_vae_step_gradient_norm_is_limited_to_one(clip: float | None) -> None:
    """By default; and to what is asked for."""
    settings = {} if clip is None else {"gradient_clip_val": clip}
    stage = tiny_stage(optimizer=sgd, adversarial_start=9, reconstruction_weight=1e4, **settings)
    before = weights_of(stage.vae)
    assert train(stage, [tiny_batch(0.5)]).logged[0]["train/gradient_norm"] > 10
    moved = torch.stack([one.norm() for one in movement(stage.vae, before)]).norm()
    assert float(moved) == pytest.approx(1.0 if clip is None else clip, rel=1e-3)


def test_vae_validation_scores_the_clips_that_could_be_read() -> None:
    """By the reconstruction of the posterior's mean, cut off at white and black."""
    stage, batch, logged = tiny_stage(), tiny_batch(0.9), {}
    batch.weight[1] = batch.weight[2] = batch.weight[4] = 0
    stage.log = lambda name, value, **settings: logged.update({name: float(value)})  # type: ignore[method-assign,assignment]
    with torch.no_grad():
        stage.validation_step(batch, 0)
        for name, x in (("video", batch.videos[:1]), ("image", batch.images[1:2])):
            error = (stage.vae.decode(stage.vae.encode(x).mean).clamp(-1, 1) - x).square().mean() / 4
            assert logged[f"val/psnr_{name}"] == pytest.approx(float(-10 * torch.log10(error)), rel=1e-5)


def test_vae_previews_show_four_clips_beside_their_reconstructions() -> None:
    stage, batch = tiny_stage(), tiny_batch(3.0, videos=6)
    batch.captions[:] = [f"clip {i}" for i in range(len(batch.captions))]
    with torch.no_grad():
        rows, captions, columns = stage.previews(batch)["reconstruction"]
        wanted = stage.vae.decode(stage.vae.encode(batch.videos[:4]).mean)
    assert columns == 2 and captions == [word for i in range(4) for word in (f"clip {i}", "reconstruction")]
    assert torch.equal(rows[::2], batch.videos[:4])
    torch.testing.assert_close(rows[1::2], wanted.clamp(-1, 1))
    assert float(wanted.abs().max()) > 0


@pytest.mark.parametrize("images", [3, 0])
def test_training_latents_are_the_means_of_the_clips_that_could_be_read(images: int) -> None:
    stage, batch = tiny_stage(), tiny_batch(videos=5, images=images)
    batch.weight[1] = 0
    found = list(training_latents(stage.vae, [batch, batch], 1, torch.device("cpu")))
    assert [len(z) for z in found] == [4, *([images] if images else [])], "a few clips at a time, videos and images apart"
    with torch.no_grad():
        torch.testing.assert_close(found[0], stage.vae.encode(batch.videos[[0, 2, 3, 4]]).mean)
