"""The condition, noise and timesteps that a stage gives its network in training, validation and previews."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from stages.latent_diffusion import LatentDiffusion
from stages.optimisation import gradient_norm
from tests.helpers.known_network import (
    CONFIG,
    ERROR,
    LAYOUT,
    OWNER,
    KnownNetwork,
    build_stage,
    joint_batch,
    sgd,
    take_network,
    train_without_loop,
)
from walt_pl.blocks.frames import FrameLayout
from walt_pl.data.batch import JointBatch
from walt_pl.diffusion.condition import Condition
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.models.vae import VAE, VAEConfig
from walt_pl.runs.artifact import load
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.training.strategies.zero import ZeROStrategy

MEAN, STD = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25])


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of an autoencoder of 3 x 8 x 8 pixels to 2 x 4 x 4 latents, with statistics that are not 0 and 1."""
    folder = tmp_path_factory.mktemp("run") / "vae"
    torch.manual_seed(0)
    config = VAEConfig(8, (1, 1), ((2, 2, 2),), (0, 1), 0, latent_channels=2, norm="layer")
    card = {"latents": {"mean": MEAN.tolist(), "std": STD.tolist()}}
    save_artifact(folder, kind="vae", models={"vae": VAE(config)}, sampling_config={}, card=card, train_config="")
    return str(folder)


def ready(vae: str, config: DenoiserConfig = CONFIG, **settings: Any) -> LatentDiffusion:
    stage = build_stage(LatentDiffusion, config, vae=vae, **settings)
    train_without_loop(stage)
    stage.setup("fit")
    return stage


def shaped(statistic: Tensor) -> Tensor:
    return statistic[:, None, None]


