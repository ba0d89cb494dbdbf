"""Read artifacts: the folder of a finished stage, with weights, the configuration to rebuild the model, and its origin.

    model.safetensors   weights, float32, keys "<section>.<state_dict key>"
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
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from walt_pl.runs.card import CONFIG, WEIGHTS, ArtifactError, file_problem, read_card, shorten

# Section of model.yaml -> module, model class, config class. These are names, so that a class is imported only when a folder needs it.
COMPONENTS: dict[str, tuple[str, str, str]] = {
    "vae": ("walt_pl.models.vae", "VAE", "VAEConfig"),
    "denoiser": ("walt_pl.models.denoiser", "Denoiser", "DenoiserConfig"),
    "text": ("walt_pl.text.small_encoder", "SmallTextEncoder", "SmallTextConfig"),
}


@dataclass
class Artifact:
    """A loaded artifact: models in eval mode without gradients, its card and its configuration."""

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

    def read(self, name: str) -> bytes:
        """Return the bytes of an extra file such as "tokenizer.model".

        Raises:
            ArtifactError: the artifact has no such file.
        """
        if name not in self.card["files"]:
            raise ArtifactError(f'{self.path} has no file "{name}" (found: {", ".join(self.card["files"])})')
        return (self.path / name).read_bytes()


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
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    # The initial values are discarded. Drawing them must not advance the random state of a sampler.
    with torch.random.fork_rng(devices=[]):
        models = {name: _build(folder, name, config[name]) for name in config if name in COMPONENTS}
    _fill(folder, models)
    for model in models.values():
        model.to(device).eval().requires_grad_(False)
    return Artifact(folder, card, config, models)


def _section_classes(section: str) -> tuple[Any, Any]:
    module, model, config = COMPONENTS[section]
    imported = importlib.import_module(module)
    return getattr(imported, model), getattr(imported, config)


def component_config(section: str, fields: Mapping[str, Any]) -> Any:
    """Return the config dataclass of a section, built from its plain fields.

    Raises:
        TypeError: the dataclass has no such field.
        ValueError: the dataclass refuses a value.
    """
    _, config = _section_classes(section)
    return config(**{name: _tuples(value) for name, value in fields.items()})


def _build(folder: Path, section: str, fields: Mapping[str, Any]) -> nn.Module:
    model, config = _section_classes(section)
    known = [field.name for field in dataclasses.fields(config)]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ArtifactError(
            f'{folder / CONFIG}: section "{section}" has fields that {config.__name__} does not know: '
            f"{', '.join(unknown)} (it has: {', '.join(known)}); use the version of walt_pl that wrote it"
        )
    try:
        built: nn.Module = model(component_config(section, fields))
    except (TypeError, ValueError) as error:
        raise ArtifactError(f'{folder / CONFIG}: section "{section}": {error}') from error
    return built


def _tuples(value: Any) -> Any:
    """Convert lists to tuples: YAML has lists where the frozen configs have tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _fill(folder: Path, models: Mapping[str, nn.Module]) -> None:
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ArtifactError(f"{folder / WEIGHTS} is not a whole safetensors file ({error})") from error
    wanted = {f"{name}.{key}": value for name, model in models.items() for key, value in model.state_dict().items()}
    reshaped = [
        f"{key} (found {list(weights[key].shape)}, wanted {list(wanted[key].shape)})"
        for key in wanted.keys() & weights.keys()
        if weights[key].shape != wanted[key].shape
    ]
    differences = {
        "missing": wanted.keys() - weights.keys(),
        "not wanted": weights.keys() - wanted.keys(),
        "of another shape": reshaped,
    }
    if any(differences.values()):
        told = "; ".join(f"{what}: {shorten(names)}" for what, names in differences.items() if names)
        raise ArtifactError(f"{folder}: {WEIGHTS} does not fit {CONFIG} ({told}); export the stage again")
    for name, model in models.items():
        model.load_state_dict({key: weights[f"{name}.{key}"] for key in model.state_dict()})
