"""Read artifacts: the folder of a finished stage, with weights, the configuration to rebuild the model, and its origin.

    model.safetensors   weights, float32, keys "<section>.<state_dict key>"
    model.yaml          a section of plain fields for each model, and other plain sections (diffusion)
    train.yaml          the resolved configuration of the training program
    card.json           format, kind, hashes of every file, parents, data, latent statistics, code, versions, metrics
    tokenizer.model     vocabulary of a text encoder that was trained with the model

A folder that has a card is complete: the card is written last. This module needs neither Lightning nor DeepSpeed. An artifact may come from
a stranger. Links in it are refused, and nothing that its files name is imported or opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from walt_pl.files import file_sha256, plain_files, rename_whole

FORMAT = 2
"""Version of the folder. Version 1 had other names of weights and settings, see CHANGELOG.md."""
WEIGHTS, CONFIG, TRAIN, CARD = "model.safetensors", "model.yaml", "train.yaml", "card.json"
EXTRA = ("tokenizer.model",)
"""Further files that an artifact may have."""

# Section of model.yaml -> module, model class, config class. These are names, so that a class is imported only when a folder needs it.
COMPONENTS: dict[str, tuple[str, str, str]] = {
    "vae": ("walt_pl.models.vae", "VAE", "VAEConfig"),
    "denoiser": ("walt_pl.models.denoiser", "Denoiser", "DenoiserConfig"),
    "text": ("walt_pl.text.small_encoder", "SmallTextEncoder", "SmallTextConfig"),
}


class ArtifactError(ValueError):
    """A folder cannot be read or replaced as an artifact. The message says what to do."""


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


def load(path: str | Path, device: str | torch.device = "cpu", verify: bool = False) -> Artifact:
    """Rebuild the models of an artifact folder, without a change of torch's random state.

    Args:
        path: folder of the artifact.
        device: device that the models are moved to.
        verify: also compare the hash of the weights, which reads them once more. Otherwise only their size is compared. Small files are
            always compared by hash with the card.

    Raises:
        ArtifactError: the folder, its files or their content do not fit; the message is one sentence.
    """
    folder = Path(path)
    card = read_card(folder)
    for name, record in card["files"].items():
        problem = file_problem(folder / name, record["sha256"], record["bytes"], hashed=verify or name != WEIGHTS)
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


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the checked card.json of an artifact folder, after recovery from a crash of `save_artifact`.

    Raises:
        ArtifactError: the path is not a folder, has a link in it or no card; or the card has another format version, was changed after it
            was written, or lists files of another folder.
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
    """Recover the artifact `folder` after a crash between the two renames of `save_artifact`.

    Usually there is nothing to do. The new folder is tried first: with a card it is complete. A `save_artifact` that is still running finds
    its own folder in place.
    """
    folder = Path(folder).resolve()
    if folder.exists():
        return
    for left in (new_folder(folder), old_folder(folder)):
        if (left / CARD).exists():
            try:
                rename_whole(left, folder)
            except OSError:
                if not folder.exists():  # otherwise another process was quicker
                    raise
            return


def new_folder(folder: Path) -> Path:
    """Return the temporary folder to which `save_artifact` writes an artifact before the rename."""
    return folder.with_name(f".{folder.name}.new")


def old_folder(folder: Path) -> Path:
    """Return the temporary folder that holds the replaced artifact between the two renames."""
    return folder.with_name(f".{folder.name}.old")


def card_text(card: Mapping[str, Any]) -> str:
    """Return a card as text. Only this form is valid, so any changed byte is detected."""
    return json.dumps({**card, "checksum": _checksum(card)}, indent=2) + "\n"


def _checksum(card: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card).encode()).hexdigest()


def verify_artifact(path: str | Path) -> list[str]:
    """Read every byte of an artifact and compare sizes and hashes with its card.

    Returns:
        One sentence a problem, with the file, the hash found and the hash expected.
    """
    folder = Path(path)
    try:
        files = read_card(folder)["files"]
    except ArtifactError as error:
        return [str(error)]
    problems = (file_problem(folder / name, r["sha256"], r["bytes"], fresh=True) for name, r in files.items())
    return [problem for problem in problems if problem]


def file_problem(path: Path, sha256: str, size: int, *, hashed: bool = True, fresh: bool = False) -> str | None:
    """Compare a file with its recorded size and hash.

    Args:
        path: path of the file.
        sha256: recorded SHA-256, hexadecimal.
        size: recorded size in bytes.
        hashed: compare the hash too; otherwise the size only.
        fresh: read the file even if its hash is remembered.

    Returns:
        A sentence that describes the difference; None if there is none.
    """
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
        told = "; ".join(f"{what}: {_some(names)}" for what, names in differences.items() if names)
        raise ArtifactError(f"{folder}: {WEIGHTS} does not fit {CONFIG} ({told}); export the stage again")
    for name, model in models.items():
        model.load_state_dict({key: weights[f"{name}.{key}"] for key in model.state_dict()})


def _some(names: Any, most: int = 3) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
