"""Read artifacts: the folder of a finished stage, with weights, the configuration to rebuild the model, and its origin.

    model.safetensors   weights, float32 or bfloat16, keys "<section>.<state_dict key>"
    model.yaml          a section of plain fields for each model, and other plain sections (diffusion)
    train.yaml          the resolved configuration of the training program
    card.json           format, kind, hashes of every file, parents, data, latent statistics, code, versions, metrics
    tokenizer.model     vocabulary of a text encoder that was trained with the model
    words.txt           words of its training captions, one a line

A folder that has a card is complete: the card is written last. This module needs neither Lightning nor DeepSpeed. An artifact may come from
a stranger. Links in it are refused, and nothing that its files name is imported or opened.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from walt_pl.plain_records import shown
from walt_pl.runs.card import CONFIG, WEIGHTS, ArtifactError, file_problem, read_card, shorten
from walt_pl.runs.model_limits import build_on_meta, check_buffers, read_config
from walt_pl.runs.weights_file import read_weights
from walt_pl.untrusted import UntrustedError, read_bytes, read_yaml

# Section of model.yaml -> module, model class, config class. These are names, so that a class is imported only when a folder needs it.
COMPONENTS: dict[str, tuple[str, str, str]] = {
    "vae": ("walt_pl.models.vae", "VAE", "VAEConfig"),
    "denoiser": ("walt_pl.models.denoiser", "Denoiser", "DenoiserConfig"),
    "text": ("walt_pl.text.small_encoder", "SmallTextEncoder", "SmallTextConfig"),
}

LOADED_AS: dict[tuple[str, str], dict[str, str]] = {("denoiser", "attention"): {"plain": "math", "triton": "auto"}}
"""Section and field -> stored value -> value that is loaded. `plain` is an older name. A machine without the kernel must load what a GPU
trained with `triton`. All other values are loaded as they are: a person who trained with `sdpa` or `math` samples with it, too."""


@dataclass
class Artifact:
    """A loaded artifact: models in float32 and eval mode without gradients, its card and its configuration."""

    path: Path
    """Folder of the artifact."""
    card: dict[str, Any]
    """Content of card.json: provenance, hashes, latent statistics, metrics."""
    config: dict[str, Any]
    """Content of model.yaml: a section for each model, and other plain sections."""
    models: dict[str, nn.Module]
    """Section name -> model."""

    @property
    def kind(self) -> str:
        """Kind of the stage: "vae", "base" or "super_resolution"."""
        return str(self.card["kind"])

    @property
    def sha256(self) -> str:
        """Hash of the weights. Child stages record it as their parent."""
        return str(self.card["sha256"])

    def section(self, name: str) -> dict[str, Any]:
        """Return a section of model.yaml.

        Raises:
            ArtifactError: the artifact has no such section.
        """
        if name not in self.config:
            raise ArtifactError(f'{self.path / CONFIG} has no section "{name}"; take an artifact that this program wrote')
        return dict(self.config[name])

    def model(self, name: str) -> nn.Module:
        """Return a model.

        Raises:
            ArtifactError: the artifact has no such model.
        """
        self.section(name)
        return self.models[name]

    def read(self, name: str) -> bytes:
        """Return the bytes of an extra file such as "tokenizer.model".

        Raises:
            ArtifactError: the artifact has no such file.
        """
        if name not in self.card["files"]:
            raise ArtifactError(f'{self.path} has no file "{name}" (found: {", ".join(self.card["files"])})')
        return read_bytes(self.path / name, int(self.card["files"][name]["bytes"]))


VERIFIED_BYTES = 1 << 30
"""Weights of at most this size are always compared by hash (0.6 s for each GB); larger ones only where it is asked for."""


def load(path: str | Path, device: str | torch.device = "cpu", verify: bool = False) -> Artifact:
    """Rebuild the models of an artifact folder, without a change of torch's random state.

    Args:
        path: folder of the artifact.
        device: device that the models are moved to.
        verify: compare the hash of the weights also if they have more than `VERIFIED_BYTES`. Otherwise only the size of such weights is
            compared. All other files are always compared by hash with the card.

    Raises:
        ArtifactError: the folder, its files or their content do not fit; the message is one sentence.
    """
    folder = Path(path)
    card = read_card(folder)
    for name, record in card["files"].items():
        hashed = verify or name != WEIGHTS or record["bytes"] <= VERIFIED_BYTES
        problem = file_problem(folder / name, record["sha256"], record["bytes"], hashed=hashed)
        if problem:
            raise ArtifactError(f"{problem}: restore the file or export the stage again")
    try:
        config = _read_sections(folder)
        weights = read_weights(folder / WEIGHTS, _shapes(folder, config))
    except UntrustedError as error:
        raise ArtifactError(str(error)) from error
    # The initial values are discarded. Drawing them must not advance the random state of a sampler.
    with torch.random.fork_rng(devices=[]):
        models = {name: _build(folder, name, config[name]) for name in config if name in COMPONENTS}
    for name, model in models.items():
        model.load_state_dict({key: weights[f"{name}.{key}"] for key in model.state_dict()})
    for model in models.values():
        model.to(device).eval().requires_grad_(False)
    return Artifact(folder, card, config, models)


def _section_classes(section: str) -> tuple[Any, Any]:
    module, model, config = COMPONENTS[section]
    imported = importlib.import_module(module)
    return getattr(imported, model), getattr(imported, config)


def component_config(section: str, fields: Mapping[str, Any]) -> Any:
    """Return the config dataclass of a section, built from its plain fields and `LOADED_AS`.

    Raises:
        ValueError: a field is unknown, has another type or lies beyond the limits, or the dataclass refuses it.
    """
    _, config = _section_classes(section)
    loaded = dict(fields)
    for (of, name), changed in LOADED_AS.items():
        if of == section and isinstance(loaded.get(name), str):
            loaded[name] = changed.get(loaded[name], loaded[name])
    return read_config(config, loaded, f'section "{section}"')


def _read_sections(folder: Path) -> dict[str, Any]:
    """Return the sections of model.yaml.

    Raises:
        UntrustedError: it is no YAML, or a section has no fields.
    """
    config = read_yaml(folder / CONFIG)
    sections = config.values() if isinstance(config, dict) else [config]
    if not all(isinstance(section, dict) for section in sections) or not all(isinstance(name, str) for name in config):
        raise UntrustedError(f"{folder / CONFIG} has no sections with fields; export the stage again")
    return dict(config)


def _shapes(folder: Path, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of the models by name, without memory for their values."""
    models = {}
    with torch.random.fork_rng(devices=[]):
        for name in config:
            if name in COMPONENTS:
                model, _ = _section_classes(name)
                models[name] = build_on_meta(model, _config(folder, name, config[name]), f'{folder / CONFIG}: section "{name}"')
    check_buffers(models, str(folder / CONFIG))
    return {f"{name}.{key}": value for name, model in models.items() for key, value in model.state_dict().items()}


def _config(folder: Path, section: str, fields: Mapping[str, Any]) -> Any:
    _, config = _section_classes(section)
    known = [field.name for field in dataclasses.fields(config)]
    unknown = sorted(set(fields) - set(known), key=str)
    if unknown:
        told = shorten(shown(name).strip("'") for name in unknown)
        raise ArtifactError(
            f'{folder / CONFIG}: section "{section}" has fields that {config.__name__} does not know: '
            f"{told} (it has: {', '.join(known)}); use the version of walt_pl that wrote it"
        )
    try:
        return component_config(section, fields)
    except ValueError as error:
        raise ArtifactError(f"{folder / CONFIG}: {error}") from error


def _build(folder: Path, section: str, fields: Mapping[str, Any]) -> nn.Module:
    model, _ = _section_classes(section)
    built: nn.Module = model(_config(folder, section, fields))
    return built
