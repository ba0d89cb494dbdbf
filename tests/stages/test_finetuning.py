"""A base model of square clips trained on as one of wide clips, and sampled."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from stages.base import BaseStage
from stages.finetuning import init_from
from stages.vae import VAEStage
from walt_pl.cli.sample import sample
from walt_pl.data.batch import JointBatch
from walt_pl.media.reading import read_video
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.discriminator import DiscriminatorConfig
from walt_pl.models.vae import VAE, VAEConfig
from walt_pl.models.weight_inflation import inflate_weights
from walt_pl.runs.artifact import Artifact, load
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.runs.manifest import Manifest
from walt_pl.text.small_encoder import SmallTextConfig, SmallTextEncoder, train_vocabulary
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.export import ExportArtifact

SQUARE = DenoiserConfig(width=16, depth=2, num_heads=2, latent_channels=4, size=(3, 4, 4), window_size=(3, 2, 2), text_width=16)
WIDE = DenoiserConfig(width=16, depth=2, num_heads=2, latent_channels=4, size=(3, 4, 7), window_size=(3, 2, 7), text_width=16)
TEXT = SmallTextConfig(width=16, depth=1, num_heads=2, vocab_size=64, max_length=12)
WORDS = ["a plain red circle moving left", "a dotted blue bar growing"]
VAE_CONFIG = VAEConfig(8, (1, 1, 1), ((2, 2, 2), (2, 2, 2)), (0, 1, 1), 0, 4, "layer")


class WideLatents(L.LightningDataModule):
    """Two videos and an image, 4 x 7 latent cells, with captions of other words than the square model's."""

    videos_per_batch, images_per_batch, index_sha256 = 2, 1, "0"

    def frame_rate(self) -> float | None:
        return None

    def counts(self) -> dict[str, int]:
        return {"train_videos": 2, "train_images": 1}

    def captions(self) -> Iterator[str]:
        yield from ("wide waves", "green hills", "a train", "a boat in the harbour")

    def train_dataloader(self) -> DataLoader[JointBatch]:
        generator = torch.Generator().manual_seed(0)
        batch = JointBatch(
            videos=torch.randn(2, 4, 3, 4, 7, generator=generator),
            images=torch.randn(1, 4, 1, 4, 7, generator=generator),
            captions=[*WORDS, WORDS[0]],
            labels=torch.full((3,), -1),
            weight=torch.ones(3),
            global_batch_index=torch.arange(3),
            low_res_videos=None,
            low_res_images=None,
            space="latents",
            paths=["x"] * 3,
        )
        return DataLoader([batch] * 2, batch_size=None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A base artifact of square clips, its weights not zero."""
    torch.manual_seed(0)
    text = SmallTextEncoder(TEXT)
    text.load_vocabulary(train_vocabulary(WORDS, 64))
    denoiser = Denoiser(SQUARE)
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("square") / "base"
    models: dict[str, nn.Module] = {"denoiser": denoiser, "text": text}
    save_artifact(
        folder, kind="base", models=models, sampling_config={}, card={}, train_config="", files={"tokenizer.model": text.vocabulary}
    )  # type: ignore[arg-type]
    return load(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, square: Artifact) -> Path:
    """A run of wide clips: an autoencoder, and a base that took two steps from the square one's weights."""
    run = tmp_path_factory.mktemp("runs") / "wide"
    manifest = Manifest.open(run)
    torch.manual_seed(0)
    manifest.start("vae", {})
    latents = {"mean": [0.0] * 4, "std": [1.0] * 4}
    save_artifact(run / "vae", kind="vae", models={"vae": VAE(VAE_CONFIG)}, sampling_config={}, card={"latents": latents}, train_config="")
    manifest.finish("vae", run / "vae")
    stage = BaseStage(WIDE, partial(torch.optim.SGD, lr=1e-4), text=TEXT, vae=str(run / "vae"), warmup_steps=1, lr_schedule="constant")  # type: ignore[arg-type]
    init_from(stage.components(), square)
    trainer = L.Trainer(
        max_steps=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run / "training" / "base",
        callbacks=[EMA(0.5), ExportArtifact(run, "base", manifest.check_parents("base"), "")],
    )
    trainer.fit(stage, WideLatents())
    return run


def test_init_from_trains_a_wide_model_from_a_square_one(run: Path, square: Artifact) -> None:
    wide = load(run / "base", verify=True)
    assert wide.card["steps"] == 2
    assert wide.models["denoiser"].config == WIDE
    started = inflate_weights(Denoiser(WIDE), square.models["denoiser"])
    trained = wide.models["denoiser"].state_dict()
    assert not all(torch.equal(trained[key], started[key]) for key in started), "nothing was learnt"
    for key in started:
        torch.testing.assert_close(trained[key], started[key], atol=1e-2, rtol=1e-2)


def test_init_from_keeps_the_vocabulary_of_the_text_encoder(run: Path, square: Artifact) -> None:
    vocabulary = square.read("tokenizer.model")
    assert load(run / "base").read("tokenizer.model") == vocabulary
    # It is there, too, when the training is interrupted and goes on without --init.
    assert (run / "training" / "base" / "tokenizer.model").read_bytes() == vocabulary


def test_init_from_takes_the_vae_and_leaves_the_discriminator_untrained(run: Path) -> None:
    discriminator = DiscriminatorConfig(width=4, channel_multipliers=(2,), size=(8, 8))
    stage = VAEStage(VAE_CONFIG, partial(torch.optim.SGD, lr=1e-4), discriminator)  # type: ignore[arg-type]
    assert stage.discriminator is not None
    fresh = {name: weight.clone() for name, weight in stage.discriminator.state_dict().items()}
    artifact = load(run / "vae")
    init_from(stage.components(), artifact)
    assert all(torch.equal(weight, fresh[name]) for name, weight in stage.discriminator.state_dict().items())
    trained = artifact.models["vae"].state_dict()
    assert all(torch.equal(weight, trained[name]) for name, weight in stage.vae.state_dict().items())


def test_sample_command_of_a_wide_model_makes_wide_clips(run: Path, tmp_path: Path) -> None:
    sample(str(run), prompt=WORDS[0], steps=2, guidance=2.0, out=str(tmp_path / "clip.mp4"), dtype="float32", device="cpu")
    assert read_video(tmp_path / "clip.mp4", 9).shape == (9, 16, 28, 3)
    assert (tmp_path / "clip.png").exists()


def test_init_from_error_is_one_sentence_that_names_artifact_and_section(square: Artifact, run: Path) -> None:
    with pytest.raises(ValueError) as error:
        init_from({"denoiser": Denoiser(DenoiserConfig(width=32, depth=2, num_heads=2, size=(3, 4, 7), window_size=(3, 2, 7)))}, square)
    assert str(error.value).startswith(f'--init {square.path}: section "denoiser" is of another size: width is 16 there and 32 here')
    with pytest.raises(ValueError, match=r'no section "denoiser" in it \(found: vae\)'):
        init_from({"denoiser": Denoiser(WIDE)}, load(run / "vae"))