@pytest.mark.parametrize("space", ["latents", "pixels"])
@pytest.mark.parametrize("normalised", [True, False])
def test_latents_are_normalised_by_the_statistics_of_the_vae(vae: str, space: str, normalised: bool) -> None:
    stage, batch = ready(vae, normalize_latents=normalised), joint_batch()
    raw = LAYOUT.join(batch.videos, batch.images)
    if space == "pixels":
        batch.videos, batch.images, batch.space = torch.randn(3, 3, 5, 8, 8), torch.randn(2, 3, 1, 8, 8), "pixels"
        model: VAE = load(Path(vae)).models["vae"]  # type: ignore[assignment]
        with torch.no_grad():
            raw = LAYOUT.join(model.encode(batch.videos).mean, model.encode(batch.images).mean)
    x0, layout = stage.latents(batch.videos, batch.images, batch.space)
    assert layout == LAYOUT and x0.dtype == torch.float32 and not x0.requires_grad
    want = (raw - shaped(MEAN)) / shaped(STD) if normalised else raw
    torch.testing.assert_close(x0, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(stage._normalizer.denormalize(x0), raw, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("videos, images", [(0, 2), (3, 0)])
def test_latents_of_videos_or_images_alone_have_the_frame_layout_of_both(vae: str, videos: int, images: int) -> None:
    x0, layout = ready(vae).latents(torch.randn(videos, 3, 5, 8, 8), torch.randn(images, 3, 1, 8, 8), "pixels")
    assert layout == FrameLayout(videos, 3, images) and x0.shape == (3 * videos + images, 2, 4, 4)


def test_latents_of_another_number_of_channels_are_refused(vae: str) -> None:
    with pytest.raises(ValueError, match=r"latent_channels is 4, but .* has 2"):
        ready(vae, DenoiserConfig(**{**vars(CONFIG), "latent_channels": 4}))


@pytest.mark.parametrize("rescaled", [True, False])
def test_latent_diffusion_uses_the_configured_noise_schedule(rescaled: bool) -> None:
    stage = build_stage(LatentDiffusion, CONFIG, zero_terminal_snr=rescaled)
    assert (float(stage.path.alpha_sigma(torch.tensor([999]))[0]) == 0) is rescaled
    assert stage.sampling_config()["diffusion"]["zero_terminal_snr"] is rescaled
    assert build_stage(LatentDiffusion, CONFIG, normalize_latents=False).sampling_config()["diffusion"]["normalize_latents"] is False


class CountedWords:
    """A text encoder whose tokens are the number in a caption, and whose mask has as many words as the caption."""

    def to(self, device: torch.device) -> "CountedWords":
        return self

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        words = [caption.split() for caption in captions]
        text = torch.tensor([float(word[-1]) if word else -1.0 for word in words])
        mask = torch.arange(4) < torch.tensor([len(word) for word in words])[:, None]
        return text[:, None, None].expand(-1, 4, 3), mask


def told(stage: LatentDiffusion, batch: JointBatch, step: str = "training_step") -> Condition:
    """Run a step, and return the condition that the network was given."""
    stage.cached_text = CountedWords()  # type: ignore[assignment]
    network = take_network(stage, batch)
    train_without_loop(stage)
    getattr(stage, step)(batch, 0)
    return network.calls[-1].condition


@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_condition_holds_captions_and_labels_of_their_samples(step: str) -> None:
    batch = joint_batch()
    batch.captions[1], batch.captions[4] = "", "  "
    condition = told(build_stage(LatentDiffusion, CONFIG, condition_dropout=0.0), batch, step)
    assert condition.text is not None and condition.text_mask is not None and condition.labels is not None
    assert condition.condition_kept.tolist() == [True, False, True, True, False], "an empty caption is the null"
    assert condition.text[:, 0, 0].tolist() == [0, -1, 2, 3, -1]
    assert condition.text_mask.sum(dim=1).tolist() == [2, 0, 2, 2, 0], "words and no padding"
    assert condition.labels.tolist() == [0, 1, 2, 3, 4]


def test_condition_dropout_of_one_applies_in_training_only() -> None:
    batch, settings = joint_batch(), {"condition_dropout": 1.0, "frame_prediction": 1.0}
    condition = told(build_stage(LatentDiffusion, CONFIG, **settings), batch)
    assert not condition.condition_kept.any() and condition.context_mask is not None and condition.context_mask.any(), (
        "the past is drawn apart"
    )
    assert told(build_stage(LatentDiffusion, CONFIG, **settings), batch, "validation_step").condition_kept.all()


@pytest.mark.parametrize("label", [-1, 5])
def test_condition_with_a_label_out_of_range_is_refused(label: int) -> None:
    batch, stage = joint_batch(), LatentDiffusion(DenoiserConfig(**{**vars(CONFIG), "num_classes": 5}), sgd)
    train_without_loop(stage)
    batch.labels[:] = torch.arange(len(batch.labels)) % 5
    assert stage.training_step(batch, 0).isfinite()
    batch.labels[2] = label
    with pytest.raises(ValueError, match=r"labels must be 0 .. 4"):
        stage.training_step(batch, 0)


# ---- Validation --------------------------------------------------------------------------------------------------------


class WorseByLevel(KnownNetwork):
    """A network that is wrong by a hundredth of the timestep more."""

    def forward(self, x: Tensor, step: Tensor, condition: Condition, estimate: Tensor | None = None) -> Tensor:
        return super().forward(x, step, condition, estimate) + condition.layout.per_frame(step)[:, None, None, None] / 100


def validated(batch: JointBatch, batch_idx: int = 0, trained: int = 0, **settings: Any) -> tuple[dict[str, Any], WorseByLevel]:
    stage = build_stage(LatentDiffusion, CONFIG, **settings)
    x0, layout = stage.latents(batch.videos, batch.images, batch.space)
    network = WorseByLevel(stage.denoiser.config, x0, layout, ERROR)
    stage.denoiser = network  # type: ignore[assignment]
    logged = train_without_loop(stage, trained)
    stage.validation_step(batch, batch_idx)
    return logged, network


@pytest.mark.parametrize("frame_prediction", [0.5, 1.0])
def test_validation_loss_is_the_mean_over_ten_timesteps_of_the_frames_that_count(frame_prediction: float) -> None:
    logged, network = validated(joint_batch(weight=torch.tensor([1.0, 0, 1, 0, 1])), frame_prediction=frame_prediction)
    weight = torch.tensor([1.0, 0, 1, 0, 1])[OWNER]
    if frame_prediction == 1:
        weight[[0, 1, 3, 4, 6, 7]] = 0  # always given, and validated so
    levels = list(range(50, 1000, 100))
    by_hand = [float(((ERROR + level / 100).square() * weight).sum() / weight.sum()) for level in levels]
    assert set(logged) == {"val/loss", *(f"val/loss_{level:03d}" for level in levels)}
    assert [logged[f"val/loss_{level:03d}"].value for level in levels] == pytest.approx(by_hand, rel=1e-3)
    assert logged["val/loss"].value == pytest.approx(sum(by_hand) / 10, rel=1e-3)
    assert all(line.options["sync_dist"] and line.options["batch_size"] == 11 for line in logged.values())
    assert [call.timestep.tolist() for call in network.calls] == [[level] * 5 for level in levels]


def test_validation_runs_without_self_conditioning_and_with_every_condition() -> None:
    _, network = validated(joint_batch(), self_conditioning=1.0, condition_dropout=1.0, frame_prediction=0.9)
    assert all(
        call.estimate is None and bool(call.condition.condition_kept.all()) and call.condition.context_latents is None
        for call in network.calls
    )


def test_validation_noise_is_fixed_by_batch_timestep_and_seed() -> None:
    def noises(**settings: Any) -> list[Tensor]:
        _, network = validated(joint_batch(), **settings)
        return [network.eps(call) for call in network.calls]

    first = noises(batch_idx=3)
    torch.manual_seed(99)
    for again, eps in zip(noises(batch_idx=3, trained=70), first, strict=True):
        assert torch.equal(again, eps)
    flat = torch.stack([*first, *noises(batch_idx=4), *noises(batch_idx=3, seed=1)]).flatten(1)
    assert float((torch.corrcoef(flat) - torch.eye(30)).abs().max()) < 0.5
    assert float(flat.std()) == pytest.approx(1, abs=0.05)


# ---- Previews ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"zero_terminal_snr": False}, {"normalize_latents": False}, {"frame_prediction": 1.0}])
def test_preview_of_a_perfect_denoiser_shows_the_clips_themselves(vae: str, settings: dict[str, Any]) -> None:
    stage, batch = ready(vae, preview_steps=2, **settings), joint_batch()
    videos = FrameLayout(3, 3, 0)
    x0, _ = stage.latents(batch.videos, batch.images[:0], "latents")
    network = KnownNetwork(stage.denoiser.config, x0, videos, None, stage.path)
    stage.denoiser = network  # type: ignore[assignment]
    shown, captions = stage.preview_samples(batch)
    assert captions == ["circle 0", "circle 1", "circle 2"]
    with torch.no_grad():
        want = stage.vae.decode(batch.videos).clamp(-1, 1)
    torch.testing.assert_close(shown, want, atol=2e-3, rtol=2e-3)
    assert [int(call.timestep[0]) for call in network.calls] == [999, 499]
    assert network.calls[0].estimate is None and network.calls[1].estimate is not None, "self-conditioned on the step before"
    context_latents = network.calls[0].condition.context_mask
    assert (
        (context_latents is None)
        if "frame_prediction" not in settings
        else context_latents is not None and context_latents[:, 0, 0, 0].tolist() == [1, 1, 0] * 3
    )
    assert all(bool(call.condition.condition_kept.all()) for call in network.calls)


def test_preview_noise_is_fixed_and_differs_by_clip(vae: str) -> None:
    def start(count: int = 3, **settings: Any) -> Tensor:
        stage, batch = ready(vae, preview_steps=1, frame_prediction=0.0, **settings), joint_batch()
        network = KnownNetwork(CONFIG, torch.zeros(3 * count, 2, 4, 4), FrameLayout(count, 3, 0))
        stage.denoiser = network  # type: ignore[assignment]
        shown, _ = stage.preview_samples(batch, count)
        assert len(shown) == count and float(shown.abs().max()) <= 1
        return network.calls[0].x

    noise = start()
    torch.manual_seed(99)
    assert torch.equal(start(), noise) and torch.equal(start(2), noise[:6])
    assert not torch.allclose(start(seed=1), noise)
    assert float(noise.std()) == pytest.approx(1, abs=0.15) and float(torch.corrcoef(noise.view(3, -1)).triu(1).abs().max()) < 0.5


def test_latents_of_no_clip_have_the_shape_of_the_vae() -> None:
    stage = build_stage(LatentDiffusion, CONFIG)
    stage._vae = [SimpleNamespace(to=lambda device: SimpleNamespace(factors=(4, 8, 2)))]
    assert stage._encode(torch.zeros(0, 3, 17, 32, 6)).shape == (0, 2, 5, 4, 3)


@pytest.mark.parametrize("sharded", [False, True])
def test_gradient_clipping_is_done_by_the_stage_unless_zero_does_it(sharded: bool) -> None:
    stage = build_stage(LatentDiffusion, CONFIG, gradient_clip_val=0.5)
    logged = train_without_loop(stage)
    stage._trainer.strategy = object.__new__(ZeROStrategy) if sharded else SingleDeviceStrategy()
    for p in stage.parameters():
        p.grad = torch.ones_like(p)
    before = float(gradient_norm(stage.parameters()))
    stage.configure_gradient_clipping(None)
    after = float(gradient_norm(stage.parameters()))
    assert after == pytest.approx(before if sharded else 0.5, rel=1e-3) and before > 1
    assert (logged == {}) if sharded else logged["train/gradient_norm"].value == pytest.approx(before)
