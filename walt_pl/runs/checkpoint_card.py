"""The description of a checkpoint, checkpoint.json: read, checked against its checksum, and compared with the files beside it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from walt_pl.files import plain_files
from walt_pl.runs.card import card_text
from walt_pl.runs.checked_files import HASH, digest_of, open_inside
from walt_pl.untrusted import UntrustedError, parse_json, read_bytes

FORMAT = 3
"""Version of the folder. Version 2 had no hashes. Version 1 had other names of weights and settings, see CHANGELOG.md."""
UNHASHED = 2
"""Older version that is read, too, with a warning: a training of weeks goes on with this program."""
CARD_BYTES = 16 << 20
"""Largest size of checkpoint.json in bytes. A ZeRO checkpoint of 1,000 ranks has 0.3 MB."""
STATE, CARD = "state.ckpt", "checkpoint.json"

Strategy = Literal["single", "ddp", "zero1", "zero2", "zero3"]


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message names the file and ends with what to do."""


class IncompleteCheckpoint(CheckpointError):
    """A checkpoint is incomplete: its writing was interrupted, or files are missing since."""


class DamagedCheckpoint(IncompleteCheckpoint):
    """A complete checkpoint has other bytes than those that were written."""


def read_description(path: Path) -> dict[str, Any]:
    """Read checkpoint.json; its files are name -> {"bytes": size, HASH: hash}, without hashes in version `UNHASHED`.

    Raises:
        IncompleteCheckpoint: there is none, or its bytes are not those that were written.
        CheckpointError: it is of another version, or does not describe a checkpoint.
    """
    older = "use an older checkpoint beside it"
    try:
        text = read_bytes(path / CARD, CARD_BYTES)
    except FileNotFoundError:
        raise IncompleteCheckpoint(f"{path} is incomplete: there is no {CARD}, which is written last; {older}") from None
    except UntrustedError as error:
        raise CheckpointError(f"{error}; {older}") from None
    try:
        card = parse_json(text, str(path / CARD))
    except UntrustedError as error:
        raise IncompleteCheckpoint(f"{path} is incomplete: {error}; {older}") from None
    version = card.get("format") if isinstance(card, dict) else type(card).__name__
    if isinstance(card, dict) and (version == FORMAT or "checksum" in card):
        checksum = card.pop("checksum", None)
        if text != card_text(card).encode():
            raise DamagedCheckpoint(f"{path} is damaged: {CARD} was changed after it was written (checksum {checksum}); {older}")
    if version not in (FORMAT, UNHASHED):
        raise CheckpointError(
            f"{path / CARD}: format {version}, this program reads {FORMAT}; train on with the version that wrote it, or start over with "
            "--from_scratch true (format 1 has other names of weights: CHANGELOG.md)"
        )
    if card.get("strategy") not in get_args(Strategy):
        raise CheckpointError(f"{path / CARD}: strategy {card.get('strategy')!r}, wanted one of {', '.join(get_args(Strategy))}")
    if version == UNHASHED and isinstance(card.get("files"), dict):
        card["files"] = {name: {"bytes": size} for name, size in card["files"].items()}
    if not _describes_checkpoint(card):
        raise CheckpointError(f"{path / CARD} does not describe a checkpoint; use one that this program wrote")
    return dict(card)


def _describes_checkpoint(card: Mapping[str, Any]) -> bool:
    """Return whether the values of a description have the types that this program writes."""
    files, metrics = card.get("files"), card.get("metrics", {})
    if not isinstance(files, dict) or not all(isinstance(record, dict) for record in files.values()) or not isinstance(metrics, dict):
        return False
    numbers = [*(card.get(name) for name in ("step", "samples", "world_size")), *(record.get("bytes") for record in files.values())]
    return all(type(number) is int for number in numbers) and all(isinstance(value, int | float) for value in metrics.values())


def validation_values(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the values of the validation among those that a checkpoint records, without those of the callback metrics."""
    return {name: float(value) for name, value in metrics.items() if name.startswith("val/")}


def check_hashes(path: Path, card: Mapping[str, Any]) -> None:
    """Read every file of a checkpoint, and compare its hash.

    Raises:
        DamagedCheckpoint: a file has another hash.
    """
    if card["format"] == UNHASHED:
        warnings.warn(f"{path} has no hashes, since an older program wrote it: a damaged byte in it would not be found", stacklevel=3)
        return

    def check(name: str) -> None:
        with open_inside(path, path / name, CheckpointError) as file:
            _compare(path, card, name, file)

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(check, card["files"]))


def check_hash(folder: Path, path: Path, file: BinaryIO) -> None:
    """Compare the hash of an open file with checkpoint.json, if its folder is that of a checkpoint with hashes.

    Args:
        folder: folder of the checkpoint. A folder without checkpoint.json has no hashes, such as that of a file that a person has named.
        path: path of the file.
        file: the open file.

    Raises:
        DamagedCheckpoint: it has another hash, or checkpoint.json does not list the file.
    """
    name = Path(os.path.relpath(path, folder)).as_posix()
    if not os.path.lexists(folder / CARD) or name.startswith(f"{STATE}.resharded/"):  # made by this start, from checked files
        return
    card = read_description(folder)
    if card["format"] != UNHASHED:
        _compare(folder, card, name, file)


def _compare(folder: Path, card: Mapping[str, Any], name: str, file: BinaryIO) -> None:
    record = card["files"].get(name)
    if record is None:
        raise DamagedCheckpoint(f"{folder} is damaged: {CARD} does not list {name}; use an older checkpoint beside it")
    found = digest_of(file)
    if found != record.get(HASH):
        raise DamagedCheckpoint(
            f"{folder} is damaged: the bytes of {name} have changed since they were written ({HASH} {found}, wanted {record.get(HASH)}); "
            "use an older checkpoint beside it"
        )


def describe_files(folder: Path, hashes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return name -> {"bytes": size, HASH: hash} of every file of a checkpoint but its card.

    Args:
        folder: folder of the checkpoint, or of its part.
        hashes: known hashes by relative name. The other files are read.
    """
    described: dict[str, dict[str, Any]] = {}
    for name, size in sorted(plain_files(folder, CheckpointError).items()):
        if name not in hashes and name != CARD:
            with open_inside(folder, folder / name, CheckpointError) as file:
                described[name] = {"bytes": size, HASH: digest_of(file)}
        elif name != CARD:
            described[name] = {"bytes": size, HASH: hashes[name]}
    return described
