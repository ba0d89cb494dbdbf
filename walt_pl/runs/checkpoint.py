"""Checkpoints: folders from which training resumes. An incomplete folder does not count, and reading one runs no code from it.

    checkpoints/step=00000100/
        state.ckpt          everything Lightning restores: a file, or a folder of shards that DeepSpeed wrote
        ema.safetensors     averaged weights by parameter name, if there are any
        checkpoint.json     written last: the files of the checkpoint with their sizes and hashes, and a checksum of its own

A checkpoint is written as `step=00000100.part`. Every file of it is synced, then the folder is renamed. After a power cut there is either
the complete folder or a part. A folder whose files differ from its checkpoint.json is incomplete and is skipped.

Sizes are compared whenever a checkpoint is looked at. Hashes are compared before its bytes are used: rank zero checks every file when it
chooses a checkpoint, and each rank hashes what it reads itself.

Pickles run code when they are read. `load_file` opens a file once, without following links. It hashes the open file, looks up every type
that it names without building it, and loads it with `weights_only=True`, which builds tensors and plain types only. DeepSpeed calls
torch.load by itself. Within `tensors_only` that call is `load_file`. Symbolic links, pipes and devices in a checkpoint are refused.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError
from torch.serialization import get_unsafe_globals_in_checkpoint

from walt_pl.files import plain_files, rename_whole, sync, whole_file, write_whole
from walt_pl.runs.card import card_text
from walt_pl.runs.checked_files import READ_FD, HashingWriter, identity, open_inside
from walt_pl.runs.checkpoint_card import CARD as CARD
from walt_pl.runs.checkpoint_card import FORMAT, UNHASHED, check_hash, check_hashes, describe_files, read_description
from walt_pl.runs.checkpoint_card import STATE as STATE
from walt_pl.runs.checkpoint_card import CheckpointError as CheckpointError
from walt_pl.runs.checkpoint_card import DamagedCheckpoint as DamagedCheckpoint
from walt_pl.runs.checkpoint_card import IncompleteCheckpoint as IncompleteCheckpoint
from walt_pl.runs.checkpoint_card import Strategy as Strategy
from walt_pl.untrusted import read_bytes

AVERAGES, PART = "ema.safetensors", ".part"
TAG, LATEST = "checkpoint", "latest"
"""In DeepSpeed's folder: the folder of the shards, as Lightning names it, and the file that contains this name."""

# Types in DeepSpeed's shards beside tensors and plain types. All of them only hold values.
SHARD_TYPES = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)


FLAT_WEIGHTS = ("single_partition_of_fp32_groups", "fp32_flat_groups")
"""Lists of flat float32 weights in a shard's state of the optimiser: of ZeRO 1 and 2, and of ZeRO 3."""

_torch_load = torch.load
"""torch's own function, also inside `tensors_only`."""


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
    def at(cls, path: str | Path, hashed: bool = False) -> Checkpoint:
        """Return the checkpoint in a folder.

        Args:
            path: folder of the checkpoint.
            hashed: also read every byte and compare the hashes. Otherwise sizes are compared.

        Raises:
            IncompleteCheckpoint: it is incomplete, or damaged as far as it is checked.
            CheckpointError: it is of another format, or there is a link, pipe or device in it.
        """
        path = Path(path)
        files = plain_files(path, CheckpointError)
        card = read_description(path)
        for name, record in card["files"].items():
            found = files.get(name)
            if found != record["bytes"]:
                is_there = "is missing" if found is None else f"has {found} bytes"
                raise IncompleteCheckpoint(
                    f"{path} is incomplete: {name} {is_there}, wanted {record['bytes']}; use an older checkpoint beside it"
                )
        if hashed:
            check_hashes(path, card)
        return cls(path, card["step"], card["samples"], card["strategy"], card["world_size"], card.get("metrics", {}))

    @classmethod
    def newest(cls, folder: str | Path, hashed: bool = False) -> Checkpoint | None:
        """Return the newest complete checkpoint of a folder; None if there is none.

        Every newer checkpoint that is incomplete or damaged is skipped with a warning.

        Args:
            folder: folder of the checkpoints.
            hashed: also read every byte and compare the hashes, as is due before the checkpoint is used.
        """
        for path in reversed(steps(Path(folder))):
            try:
                return cls.at(path, hashed)
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


