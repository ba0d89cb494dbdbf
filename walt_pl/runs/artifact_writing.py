"""Write an artifact completely or not at all. Only an older artifact of this program may be replaced.

The card is written last, so a folder that has a card is complete. `walt_pl.runs.artifact` describes the folder and reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from walt_pl.files import file_sha256, is_temporary_of, replace_folder, sync, write_whole
from walt_pl.lock import hold_lock, lock_beside
from walt_pl.runs.artifact import COMPONENTS
from walt_pl.runs.card import (
    CARD,
    CONFIG,
    EXTRA,
    FORMAT,
    MODEL_CARD,
    OWN,
    TRAIN,
    WEIGHTS,
    card_text,
    check_replaceable,
    new_folder,
    old_folder,
    restore,
)
from walt_pl.runs.card_entries import check_card
from walt_pl.runs.finite import NonFiniteError, non_finite_entry, non_finite_weights
from walt_pl.runs.model_card import write_model_card
from walt_pl.untrusted import UntrustedError, parse_yaml

# Entries of the card that the caller may set, with their defaults. Those of OWN_FACTS are facts of this program without a default.
GIVEN: dict[str, Any] = {
    "parents": {},
    "index": {},
    "latents": None,
    "steps": 0,
    "epochs": None,
    "samples": 0,
    "metrics": {},
    "training": {},
}
OWN_FACTS = ("code", "packages", "created", "converted_from")
"""Further entries that a caller sets who writes the weights of another artifact again."""

PACKAGES = ("torch", "numpy", "safetensors", "sentencepiece", "transformers", "lightning", "deepspeed", "decord", "av")

ModelOrState: TypeAlias = nn.Module | tuple[Mapping[str, Tensor], Any]


def save_artifact(
    folder: str | Path,
    *,
    kind: str,
    models: Mapping[str, ModelOrState],
    sampling_config: Mapping[str, Any],
    card: Mapping[str, Any],
    train_config: str,
    files: Mapping[str, bytes] | None = None,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Write an artifact completely or not at all. An older one in its place stays until the new one is on disk.

    Args:
        folder: folder of the artifact. It may only hold an older artifact, which is replaced, see `check_replaceable`.
        kind: kind of the stage: "vae", "base" or "super_resolution".
        models: section name (see COMPONENTS) -> a module with a `.config`, or a pair (state dict, config dataclass).
        sampling_config: other plain sections of model.yaml, such as {"diffusion": {...}}.
        card: entries of the card (see GIVEN): parents {stage: sha256}, index {sha256 and counts}, latents {mean, std per channel} of an
            autoencoder, steps, samples seen, metrics with their protocol, facts of the training.
        train_config: text of train.yaml.
        files: extra files, name (one of EXTRA) -> bytes.
        dtype: of floating weights on disk: float32 or bfloat16.

    Returns:
        The sha256 of the weights.

    Raises:
        ValueError: a section, a card key or a file name is not allowed.
        NonFiniteError: weights or numbers of the card are nan or infinite.
        ArtifactError: the folder holds something other than an artifact.
        OSError: the disk is full (the message says what is needed and what is free), or cannot be written.
    """
    folder = Path(folder).resolve()
    components, weights = _to_plain(models, dtype)
    small = {CONFIG: _config_text(components, sampling_config), TRAIN: train_config.encode(), **_check_extra(files or {})}
    found = non_finite_weights(weights) or non_finite_entry(card)
    if found:
        raise NonFiniteError(f"{folder} is not written: {found}")
    described = _complete_card(kind, card)
    _check_readable(folder, described, small)
    needed = sum(tensor.nbytes for tensor in weights.values()) + sum(map(len, small.values()))

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(lock_beside(folder), work=f"artifact {folder}"):
            restore(folder)
            check_replaceable(folder)
            return _replace(folder, weights, small, described)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full_error(error.errno, folder, needed) from error
        raise


def _replace(folder: Path, weights: dict[str, Tensor], small: Mapping[str, bytes], described: dict[str, Any]) -> str:
    """Write the new artifact beside the older one, and put it into its place."""
    new = new_folder(folder)
    _remove(new)
    _remove(old_folder(folder))
    try:
        new.mkdir()
        digest = _write(new, weights, small, described)
        write_model_card(new, folder / MODEL_CARD)
        replace_folder(new, folder, old_folder(folder))
        _remove(old_folder(folder))
    except BaseException:
        _remove(new)
        raise
    return digest


