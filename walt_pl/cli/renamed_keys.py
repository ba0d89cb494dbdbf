"""Refuse old keys of configurations and old values of keys; the error names the new one."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
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
RENAMED_VALUES = {("model.denoiser.attention", "plain"): "math"}
"""Key and old value -> new value."""


def check_renamed(arguments: Sequence[str], configs: Sequence[Path]) -> None:
    """Refuse old keys, and old values of keys, on the command line and in configuration files.

    Args:
        arguments: words of the command line.
        configs: configuration files of the command line, and the files that these extend.

    Raises:
        ValueError: a key or a value has another name now; the message names it.
    """
    found = [*_typed(arguments), *((*pair, f"{config}: {pair[0]}") for config in configs for pair in _pairs(read_config(config)))]
    for key, value, where in found:
        old, new = where, RENAMED.get(key)
        if new is None and isinstance(value, str) and (key, value) in RENAMED_VALUES:
            old, new = f"{where} {value}", f"{where.rpartition(' ')[2]} {RENAMED_VALUES[key, value]}"
        if new is not None:
            raise ValueError(f"{old} has another name now: {new} (all renamed keys: CHANGELOG.md)")


def _typed(arguments: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and the word itself of each option that is typed as `--key=value` or `--key value`."""
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if word[:2] == "--":
            option, equals, value = word.partition("=")
            yield option[2:].replace(".init_args", ""), value if equals else following, option


def _pairs(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of nested values and of their groups, without `init_args`, as they are typed, and their values."""
    for name, value in plain.items():
        key = prefix if name == "init_args" else f"{prefix}.{name}" if prefix else str(name)
        if name != "init_args":
            yield key, value
        if isinstance(value, Mapping):
            yield from _pairs(value, key)
