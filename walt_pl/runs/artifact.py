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

import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from walt_pl.files import kind_of_entry, plain_files
from walt_pl.runs.finite import NonFiniteError, non_finite_entry, non_finite_weights

FORMAT = 1
WEIGHTS, CONFIG, TRAIN, CARD = "model.safetensors", "model.yaml", "train.yaml", "card.json"
EXTRA = ("tokenizer.model",)
"""Further files that an artifact may have."""
OWN = (CARD, WEIGHTS, CONFIG, TRAIN, *EXTRA)
"""All files that `save_artifact` writes and replaces; the card is the first to go, so that a part is never taken for a whole."""

# Section of model.yaml -> module, model class, config class. Names, not classes: imported when a folder asks for them.
SECTIONS: dict[str, tuple[str, str, str]] = {
    "vae": ("walt_pl.models.vae", "VAE", "VAEConfig"),
    "denoiser": ("walt_pl.models.denoiser", "Denoiser", "DenoiserConfig"),
    "text": ("walt_pl.text.small_encoder", "SmallTextEncoder", "SmallTextConfig"),
}

# What the caller knows about a training run, and what the card says where the caller says nothing.
GIVEN: dict[str, Any] = {"parents": {}, "index": {}, "latents": None, "steps": 0, "samples": 0, "metrics": {}}

PACKAGES = ("torch", "numpy", "safetensors", "sentencepiece", "transformers", "lightning", "deepspeed", "decord", "av")

ModelOrState: TypeAlias = nn.Module | tuple[Mapping[str, Tensor], Any]


class ArtifactError(ValueError):
    """A folder that cannot be read or replaced as an artifact; the message says what to do."""


# ---- Reading ---------------------------------------------------------------------------------------------------------


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
        models = {name: _build(folder, name, config[name]) for name in config if name in SECTIONS}
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
            f"{folder / CARD}: format version {version} is unknown here (this program reads {FORMAT}); "
            "use the version of walt_pl that wrote it"
        )
    checksum = card.pop("checksum", None)
    if text != _card_text(card):
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


_hashes: dict[tuple[str, int, int], str] = {}


def file_sha256(path: str | Path, *, fresh: bool = False) -> str:
    """Hash of a file in hexadecimal, remembered by path, size and time of change; `fresh` always reads it."""
    path = Path(path).resolve()
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if not fresh and key in _hashes:
        return _hashes[key]
    started = time.time_ns()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # Clocks of file systems tick up to every 2 s: a file changed just now may change again without a new time.
    if started - stat.st_mtime_ns > 2_000_000_000:
        _hashes[key] = digest
    return digest


def _section_classes(section: str) -> tuple[Any, Any]:
    module, model, config = SECTIONS[section]
    imported = importlib.import_module(module)
    return getattr(imported, model), getattr(imported, config)


def section_config(section: str, fields: Mapping[str, Any]) -> Any:
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
        built: nn.Module = model(section_config(section, fields))
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


# ---- Writing ---------------------------------------------------------------------------------------------------------


