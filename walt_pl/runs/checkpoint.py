"""Checkpoints: folders from which training resumes. An incomplete folder does not count, and reading one runs no code from it.

    checkpoints/step=00000100/
        state.ckpt          everything Lightning restores: a file, or a folder of shards that DeepSpeed wrote
        ema.safetensors     averaged weights by parameter name, if there are any
        checkpoint.json     written last: the files of the checkpoint with their sizes in bytes

A checkpoint is written as `step=00000100.part`. Every file of it is synced, then the folder is renamed. After a power cut there is either
the complete folder or a part. A folder whose files differ from its checkpoint.json is incomplete and is skipped.

Pickles run code when they are read. A file is read with `weights_only=True`, which builds tensors and plain types only. DeepSpeed reads its
shards by itself. Before that, `check_pickle` looks up every type that they name, without building it. While DeepSpeed reads, `tensors_only`
restricts torch.load to those types as well. Symbolic links, pipes and devices in a checkpoint are refused.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from walt_pl.files import plain_files, rename_whole, sync, whole_file, write_whole

FORMAT = 2
"""Version of the folder. Version 1 had other names of weights and settings, see CHANGELOG.md."""
STATE, AVERAGES, CARD, PART = "state.ckpt", "ema.safetensors", "checkpoint.json", ".part"
TAG, LATEST = "checkpoint", "latest"
"""In DeepSpeed's folder: the folder of the shards, as Lightning names it, and the file that contains this name."""

Strategy = Literal["single", "ddp", "zero1", "zero2", "zero3"]

# Types in DeepSpeed's shards beside tensors and plain types. All of them only hold values.
SHARD_TYPES = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message names the file and ends with what to do."""


class IncompleteCheckpoint(CheckpointError):
    """A checkpoint is incomplete: its writing was interrupted, or files are missing since."""


class UnsafePickle(CheckpointError):
    """A pickle names a type that does not belong in a checkpoint. Reading it would run its code."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    """Folder of the checkpoint."""
    step: int
    """Optimiser steps done."""
    samples: int
    """Clips and images seen by all ranks together."""
    strategy: Strategy
    world_size: int
    """Number of ranks that wrote it."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Validation metrics at this step, by name."""

    @classmethod
    def at(cls, path: str | Path) -> Checkpoint:
        """Return the checkpoint in a folder.

        Raises:
            IncompleteCheckpoint: it is incomplete.
            CheckpointError: it is of another format, or there is a link, pipe or device in it.
        """
        path = Path(path)
        files = plain_files(path, CheckpointError)
        card = _card(path)
        for name, size in card["files"].items():
            found = files.get(name)
            if found != size:
                is_there = "is missing" if found is None else f"has {found} bytes"
                raise IncompleteCheckpoint(f"{path} is incomplete: {name} {is_there}, wanted {size}; use an older checkpoint beside it")
        return cls(path, card["step"], card["samples"], card["strategy"], card["world_size"], card.get("metrics", {}))

    @classmethod
    def newest(cls, folder: str | Path) -> Checkpoint | None:
        """Return the newest complete checkpoint of a folder; None if there is none.

        Every newer checkpoint that is incomplete is skipped with a warning.
        """
        for path in reversed(steps(Path(folder))):
            try:
                return cls.at(path)
            except IncompleteCheckpoint as error:
                warnings.warn(f"skipped: {error}", stacklevel=2)
        return None

    @classmethod
    def all(cls, folder: str | Path) -> list[Checkpoint]:
        """Return every checkpoint of a folder that can be used, the oldest first."""
        whole = []
        for path in steps(Path(folder)):
            try:
                whole.append(cls.at(path))
            except CheckpointError:
                continue
        return whole

    @property
    def state(self) -> Path:
        """Path that Lightning restores from: a file, or a folder of DeepSpeed's shards."""
        return self.path / STATE

    @property
    def ema(self) -> Path | None:
        """File of the averaged weights: float32, gathered under any strategy. None if there are none."""
        return self.path / AVERAGES if (self.path / AVERAGES).exists() else None


