"""Networks and stages of the shipped experiments, without the command line."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from walt_pl.blocks.frames import FrameLayout
from walt_pl.diffusion.condition import Condition
from walt_pl.models.compiled_blocks import compile_blocks
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.vae import VAEConfig
from walt_pl.untrusted import read_yaml

EXPERIMENTS = Path("experiments")
QUICK_DENOISER: dict[str, Any] = {
    "width": 64,
    "depth": 2,
    "num_heads": 1,
    "size": (3, 4, 4),
    "window_size": (3, 2, 2),
    "activation_checkpointing": False,
}
QUICK_VAE: dict[str, Any] = {
    "width": 8,
    "channel_multipliers": (1, 1),
    "strides": ((2, 2, 2),),
    "num_res_blocks": (0, 1),
    "num_middle_blocks": 0,
    "norm": "layer",
}


def read_experiment(path: Path) -> dict[str, Any]:
    """Return a configuration laid over those that it extends."""
    own = read_yaml(path)
    merged: dict[str, Any] = {}
    for under in own.pop("extends", []):
        merged = _lay_over(merged, read_experiment(path.parent / under))
    return _lay_over(merged, own)


def _lay_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _lay_over(under[key], over[key]) for key in over if isinstance(over[key], dict) and isinstance(under.get(key), dict)}
    return {**under, **over, **both}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _network(name: str, key: str) -> dict[str, Any]:
    fields = read_experiment(EXPERIMENTS / f"{name}.yaml")["model"]["init_args"][key]
    return {field: _tuples(value) for field, value in fields.items()}


def denoiser_config(name: str, quick: bool) -> DenoiserConfig:
    """Return the denoiser of an experiment such as ucf101/base_l."""
    return DenoiserConfig(**{**_network(name, "denoiser"), **(QUICK_DENOISER if quick else {})})


def vae_config(name: str, quick: bool) -> VAEConfig:
    """Return the autoencoder of an experiment such as ucf101/vae."""
    return VAEConfig(**{**_network(name, "vae"), **(QUICK_VAE if quick else {})})


def compile_denoiser(denoiser: Denoiser, quick: bool) -> None:
    """Compile a denoiser layer by layer, as training does; in quick runs without generating code."""
    torch.compiler.reset()  # code of a row before would count towards the limit of recompilations
    compile_blocks(denoiser.blocks, "eager" if quick else "inductor")


def fill_zeros(model: nn.Module) -> None:
    """Give weights that start at zero small values, so that every layer has a say in the output."""
    for weight in model.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)


def make_inputs(config: DenoiserConfig, videos: int, device: torch.device | str) -> tuple[Tensor, Tensor, Condition]:
    """Return noisy latents, timesteps and labels of so many videos."""
    layout = FrameLayout(videos, config.size[0], 0)
    labels = torch.arange(videos, device=device) % (config.num_classes or 1)
    condition = Condition(layout, torch.ones_like(labels, dtype=torch.bool), labels=labels)
    x = torch.randn(layout.total_frames, config.latent_channels, *config.size[1:], device=device)
    return x, 10 + labels, condition


def pass_over(denoiser: Denoiser, x: Tensor, timestep: Tensor, condition: Condition, backward: bool = True) -> None:
    """Run a denoiser forward, with an estimate, and backward."""
    loss = denoiser(x, timestep, condition, x).square().mean()
    if backward:
        loss.backward()


def plain_twin(config: DenoiserConfig) -> DenoiserConfig:
    """Return a configuration whose operations count as in the paper: nothing recomputed, attention as matrix products."""
    return replace(config, attention="math", activation_checkpointing=False)
