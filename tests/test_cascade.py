"""From prompts to latents, with small random models."""

from pathlib import Path

import pytest
import torch
from torch import nn

from walt_pl.artifact import save_artifact
from walt_pl.cascade import Cascade, Request, Sampling
from walt_pl.diffusion.sampler import Guidance
from walt_pl.manifest import Manifest
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.text import SmallTextConfig, SmallTextEncoder, train_vocabulary
from walt_pl.models.vae import VAE, VAEConfig

CAPTIONS = ["a plain red circle moving left", "a dotted blue square growing"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An autoencoder, a base model from text and a super-resolution stage, with weights that are not zero."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("run")
    vae = VAE(VAEConfig(width=8, multipliers=(1, 1, 1), strides=((2, 2, 2), (2, 2, 2)), blocks=(0, 1, 1), middle_blocks=0, norm="layer"))
    text = SmallTextEncoder(SmallTextConfig(width=16, layers=1, heads=2, vocabulary=64, length=12))
    text.load_vocabulary(train_vocabulary(CAPTIONS, 64))
    small = {"width": 16, "layers": 2, "heads": 2, "text_width": 16, "window": (3, 2, 2)}
    base = Denoiser(DenoiserConfig(size=(3, 4, 4), **small))  # type: ignore[arg-type]
    larger = Denoiser(DenoiserConfig(size=(3, 8, 8), patch=2, super_resolution=True, **small))  # type: ignore[arg-type]
    for model in (base, larger):
        for p in model.parameters():
            nn.init.normal_(p, std=0.2)
    latents = {"mean": [0.5] * 8, "std": [2.0] * 8}
    diffusion = {"diffusion": {"zero_terminal_snr": True, "normalise_latents": True}}
    sr = {**diffusion, "super_resolution": {"low_noise": 20}}
    save_artifact(root / "vae", kind="vae", models={"vae": vae}, settings={}, card={"latents": latents}, train_config="")
    words = {"tokenizer.model": text.vocabulary}
    save_artifact(
        root / "base", kind="base", models={"denoiser": base, "text": text}, settings=diffusion, card={}, train_config="", files=words
    )
    save_artifact(root / "sr1", kind="super_resolution", models={"denoiser": larger}, settings=sr, card={}, train_config="")
    return {stage: root / stage for stage in ("vae", "base", "sr1")}


def test_a_clip_does_not_depend_on_the_others_of_its_batch(folders: dict[str, Path]) -> None:
    cascade = Cascade(folders, dtype=torch.float32)
    sampling = Sampling(steps=3, eta=0.5, guidance={"base": Guidance(2.0)})
    both = cascade.sample(Request(prompts=CAPTIONS, seeds=[3, 4]), sampling)
    alone = cascade.sample(Request(prompts=CAPTIONS[1:], seeds=[4]), sampling)
    assert list(both) == ["base", "sr1"]
    for stage in both:
        torch.testing.assert_close(both[stage][1:], alone[stage], rtol=1e-4, atol=1e-4)


def test_the_prompt_and_the_seed_matter(folders: dict[str, Path]) -> None:
    cascade = Cascade(folders, dtype=torch.float32)
    first, other_prompt, other_seed = (
        cascade.refine("base", Request(prompts=[prompt], seeds=[seed]), Sampling(steps=2))
        for prompt, seed in ((CAPTIONS[0], 1), (CAPTIONS[1], 1), (CAPTIONS[0], 2))
    )
    assert not torch.allclose(first, other_prompt)
    assert not torch.allclose(first, other_seed)


def test_a_negative_prompt_takes_the_place_of_the_null(folders: dict[str, Path]) -> None:
    cascade = Cascade(folders, dtype=torch.float32)
    sampling = Sampling(steps=2, guidance={"base": Guidance(3.0)})
    request = Request(prompts=CAPTIONS[:1], seeds=[1])
    plain = cascade.refine("base", request, sampling)
    led_away = cascade.refine("base", Request(prompts=CAPTIONS[:1], negative_prompt=CAPTIONS[1], seeds=[1]), sampling)
    assert not torch.allclose(plain, led_away)
    # Away from what is asked for is nowhere: u + w (c - u) with u = c is c.
    itself = Request(prompts=CAPTIONS[:1], negative_prompt=CAPTIONS[0], seeds=[1])
    torch.testing.assert_close(cascade.refine("base", itself, sampling), cascade.refine("base", request, Sampling(steps=2)))


def test_super_resolution_without_a_low_latent_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="latents of the stage before"):
        Cascade(folders).refine("sr1", Request(prompts=CAPTIONS[:1], seeds=[1]), Sampling(steps=1))


def test_one_of_several_base_models_starts_the_chain(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"vae": "vae", "base_l": "base", "base_xl": "base", "sr1": "sr1"}
    monkeypatch.setattr(Manifest, "stages", lambda _: names)
    monkeypatch.setattr(Manifest, "usable", lambda _, stages, stale: {stage: folders[names[stage]] for stage in stages})
    with pytest.raises(ValueError, match="has the base models base_l, base_xl; choose one: --stages base_l"):
        Cascade.open(tmp_path)
    cascade = Cascade.open(tmp_path, ["base_xl", "sr1"])
    assert cascade.stages == ["base_xl", "sr1"] and cascade.text is not None
    for gap in (["sr1"], ["base_l", "base_xl"]):
        with pytest.raises(ValueError, match="without a gap"):
            Cascade.open(tmp_path, gap)
