"""The card of an artifact folder and its files: read, checked and compared without torch.

`walt_pl/runs/artifact.py` loads the models of a folder, `walt_pl/runs/artifact_writing.py` writes one.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from walt_pl.files import file_sha256, is_temporary_of, kind_of_entry, plain_files, remove_left_overs, rename_whole
from walt_pl.plain_records import shown
from walt_pl.runs.card_entries import CARD, CONFIG, EXTRA, MAX_CARD_BYTES, MODEL_CARD, OWN, TRAIN, WEIGHTS, check_card
from walt_pl.untrusted import UntrustedError, parse_json, read_bytes

__all__ = [
    "CARD",
    "CONFIG",
    "EXTRA",
    "MODEL_CARD",
    "OWN",
    "TRAIN",
    "WEIGHTS",
]  # `OWN` has the card first: it is the first file that is removed

FORMAT = 2
"""Version of the folder. Version 1 had other names of weights and settings, see CHANGELOG.md."""


EVALUATIONS = "evaluations"
"""Entry of a card's metrics with figures of finished stages (`walt_pl.runs.evaluations`)."""


class ArtifactError(ValueError):
    """A folder cannot be read or replaced as an artifact. The message says what to do."""


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the checked card.json of an artifact folder, after recovery from a crash of `save_artifact`.

    Raises:
        ArtifactError: the path is not a folder, has a link in it or no card; or the card has another format version, was changed after it
            was written, or an entry of it has another type or range.
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
        data = read_bytes(folder / CARD, MAX_CARD_BYTES)
        card = parse_json(data, str(folder / CARD))
        version = card["format"]
    except (ValueError, KeyError, TypeError) as error:
        told = error if isinstance(error, UntrustedError) else repr(error)
        raise ArtifactError(f"{folder / CARD} is not a card of an artifact ({told})") from error
    if version != FORMAT:
        raise ArtifactError(
            f"{folder / CARD}: format version {shown(version)} is unknown here (this program reads {FORMAT}); use the version of walt_pl "
            "that wrote it, or train the stage again (format 1 has other names of weights and settings: CHANGELOG.md)"
        )
    checksum = card.pop("checksum", None)
    if data != card_text(card).encode():
        raise ArtifactError(
            f"{folder / CARD} was changed after it was written (its checksum says {shown(checksum)}, its content "
            f"{_checksum(card)}): restore the file or export the stage again"
        )
    try:
        check_card(card, str(folder / CARD))
    except UntrustedError as error:
        raise ArtifactError(f"{error}: take an artifact that this program wrote") from error
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


def described_sha256(folder: Path) -> str:
    """Return the SHA-256 of the card of an artifact as its stage wrote it: without the evaluations that were added since.

    A manifest records this hash, also that of another run which uses the artifact. Figures that are added leave it as it is. The checksum
    of the card covers them.

    Raises:
        ArtifactError: the folder is not an artifact.
    """
    card = read_card(folder)
    metrics = {name: value for name, value in card.get("metrics", {}).items() if name != EVALUATIONS}
    return hashlib.sha256(card_text({**card, "metrics": metrics} if "metrics" in card else card).encode()).hexdigest()


def is_described_by(folder: Path, sha256: str) -> bool:
    """Return whether the card of an artifact differs from that of a recorded hash in nothing but evaluations."""
    try:
        return described_sha256(folder) == sha256
    except ArtifactError:
        return False


def _checksum(card: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card).encode()).hexdigest()


def verify_artifact(path: str | Path) -> list[str]:
    """Read every byte of an artifact and compare sizes and hashes with its card.

    Returns:
        One sentence a problem, with the file and the hash wanted.
    """
    folder = Path(path)
    try:
        files = read_card(folder)["files"]
    except ArtifactError as error:
        return [str(error)]
    problems = (file_problem(folder / name, r["sha256"], r["bytes"], fresh=True) for name, r in files.items())
    return [problem for problem in problems if problem]


def file_problem(path: Path, sha256: str, size: int, *, hashed: bool = True, fresh: bool = False) -> str | None:
    """Compare a file with its recorded size and hash. No link is followed, and the hash of a file that differs is never told.

    Args:
        path: path of the file.
        sha256: recorded SHA-256, hexadecimal.
        size: recorded size in bytes.
        hashed: compare the hash too; otherwise the size only.
        fresh: read the file even if its hash is remembered.

    Returns:
        A sentence that describes the difference; None if there is none.
    """
    try:
        status = path.lstat()
    except OSError:
        return f"{path} is missing (wanted {size} bytes, sha256 {sha256})"
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is {kind_of_entry(path)}, wanted a plain file of {size} bytes, sha256 {sha256}"
    found = status.st_size
    if found != size:
        return f"the bytes of {path} do not match: found {found} bytes, wanted {size} (sha256 {sha256})"
    if hashed and file_sha256(path, fresh=fresh) != sha256:
        return f"the bytes of {path} do not match: found others than those of sha256 {sha256}"
    return None


def check_replaceable(folder: str | Path) -> None:
    """Refuse a folder where `save_artifact` would remove or change anything but an artifact of this program.

    An empty folder may be replaced, and so may an artifact that lacks files. The remains of a crash of `save_artifact` beside the folder
    may be replaced too. Weights are compared by size, all other files by hash. The model card may have any content: `save_artifact` keeps
    the text that a person wrote there.

    Raises:
        ArtifactError: the folder holds something else.
    """
    folder = Path(folder).resolve()
    for left in (new_folder(folder), old_folder(folder)):
        _check_own(left, left_over=True)
    for name in (CARD, MODEL_CARD):
        remove_left_overs(folder / name)  # of an evaluation that was killed while it wrote its figures
    _check_own(folder)
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
        if path.name not in (CARD, MODEL_CARD) and (
            problem := file_problem(path, record["sha256"], record["bytes"], hashed=path.name != WEIGHTS)
        ):
            raise ArtifactError(f"{folder} is not replaced, {path.name} is not the file that its card lists ({problem}): move it away")


def _check_own(folder: Path, left_over: bool = False) -> None:
    """Refuse a folder that holds anything but plain files with the names of an artifact's files.

    Raises:
        ArtifactError: there is another file, a link, a folder, a pipe or a device.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ArtifactError(f"{folder} is {kind_of_entry(folder)}; an artifact is a folder: move it away")
    for path in sorted(folder.iterdir()):
        try:
            found = kind_of_entry(path)
        except FileNotFoundError:
            continue  # another process has removed it
        names = (*OWN, MODEL_CARD)
        own = path.name in names or (left_over and any(is_temporary_of(path.name, name) for name in names))
        if not own or found != "a file":
            raise ArtifactError(
                f"{folder} holds {path.name} ({found}), which is no file of an artifact, and the folder would be replaced: move "
                f"{path.name} away, or name another folder"
            )


def shorten(names: Iterable[str], most: int = 3) -> str:
    """Return the first names in order, and the number of the others."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")