def component_states(state: Mapping[str, Tensor], components: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Split the state dict of a stage by section; the stage names its models as the sections are named."""
    return {
        section: {key.removeprefix(f"{section}."): value for key, value in state.items() if key.startswith(f"{section}.")}
        for section in components
    }


def _to_plain(models: Mapping[str, ModelOrState], dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the plain fields of each section's config, and all weights under their section's name."""
    components: dict[str, Any] = {}
    weights: dict[str, Tensor] = {}
    storages: set[int] = set()
    for section, model in models.items():
        if section not in COMPONENTS:
            raise ValueError(f'models: unknown section "{section}" (sections: {", ".join(COMPONENTS)})')
        state, config = (model.state_dict(), model.config) if isinstance(model, nn.Module) else model
        components[section] = dataclasses.asdict(config)  # type: ignore[arg-type]  # Module types every attribute as Tensor | Module
        for key, value in state.items():
            value = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
            # safetensors refuses tensors that share memory (tied weights, views of a sharded optimiser's flat buffer).
            storage = value.untyped_storage().data_ptr()
            weights[f"{section}.{key}"] = value.clone() if storage in storages else value
            storages.add(storage)
    return components, weights


def _merge_sections(components: Mapping[str, Any], sampling_config: Mapping[str, Any]) -> dict[str, Any]:
    clash = sorted(set(sampling_config) & set(COMPONENTS))
    if clash:
        raise ValueError(f"sampling_config: {', '.join(clash)} are sections of models; give them in `models`")
    return {**components, **sampling_config}


def _config_text(components: Mapping[str, Any], sampling_config: Mapping[str, Any]) -> bytes:
    """Return the text of model.yaml, without the names of classes if `load` would refuse it for its size."""
    config = _merge_sections(components, sampling_config)
    text = yaml.safe_dump(config, sort_keys=False).encode()
    try:
        parse_yaml(text, CONFIG)
        return text
    except UntrustedError as error:
        if "classes" not in config:
            raise
        warnings.warn(f"the names of {len(config['classes']):,} classes are left out: {error}", stacklevel=3)
    return yaml.safe_dump({name: section for name, section in config.items() if name != "classes"}, sort_keys=False).encode()


def _check_readable(folder: Path, card: Mapping[str, Any], small: Mapping[str, bytes]) -> None:
    """Check before anything is written that `load` will read the card.

    Raises:
        ValueError: an entry has another type or range.
    """
    unknown = {"sha256": "0" * 64, "bytes": 0}
    files = {WEIGHTS: unknown, **{name: {**unknown, "bytes": len(data)} for name, data in small.items()}}
    check_card({**card, "sha256": unknown["sha256"], "files": files}, str(folder / CARD))


def _check_extra(files: Mapping[str, bytes]) -> dict[str, bytes]:
    for name in files:
        if name not in EXTRA:
            raise ValueError(f'files: "{name}" is not one of the further files that an artifact may have ({", ".join(EXTRA)})')
    return dict(files)


def _complete_card(kind: str, card: Mapping[str, Any]) -> dict[str, Any]:
    known = (*GIVEN, *OWN_FACTS)
    unknown = sorted(set(card) - set(known))
    if unknown:
        raise ValueError(f"card: unknown keys {', '.join(unknown)} (known: {', '.join(known)})")
    described = {
        "format": FORMAT,
        "kind": kind,
        **GIVEN,
        "code": code_revision(),
        "packages": _versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **card,
    }
    # The JSON round trip raises for values that are not plain, before anything is written.
    return dict(json.loads(json.dumps(described)))


@functools.lru_cache(maxsize=1)
def code_revision() -> str | None:
    """Return the commit of this checkout, with "-dirty" if files were changed; None outside of git."""
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
    """Write every file of the artifact to disk, the card last, and return the hash of the weights."""
    for name, data in small.items():
        write_whole(new / name, data)
    _save_weights(new / WEIGHTS, weights)
    shutil.copymode(new / CONFIG, new / WEIGHTS)  # safetensors makes the file readable by its owner only
    paths = [new / name for name in (WEIGHTS, *small)]
    files = {path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in paths}
    digest = str(files[WEIGHTS]["sha256"])
    write_whole(new / CARD, card_text({**card, "sha256": digest, "files": files}).encode())
    return digest


def _save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    try:
        save_file(weights, path)
    except SafetensorError as error:
        # safetensors wraps the system's error. Callers recognise a full disk by its error number.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error), str(path)) from error
    sync(path)


def _remove(folder: Path) -> None:
    """Remove the files of an artifact, and the folder unless something else lies in it."""
    names = (*OWN, MODEL_CARD)
    with contextlib.suppress(OSError):
        (folder / CARD).unlink(missing_ok=True)  # first: a part never counts as an artifact
        for path in list(folder.iterdir()):
            if path.name in names or any(is_temporary_of(path.name, name) for name in names):
                path.unlink(missing_ok=True)
        folder.rmdir()


def _disk_full_error(number: int, folder: Path, needed: int) -> OSError:
    free = shutil.disk_usage(next(p for p in folder.parents if p.exists())).free
    return OSError(
        number,
        f"the disk is full: artifact {folder} needs {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free; "
        "nothing was changed: make room and give the same command again",
    )