def save_artifact(
    folder: str | Path,
    *,
    kind: str,
    models: Mapping[str, ModelOrState],
    settings: Mapping[str, Any],
    card: Mapping[str, Any],
    train_config: str,
    files: Mapping[str, bytes] | None = None,
) -> str:
    """Write an artifact whole or not at all; an older one at the same place stays until the new one is on disk.

    Args:
        folder: where; it may only hold an older artifact, which is replaced, see `check_replaceable`.
        kind: what was trained: "vae", "base", "super_resolution".
        models: section name (see SECTIONS) -> a module with a `.config`, or a pair (state dict, config dataclass).
        settings: other plain sections of model.yaml, such as {"diffusion": {...}}.
        card: what the caller knows (see GIVEN): parents {stage: sha256}, index {sha256 and counts}, latents {mean, std
            per channel} of an autoencoder, steps, samples seen, metrics with their protocol.
        train_config: text of train.yaml.
        files: extra files, name (one of EXTRA) -> bytes.

    Returns the sha256 of the weights. Raises ValueError for sections, card keys and names that are not allowed,
    NonFiniteError for weights or numbers of the card that are nan or infinite, ArtifactError where the folder holds
    something else, OSError with what was needed and what is free on a full disk.
    """
    folder = Path(folder).resolve()
    restore(folder)
    check_replaceable(folder)
    sections, weights = _plain(models)
    config = yaml.safe_dump(_merged(sections, settings), sort_keys=False)
    small = {CONFIG: config.encode(), TRAIN: train_config.encode(), **_extra(files or {})}
    found = non_finite_weights(weights) or non_finite_entry(card)
    if found:
        raise NonFiniteError(f"{folder} is not written: {found}")
    described = _described(kind, card)
    needed = sum(tensor.nbytes for tensor in weights.values()) + sum(map(len, small.values()))

    new = _new(folder)
    _remove(new)
    _remove(_old(folder))
    try:
        new.mkdir(parents=True)
        digest = _write(new, weights, small, described)
        _swap(new, folder)
    except BaseException as error:
        _remove(new)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(error.errno, folder, needed) from error
        raise
    return digest


