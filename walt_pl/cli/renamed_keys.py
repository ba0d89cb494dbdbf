"""Refuse old keys of configurations; the error names the new key."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from walt_pl.cli.config_syntax import read_config

RENAMED = {
    "over": "extends",
    "fresh": "from_scratch",
    "model.warmup": "model.warmup_steps",
    "model.decay": "model.lr_schedule",
    "model.clip": "model.gradient_clip_val",
    "model.discriminator_clip": "model.discriminator_gradient_clip_val",
    "model.drop_condition": "model.condition_dropout",
    "model.self_conditioning": "model.denoiser.self_conditioning (a probability)",
    "model.frame_prediction": "model.denoiser.frame_prediction (a probability)",
    "model.past_frames": "model.diffusion.context_frames",
    "model.zero_terminal_snr": "model.diffusion.zero_terminal_snr",
    "model.normalise_latents": "model.diffusion.normalize_latents",
    "model.guidance": "model.diffusion.guidance",
    "model.low_noise_max": "model.diffusion.noise_aug_max",
    "model.low_noise_sampling": "model.diffusion.noise_aug_level",
    "model.denoiser.layers": "model.denoiser.depth",
    "model.denoiser.heads": "model.denoiser.num_heads",
    "model.denoiser.classes": "model.denoiser.num_classes",
    "model.denoiser.checkpointing": "model.denoiser.activation_checkpointing",
    "model.denoiser.stw_text": "model.denoiser.stw_cross_attention",
    "model.text.layers": "model.text.depth",
    "model.text.heads": "model.text.num_heads",
    "model.text.vocabulary": "model.text.vocab_size",
    "model.text.length": "model.text.max_length",
    "model.vae.multipliers": "model.vae.channel_multipliers",
    "model.vae.blocks": "model.vae.num_res_blocks",
    "model.vae.middle_blocks": "model.vae.num_middle_blocks",
    "model.discriminator.multipliers": "model.discriminator.channel_multipliers",
    "model.denoiser.patch": "model.denoiser.patch_size",
    "model.denoiser.window": "model.denoiser.window_size",
    "data.low_size": "data.low_res_size",
    "data.workers": "data.num_workers",
    "data.patience": "data.timeout",
    "checkpoint.folder": "checkpoint.dirpath",
    "checkpoint.every_steps": "checkpoint.every_n_train_steps",
    "checkpoint.every_minutes": "checkpoint.every_n_minutes",
    "checkpoint.best": "checkpoint.monitor",
    "checkpoint.best_is": "checkpoint.mode (min or max)",
    "guard": "spike_guard",
    "guard.policy": "spike_guard.policy",
    "guard.deviations": "spike_guard.deviations",
    "guard.window": "spike_guard.window",
    "guard.most": "spike_guard.max_incidents",
    "previews.every": "previews.every_n_validations",
    "throughput.every": "throughput.every_n_steps",
}
"""Old key -> new key, as they are typed after two dashes."""


def check_renamed(arguments: Sequence[str], configs: Sequence[Path]) -> None:
    """Refuse old keys on the command line and in configuration files.

    Args:
        arguments: words of the command line.
        configs: configuration files of the command line, and the files that these extend.

    Raises:
        ValueError: a key has another name now; the message names it.
    """
    typed = [
        (word[2:].partition("=")[0].replace(".init_args", ""), f"--{word[2:].partition('=')[0]}") for word in arguments if word[:2] == "--"
    ]
    found = [*typed, *((key, f"{config}: {key}") for config in configs for key in _keys(read_config(config)))]
    for key, where in found:
        if key in RENAMED:
            raise ValueError(f"{where} has another name now: {RENAMED[key]} (all renamed keys: CHANGELOG.md)")


def _keys(plain: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of nested values and of their groups, without `init_args`, as they are typed."""
    for name, value in plain.items():
        key = prefix if name == "init_args" else f"{prefix}.{name}" if prefix else str(name)
        if name != "init_args":
            yield key
        if isinstance(value, Mapping):
            yield from _keys(value, key)