def folder_name(step: int) -> str:
    """Return the folder name of the checkpoint of a step: "step=00000100"."""
    return f"step={step:08d}"


def recovery_hint(folder: str | Path, step: int) -> str:
    """Return the commands to type when the weights of a step are not usable.

    They say how to go on from the checkpoint before that step, and how to export that checkpoint.
    """
    earlier = [checkpoint.path for checkpoint in Checkpoint.all(folder) if checkpoint.step < step]
    change = "change something first: a lower --model.optimizer.lr, --spike_guard.policy skip, or --trainer.precision 32-true"
    if not earlier:
        again = "add --from_scratch true to the command (make: FRESH=1) to start over"
        return f"there is no earlier checkpoint in {folder}: {again}, and {change}"
    return (
        f"to go on from an earlier checkpoint add --ckpt_path {earlier[-1]} to the command, and {change}; "
        f"to export it: python -m walt_pl export {earlier[-1]} --out DIR"
    )


def steps(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, the oldest first. Torn ones are included, unfinished (`.part`) ones are not."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if re.fullmatch(r"step=\d{8,}", path.name)), key=lambda path: int(path.name[5:]))


def _card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IncompleteCheckpoint(
            f"{path} is incomplete: there is no {CARD}, which is written last; use an older checkpoint beside it"
        ) from None
    except ValueError as error:
        raise IncompleteCheckpoint(f"{path} is incomplete: {CARD} is no JSON ({error}); use an older checkpoint beside it") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise CheckpointError(
            f"{path / CARD}: format {found}, this program reads {FORMAT}; train on with the version that wrote it, or start over with "
            "--from_scratch true (format 1 has other names of weights: CHANGELOG.md)"
        )
    if card.get("strategy") not in get_args(Strategy):
        raise CheckpointError(f"{path / CARD}: strategy {card.get('strategy')!r}, wanted one of {', '.join(get_args(Strategy))}")
    return card


# ---- Writing ---------------------------------------------------------------------------------------------------------


def write_state(state: Mapping[str, Any], path: str | Path) -> OSError | None:
    """Write with torch.save and sync the file to disk.

    An error of the file system is returned, not raised: if one rank raised it, the other ranks would wait for that rank.
    """
    try:
        with whole_file(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(state, file)
    except OSError as error:
        return error
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):
            raise
        return error.__context__  # torch's own message reports only a wrong file position; the context is the real error
    return None


def finalize_checkpoint(
    part: Path, step: int, samples: int, strategy: Strategy, world_size: int, metrics: Mapping[str, float]
) -> Checkpoint:
    """Turn a fully written folder `step=….part` into a checkpoint: list and sync its files, then rename it.

    Raises:
        OSError: the file system is full or cannot be written; the part is still there.
    """
    files = sorted(path for path in part.rglob("*") if path.is_file())
    card = {
        "format": FORMAT,
        "step": step,
        "samples": samples,
        "strategy": strategy,
        "world_size": world_size,
        "metrics": dict(metrics),
        "files": {str(path.relative_to(part)): path.stat().st_size for path in files},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for path in [*files, *(path for path in part.rglob("*") if path.is_dir())]:
        sync(path)
    write_whole(part / CARD, (json.dumps(card, indent=2) + "\n").encode())
    whole = part.with_name(part.name.removesuffix(PART))
    rename_whole(part, whole)
    return Checkpoint.at(whole)


def update_metrics(checkpoint: Checkpoint, metrics: Mapping[str, float]) -> None:
    """Record the validation metrics of a checkpoint that is already on disk."""
    card = {**_card(checkpoint.path), "metrics": dict(metrics)}
    write_whole(checkpoint.path / CARD, (json.dumps(card, indent=2) + "\n").encode())


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read_state(path: str | Path, mapped: bool = False) -> dict[str, Any]:
    """Return the state that Lightning saved, on the CPU: from a checkpoint's state.ckpt, or from a single file.

    For DeepSpeed's folder this is the state that rank zero saves beside the shards, without weights and optimiser.

    Args:
        path: path of the file or folder.
        mapped: leave tensors on disk (memory map), to read only the entries beside them. Such tensors must not outlive the file.

    Raises:
        UnsafePickle: reading it would run code.
        CheckpointError: torch did not write the file, or it is damaged.
    """
    path = Path(path)
    file = _first_shard(path) if path.is_dir() else path
    types = [(_Stand, name) for name in SHARD_TYPES] if path.is_dir() else []
    try:
        with torch.serialization.safe_globals(types):  # type: ignore[arg-type]  # pairs of a type and its name are allowed
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(file))
    except pickle.UnpicklingError:
        check_pickle(file)  # says which type it is
        raise UnsafePickle(_refusal(file, "it holds more than tensors and plain values")) from None
    except (RuntimeError, EOFError, KeyError) as error:
        raise CheckpointError(f"{file} cannot be read ({str(error).splitlines()[0]}); use an older checkpoint") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} holds {type(state).__name__}, wanted the dictionary of a checkpoint; name another file")
    return state