def section_states(state: Mapping[str, Tensor], sections: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """State dict of each section's model from that of a stage, which names its models as sections are named."""
    return {
        section: {key.removeprefix(f"{section}."): value for key, value in state.items() if key.startswith(f"{section}.")}
        for section in sections
    }


def check_replaceable(folder: str | Path) -> None:
    """Raise ArtifactError where `save_artifact` would remove or change anything but an artifact as this program wrote it.

    An empty folder may be replaced, and so may an artifact that lacks files. So may what a crash of `save_artifact` left beside the folder.
    Weights are compared by size, all other files by hash.
    """
    folder = Path(folder).resolve()
    for left in (_new(folder), _old(folder)):
        _check_own(left, (*OWN, _temporary(CARD)))
    _check_own(folder, OWN)
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        files = read_card(folder)["files"]
    except ArtifactError as error:
        raise ArtifactError(
            f"{folder} is no artifact that could be replaced ({error}); move the folder away, or name another one"
        ) from error
    for path in sorted(folder.iterdir()):
        record = {"sha256": "none", "bytes": 0, **files.get(path.name, {})}
        if path.name != CARD and (problem := file_problem(path, record["sha256"], record["bytes"], hashed=path.name != WEIGHTS)):
            raise ArtifactError(f"{folder} is not replaced, {path.name} is not the file that its card lists ({problem}): move it away")


def _check_own(folder: Path, names: Sequence[str]) -> None:
    """Raise ArtifactError where something lies in a folder that is no plain file with one of these names."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ArtifactError(f"{folder} is {kind_of_entry(folder)}; an artifact is a folder: move it away")
    for path in sorted(folder.iterdir()):
        found = kind_of_entry(path)
        if path.name not in names or found != "a file":
            raise ArtifactError(
                f"{folder} holds {path.name} ({found}), which is no file of an artifact, and the folder would be replaced: move "
                f"{path.name} away, or name another folder"
            )


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old bytes or the new ones, never a part."""
    temporary = path.with_name(_temporary(path.name))
    try:
        _write_synced(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _temporary(name: str) -> str:
    return f".{name}.tmp"


def restore(folder: str | Path) -> None:
    """Put in place what a crash between the two renames of `save_artifact` left beside `folder`; mostly: do nothing.

    The new one goes first: with a card it is whole. A `save_artifact` that is at work finds its own folder in place.
    """
    folder = Path(folder).resolve()
    if folder.exists():
        return
    for left in (_new(folder), _old(folder)):
        if (left / CARD).exists():
            try:
                os.replace(left, folder)
            except OSError:
                if not folder.exists():  # otherwise another process was quicker
                    raise
            return


def _new(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _plain(models: Mapping[str, ModelOrState]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Plain fields of each section's config, and all weights under their section's name."""
    sections: dict[str, Any] = {}
    weights: dict[str, Tensor] = {}
    storages: set[int] = set()
    for section, model in models.items():
        if section not in SECTIONS:
            raise ValueError(f'models: unknown section "{section}" (sections: {", ".join(SECTIONS)})')
        state, config = (model.state_dict(), model.config) if isinstance(model, nn.Module) else model
        sections[section] = dataclasses.asdict(config)  # type: ignore[arg-type]  # Module types every attribute as Tensor | Module
        for key, value in state.items():
            value = value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype).contiguous()
            # safetensors refuses tensors that share memory (tied weights, views of a sharded optimiser's flat buffer).
            storage = value.untyped_storage().data_ptr()
            weights[f"{section}.{key}"] = value.clone() if storage in storages else value
            storages.add(storage)
    return sections, weights


def _merged(sections: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    clash = sorted(set(settings) & set(SECTIONS))
    if clash:
        raise ValueError(f"settings: {', '.join(clash)} are sections of models; give them in `models`")
    return {**sections, **settings}


def _extra(files: Mapping[str, bytes]) -> dict[str, bytes]:
    for name in files:
        if name not in EXTRA:
            raise ValueError(f'files: "{name}" is not one of the further files that an artifact may have ({", ".join(EXTRA)})')
    return dict(files)


def _described(kind: str, card: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(card) - set(GIVEN))
    if unknown:
        raise ValueError(f"card: unknown keys {', '.join(unknown)} (known: {', '.join(GIVEN)})")
    described = {
        "format": FORMAT,
        "kind": kind,
        **GIVEN,
        **card,
        "code": _revision(),
        "packages": _versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    # Through JSON and back: what is not plain fails here, before anything is written.
    return dict(json.loads(json.dumps(described)))


@functools.lru_cache(maxsize=1)
def _revision() -> str | None:
    """Commit of the checkout this file lies in, with "-dirty" where it was changed; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _write(new: Path, weights: dict[str, Tensor], small: Mapping[str, bytes], card: dict[str, Any]) -> str:
    """Every file of the artifact to the disk, the card last; returns the hash of the weights."""
    for name, data in small.items():
        _write_synced(new / name, data)
    _save_weights(new / WEIGHTS, weights)
    shutil.copymode(new / CONFIG, new / WEIGHTS)  # safetensors lets nobody but the owner read it
    paths = [new / name for name in (WEIGHTS, *small)]
    files = {path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in paths}
    digest = str(files[WEIGHTS]["sha256"])
    write_whole(new / CARD, _card_text({**card, "sha256": digest, "files": files}).encode())
    return digest


def _save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    try:
        save_file(weights, path)
    except SafetensorError as error:
        # The library wraps what the system said; callers know a full disk by its number.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error), str(path)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _swap(new: Path, folder: Path) -> None:
    old = _old(folder)
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except BaseException as error:
        if isinstance(error, FileNotFoundError) and folder.exists() and not new.exists():
            pass  # a reader came between the two renames and put the new one in place itself (see restore)
        else:
            if old.exists() and not folder.exists():
                os.replace(old, folder)
            raise
    sync(folder.parent)
    _remove(old)


def _remove(folder: Path) -> None:
    """Remove the files of an artifact, and the folder unless something else lies in it."""
    with contextlib.suppress(OSError):
        for name in (*OWN, _temporary(CARD)):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file or a folder is on disk; a rename is once its folder is."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _full(number: int, folder: Path, needed: int) -> OSError:
    free = shutil.disk_usage(next(p for p in folder.parents if p.exists())).free
    return OSError(
        number,
        f"the disk is full: artifact {folder} needs {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free; "
        "nothing was changed: make room and give the same command again",
    )


def _card_text(card: Mapping[str, Any]) -> str:
    """The one way to write a card, so that any changed byte shows."""
    return json.dumps({**card, "checksum": _checksum(card)}, indent=2) + "\n"


def _checksum(card: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card).encode()).hexdigest()
