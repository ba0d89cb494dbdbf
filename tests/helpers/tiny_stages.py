"""Artifacts of small stages with random weights, to sample from."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.vae import VAE, VAEConfig
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.text.small_encoder import SmallTextConfig, SmallTextEncoder, train_vocabulary

CAPTIONS = ["a plain red circle moving left", "a dotted blue bar growing"]
MEAN, STD, LOW_NOISE = 0.5, 2.0, 20


def write_stages(
    root: Path, upscalers: int = 1, classes: int | None = None, frames: int = 3, frame_prediction: float = 0.0, **diffusion: Any
) -> dict[str, Path]:
    """Write an autoencoder, a base model of 16 px and super-resolution stages, with weights that are not zero.

    Args:
        root: folder for the artifacts.
        upscalers: number of super-resolution stages.
        classes: of a base model without text; one from text when None.
        frames: latent frames of a clip.
        frame_prediction: probability of context frames in the training of the base model.
        diffusion: settings in place of the default `DiffusionConfig`.

    Returns:
        stage name -> artifact folder.
    """
    torch.manual_seed(0)
    vae = VAE(
        VAEConfig(
            width=8,
            channel_multipliers=(1, 1, 1),
            strides=((2, 2, 2), (2, 2, 2)),
            num_res_blocks=(0, 1, 1),
            num_middle_blocks=0,
            norm="layer",
        )
    )
    text = SmallTextEncoder(SmallTextConfig(width=16, depth=1, num_heads=2, vocab_size=64, max_length=12))
    text.load_vocabulary(train_vocabulary(CAPTIONS, 64))
    small: dict[str, Any] = {"width": 16, "depth": 2, "num_heads": 2, "window_size": (frames, 2, 2), "text_width": 16}
    condition = {"text_width": None, "num_classes": classes} if classes else {}
    base = Denoiser(DenoiserConfig(size=(frames, 4, 4), frame_prediction=frame_prediction, **(small | condition)))
    sides = [8 * 2**number for number in range(upscalers)]
    larger = [Denoiser(DenoiserConfig(size=(frames, side, side), patch_size=side // 4, super_resolution=True, **small)) for side in sides]
    for model in (base, *larger):
        for p in model.parameters():
            nn.init.normal_(p, std=0.2)
    latents = {"mean": [MEAN] * 8, "std": [STD] * 8}
    settings = {"diffusion": DiffusionConfig(noise_aug_level=LOW_NOISE, **diffusion).to_plain()}
    save_artifact(root / "vae", kind="vae", models={"vae": vae}, sampling_config={}, card={"latents": latents}, train_config="")
    words = {"tokenizer.model": text.vocabulary}
    models: dict[str, Any] = {"denoiser": base} if classes else {"denoiser": base, "text": text}
    files = {} if classes else words
    save_artifact(root / "base", kind="base", models=models, sampling_config=settings, card={}, train_config="", files=files)
    names = [f"sr{number + 1}" for number in range(upscalers)]
    for name, denoiser in zip(names, larger, strict=True):
        models = {"denoiser": denoiser}
        save_artifact(root / name, kind="super_resolution", models=models, sampling_config=settings, card={}, train_config="")
    return {stage: root / stage for stage in ("vae", "base", *names)}