# ---- Writing ---------------------------------------------------------------------------------------------------------


def write_state(state: Mapping[str, Any], path: str | Path) -> str | OSError:
    """Write with torch.save and sync the file to disk.

    An error of the file system is returned, not raised: if one rank raised it, the other ranks would wait for that rank.

    Returns:
        The hash of the written bytes; or the error.
    """
    try:
        with whole_file(Path(path)) as temporary, temporary.open("wb") as file:
            writer = HashingWriter(file)
            torch.save(state, cast(BinaryIO, writer))
    except OSError as error:
        return error
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):
            raise
        return error.__context__  # torch's own message reports only a wrong file position; the context is the real error
    return writer.hexdigest()


def finalize_checkpoint(
    part: Path,
    step: int,
    samples: int,
    strategy: Strategy,
    world_size: int,
    metrics: Mapping[str, float],
    hashes: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Turn a fully written folder `step=….part` into a checkpoint: list, hash and sync its files, then rename it.

    Args:
        part: the folder.
        step: optimiser steps done.
        samples: clips and images seen by all ranks together.
        strategy: strategy that wrote it.
        world_size: number of ranks that wrote it.
        metrics: validation metrics by name.
        hashes: hashes of files that were hashed while they were written, by relative name. The others are read back.

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
        "files": describe_files(part, hashes or {}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for path in [*files, *(path for path in part.rglob("*") if path.is_dir())]:
        sync(path)
    write_whole(part / CARD, card_text(card).encode())
    whole = part.with_name(part.name.removesuffix(PART))
    rename_whole(part, whole)
    return Checkpoint.at(whole)


def update_metrics(checkpoint: Checkpoint, metrics: Mapping[str, float]) -> None:
    """Record the validation metrics of a checkpoint that is already on disk."""
    card = {**read_description(checkpoint.path), "metrics": dict(metrics)}
    if card["format"] == UNHASHED:
        card["files"] = {name: record["bytes"] for name, record in card["files"].items()}
    write_whole(checkpoint.path / CARD, card_text(card).encode())


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
    with torch.serialization.safe_globals(types):  # type: ignore[arg-type]  # pairs of a type and its name are allowed
        state = load_file(file, path.parent, mapped=mapped)
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} holds {type(state).__name__}, wanted the dictionary of a checkpoint; name another file")
    return state


def load_file(path: Path, folder: Path, map_location: Any = "cpu", mapped: bool = False) -> Any:
    """Load a file of torch.save: open it once, hash it, look up the types that it names, and build its tensors and plain values.

    Args:
        path: path of the file.
        folder: folder that it must lie in: that of the checkpoint, whose checkpoint.json has the hash.
        map_location: device of the tensors, as for torch.load.
        mapped: leave tensors on disk (memory map).

    Raises:
        UnsafePickle: it names a type that is neither a tensor, nor plain, nor allowed by torch's `safe_globals`.
        DamagedCheckpoint: it has another hash than the one recorded, or changes while it is read.
        CheckpointError: torch did not write it, there is a link on its way, or its weights are not floating-point numbers.
    """
    try:
        opened_file = open_inside(folder, path, CheckpointError)
    except FileNotFoundError:
        raise IncompleteCheckpoint(f"there is no {path}; use an older checkpoint") from None
    with opened_file as file:
        before = identity(file)
        check_hash(folder, path, file)
        _check_types(path, file)
        file.seek(0)
        opened = f"{READ_FD}/{file.fileno()}" if mapped and READ_FD.is_dir() else None  # torch maps by path only: this is the open file's
        try:
            state = _torch_load(opened or file, map_location=map_location, weights_only=True, mmap=opened is not None)
        except pickle.UnpicklingError:
            raise UnsafePickle(_refusal(path, "it holds more than tensors and plain values")) from None
        except Exception as error:  # a damaged pickle raises errors of every class
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{path} cannot be read ({why}); use an older checkpoint") from None
        if identity(file) != before:
            raise DamagedCheckpoint(f"{path} was changed while it was read; use an older checkpoint")
    for weights in _shard_weights(state):
        check_floating(weights, path)
    return state


def _shard_weights(state: Any) -> list[dict[str, Any]]:
    """Return the weights in a shard of DeepSpeed by name: the working copies, and the flat float32 weights."""
    if not isinstance(state, dict):
        return []
    optimizer = state.get("optimizer_state_dict")
    flat = [(name, optimizer.get(name)) for name in FLAT_WEIGHTS] if isinstance(optimizer, dict) else []
    groups = [{f"{name}.{i}": value for i, value in enumerate(values)} for name, values in flat if isinstance(values, list)]
    return [*groups, *([state["module"]] if isinstance(state.get("module"), dict) else [])]


def check_floating(weights: Mapping[str, Any], path: Path) -> None:
    """Refuse integer, boolean and complex weights by name. Loading would convert them in silence.

    Raises:
        CheckpointError: a tensor has no floating-point values; the message names it.
    """
    for name, value in weights.items():
        if isinstance(value, torch.Tensor) and not value.is_floating_point():
            raise CheckpointError(
                f"{path}: the weight {name} has values of type {value.dtype}, wanted floating-point numbers; use another checkpoint"
            )


@contextlib.contextmanager
def checked_averages(path: Path) -> Iterator[Path]:
    """Yield a path of the averages of a checkpoint, once their hash is compared. On Linux it leads to the file that was hashed.

    Raises:
        DamagedCheckpoint: they have another hash than the one recorded.
        CheckpointError: there is a link on the way to them, or inside the context safetensors cannot read them.
    """
    with open_inside(path.parent, path, CheckpointError) as file:
        check_hash(path.parent, path, file)
        try:
            yield READ_FD / str(file.fileno()) if READ_FD.is_dir() else path
        except SafetensorError as error:
            raise CheckpointError(f"{path} cannot be read ({error}); use an older checkpoint") from None


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
    if not path.is_dir():
        with open_inside(path.parent, path, CheckpointError) as file:
            _check_types(path, file)
        return
    files = plain_files(path, CheckpointError)
    said = read_bytes(path / LATEST, 4096).decode(errors="replace").strip() if LATEST in files else "no folder"
    if said != TAG or not (path / TAG).is_dir():
        raise CheckpointError(f'{path / LATEST} names {said or "no folder"}, wanted "{TAG}", the folder beside it; use an older checkpoint')
    for name in sorted(files):
        if name != LATEST:
            with open_inside(path, path / name, CheckpointError) as file:
                _check_types(path / name, file)


def _check_types(path: Path, file: BinaryIO) -> None:
    """Check the types that an open file of torch.save names.

    Raises:
        UnsafePickle: a type is neither a tensor, nor plain, nor one of `SHARD_TYPES`; or torch did not write the file.
    """
    file.seek(0)
    try:
        strangers = set(get_unsafe_globals_in_checkpoint(file)) - SHARD_TYPES
    except Exception as error:  # a damaged pickle raises errors of every class
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UnsafePickle(_refusal(path, f"it is not the kind of file that torch.save writes ({why})")) from None
    if strangers:
        raise UnsafePickle(_refusal(path, f"it names {', '.join(sorted(strangers))}"))


@contextlib.contextmanager
def tensors_only(folder: Path) -> Iterator[None]:
    """Make torch.load inside the context the same as `load_file`, whatever DeepSpeed requests.

    A file that changes after `check_pickle`, or a file that only DeepSpeed finds, therefore runs no code either.

    Args:
        folder: folder of the checkpoint that DeepSpeed reads; no other files are read.

    Raises:
        UnsafePickle: a file names another type than tensors, plain types and `SHARD_TYPES`.
        CheckpointError: see `load_file`.
    """

    def load(file: Any, map_location: Any = "cpu", *_: Any, mmap: bool | None = False, **__: Any) -> Any:
        return load_file(Path(file), folder, map_location, bool(mmap))

    modules = [(name, *name.rsplit(".", 1)) for name in SHARD_TYPES]
    types = [(getattr(importlib.import_module(module), kind), name) for name, module, kind in modules]
    opposite = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = os.environ.pop(opposite, None)
    torch.load = load  # type: ignore[assignment]
    try:
        with torch.serialization.safe_globals(types):  # type: ignore[arg-type]  # pairs of a type and its name are allowed
            yield
    finally:
        torch.load = _torch_load
        if before is not None:
            os.environ[opposite] = before


def _refusal(path: Path, why: str) -> str:
    return (
        f"{path} is refused: {why}. Reading it could run code, and nothing of it was run; checkpoints hold tensors and plain values "
        "only, so take one that this program wrote"
    )