def _first_shard(folder: Path) -> Path:
    check_pickle(folder)
    shards = sorted((folder / TAG).glob("*mp_rank_00_model_states.pt"))
    if not shards:
        raise CheckpointError(f"{folder / TAG} has no *_model_states.pt; use an older checkpoint")
    return shards[0]


class _Stand:
    """Stands for DeepSpeed's types, so that reading needs no DeepSpeed."""

    def __new__(cls, *_: Any) -> _Stand:
        return super().__new__(cls)


def check_pickle(path: str | Path) -> None:
    """Check the types named in a file of torch.save, or in all files of a DeepSpeed checkpoint, without building them.

    Every file of the folder is checked, whatever its name: DeepSpeed finds its shards by the beginning of their names.

    Raises:
        UnsafePickle: a type is neither a tensor, nor plain, nor one of `SHARD_TYPES`; or this kind of file cannot be checked.
        CheckpointError: there is a link, pipe or device in the folder, or its shards are not where this program writes them.
    """
    path = Path(path)
    if path.is_dir():
        files = plain_files(path, CheckpointError)
        said = (path / LATEST).read_text(encoding="utf-8", errors="replace").strip() if LATEST in files else "no folder"
        if said != TAG or not (path / TAG).is_dir():
            raise CheckpointError(
                f'{path / LATEST} names {said or "no folder"}, wanted "{TAG}", the folder beside it; use an older checkpoint'
            )
        for name in sorted(files):
            if name != LATEST:
                check_pickle(path / name)
        return
    try:
        strangers = set(get_unsafe_globals_in_checkpoint(str(path))) - SHARD_TYPES
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UnsafePickle(_refusal(path, f"it is not the kind of file that torch.save writes ({str(error).splitlines()[0]})")) from None
    if strangers:
        raise UnsafePickle(_refusal(path, f"it names {', '.join(sorted(strangers))}"))


@contextlib.contextmanager
def tensors_only(folder: Path) -> Iterator[None]:
    """Restrict torch.load inside the context to tensors, plain types and `SHARD_TYPES`, whatever DeepSpeed requests.

    A file that changes after `check_pickle`, or a file that only DeepSpeed finds, therefore runs no code either.

    Args:
        folder: folder that DeepSpeed reads, for the error message.

    Raises:
        UnsafePickle: a file names another type.
    """
    modules = [(name, *name.rsplit(".", 1)) for name in SHARD_TYPES]
    types = [(getattr(importlib.import_module(module), kind), name) for name, module, kind in modules]
    force, opposite = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (force, opposite)}
    os.environ[force] = "1"
    try:
        with torch.serialization.safe_globals(types):  # type: ignore[arg-type]  # pairs of a type and its name are allowed
            yield
    except pickle.UnpicklingError as error:
        raise UnsafePickle(_refusal(folder, str(error).splitlines()[0])) from None
    finally:
        del os.environ[force]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _refusal(path: Path, why: str) -> str:
    return (
        f"{path} is refused: {why}. Reading it could run code, and nothing of it was run; checkpoints hold tensors and plain values "
        "only, so take one that this program wrote"
    )
