"""What a finished stage leaves behind: one folder with weights, the configuration to rebuild the model, and its origin.

    model.safetensors   weights, float32, keys "<section>.<state_dict key>"
    model.yaml          a section of plain fields for each model, and other plain sections (diffusion)
    train.yaml          the resolved configuration of the training program
    card.json           format, kind, hashes of every file, parents, data, latent statistics, code, versions, metrics
    tokenizer.model     vocabulary of a text encoder that was trained with the model

A folder that has a card is whole: the card is written last. Nothing here needs Lightning or DeepSpeed. An artifact may come from a
stranger: links in it are refused, and nothing that its files name is imported or opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from walt_pl.files import file_sha256, plain_files

FORMAT = 2
"""Version of the folder. 1 had other names of weights and settings, see CHANGELOG.md."""
WEIGHTS, CONFIG, TRAIN, CARD = "model.safetensors", "model.yaml", "train.yaml", "card.json"
EXTRA = ("tokenizer.model",)
"""Further files that an artifact may have."""

# Section of model.yaml -> module, model class, config class. Names, not classes: imported when a folder asks for them.
COMPONENTS: dict[str, tuple[str, str, str]] = {
    "vae": ("walt_pl.models.vae", "VAE", "VAEConfig"),
    "denoiser": ("walt_pl.models.denoiser", "Denoiser", "DenoiserConfig"),
    "text": ("walt_pl.text.small_encoder", "SmallTextEncoder", "SmallTextConfig"),
}


class ArtifactError(ValueError):
    """A folder that cannot be read or replaced as an artifact; the message says what to do."""


@dataclass
class Artifact:
    """A loaded artifact: models in eval mode without gradients, and everything that is known about them."""

    path: Path
    """The folder."""
    card: dict[str, Any]
    """card.json: provenance, hashes, latent statistics, metrics."""
    config: dict[str, Any]
    """model.yaml: a section for each model, and other plain sections."""
    models: dict[str, nn.Module]
    """Section name -> model."""

    @property
    def kind(self) -> str:
        """What was trained: "vae", "base", "super_resolution"."""
        return str(self.card["kind"])

    @property
    def sha256(self) -> str:
        """Hash of the weights: the name by which children know this artifact."""
        return str(self.card["sha256"])

    def read(self, name: str) -> bytes:
        """Bytes of an extra file such as "tokenizer.model". Raises ArtifactError where there is no such file."""
        if name not in self.card["files"]:
            raise ArtifactError(f'{self.path} has no file "{name}" (found: {", ".join(self.card["files"])})')
        return (self.path / name).read_bytes()


def load(path: str | Path, device: str | torch.device = "cpu", verify: bool = False) -> Artifact:
    """Rebuild the models of an artifact folder; leaves torch's random state as it was.

    Small files are always compared with the hashes in the card. The weights are compared by size, and by hash with
    `verify=True`, which reads them once more. Raises ArtifactError with one sentence for anything that does not fit.
    """
    folder = Path(path)
    card = read_card(folder)
    for name, record in card["files"].items():
        problem = file_problem(folder / name, record["sha256"], record["bytes"], hashed=verify or name != WEIGHTS)
        if problem:
            raise ArtifactError(f"{problem}: restore the file or export the stage again")
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    # The initial values are thrown away; drawing them must not move a sampler's seed.
    with torch.random.fork_rng(devices=[]):
        models = {name: _build(folder, name, config[name]) for name in config if name in COMPONENTS}
    _fill(folder, models)
    for model in models.values():
        model.to(device).eval().requires_grad_(False)
    return Artifact(folder, card, config, models)


def read_card(path: str | Path) -> dict[str, Any]:
    """The checked card.json of an artifact folder, after mending what a crash of `save_artifact` left there.

    Raises ArtifactError: not a folder, a link in it, no card, another format version, a card that was changed after it was written or
    lists files of another folder.
    """
    folder = Path(path)
    restore(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; wanted what a finished stage leaves, such as runs/shapes/vae")
    plain_files(folder, ArtifactError)
    if not (folder / CARD).exists():
        found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise ArtifactError(f"{folder} has no {CARD}, so it is not an artifact (found: {found})")
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
        card = json.loads(text)
        version = card["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / CARD} is not a card of an artifact ({error!r})") from error
    if version != FORMAT:
        raise ArtifactError(
            f"{folder / CARD}: format version {version} is unknown here (this program reads {FORMAT}); use the version of walt_pl that "
            "wrote it, or train the stage again (format 1 has other names of weights and settings: CHANGELOG.md)"
        )
    checksum = card.pop("checksum", None)
    if text != card_text(card):
        raise ArtifactError(
            f"{folder / CARD} was changed after it was written (its checksum says {checksum}, its content "
            f"{_checksum(card)}): restore the file or export the stage again"
        )
    outside = [name for name in card["files"] if name in ("", "..") or Path(name).name != name]
    if outside:
        raise ArtifactError(
            f"{folder / CARD} lists {_some(outside)}, wanted names of files beside it: take an artifact that this program wrote"
        )
    return dict(card)


def restore(folder: str | Path) -> None:
    """Put in place what a crash between the two renames of `save_artifact` left beside `folder`; mostly: do nothing.

    The new one goes first: with a card it is whole. A `save_artifact` that is at work finds its own folder in place.
    """
    folder = Path(folder).resolve()
    if folder.exists():
        return
    for left in (new_folder(folder), old_folder(folder)):
        if (left / CARD).exists():
            try:
                os.replace(left, folder)
            except OSError:
                if not folder.exists():  # otherwise another process was quicker
                    raise
            return


def new_folder(folder: Path) -> Path:
    """Return where `save_artifact` writes an artifact before it takes its place."""
    return folder.with_name(f".{folder.name}.new")


def old_folder(folder: Path) -> Path:
    """Return where the artifact that is being replaced lies for a moment."""
    return folder.with_name(f".{folder.name}.old")


def card_text(card: Mapping[str, Any]) -> str:
    """Return a card as text. There is one way to write it, so that any changed byte shows."""
    return json.dumps({**card, "checksum": _checksum(card)}, indent=2) + "\n"


def _checksum(card: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card).encode()).hexdigest()


def verify_artifact(path: str | Path) -> list[str]:
    """Read every byte of an artifact; one sentence a problem, naming file, hash found and hash expected."""
    folder = Path(path)
    try:
        files = read_card(folder)["files"]
    except ArtifactError as error:
        return [str(error)]
    problems = (file_problem(folder / name, r["sha256"], r["bytes"], fresh=True) for name, r in files.items())
    return [problem for problem in problems if problem]


def file_problem(path: Path, sha256: str, size: int, *, hashed: bool = True, fresh: bool = False) -> str | None:
    """How a file differs from what was recorded of it (None: not at all); only by size unless `hashed`."""
    if not path.is_file():
        return f"{path} is missing (wanted {size} bytes, sha256 {sha256})"
    found = path.stat().st_size
    if found != size:
        return f"the bytes of {path} do not match: found {found} bytes, wanted {size} (sha256 {sha256})"
    if hashed and (actual := file_sha256(path, fresh=fresh)) != sha256:
        return f"the bytes of {path} do not match: found sha256 {actual}, wanted {sha256}"
    return None


def _section_classes(section: str) -> tuple[Any, Any]:
    module, model, config = COMPONENTS[section]
    imported = importlib.import_module(module)
    return getattr(imported, model), getattr(imported, config)


def component_config(section: str, fields: Mapping[str, Any]) -> Any:
    """The config dataclass of a section from its plain fields. Raises TypeError or ValueError where it does not take them."""
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
    """YAML has lists where the frozen configs have tuples."""
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
        told = "; ".join(f"{what}: {_some(names)}" for what, names in differences.items() if names)
        raise ArtifactError(f"{folder}: {WEIGHTS} does not fit {CONFIG} ({told}); export the stage again")
    for name, model in models.items():
        model.load_state_dict({key: weights[f"{name}.{key}"] for key in model.state_dict()})


def _some(names: Any, most: int = 3) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
