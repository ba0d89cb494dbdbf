"""Folders of the starts of a training below its logs, and the id by which a service knows the training."""

import re
from pathlib import Path

import lightning as L

from walt_pl.files import write_whole
from walt_pl.untrusted import UntrustedError, read_bytes

_ID_BYTES = 256


def starts_of(logs: Path) -> list[Path]:
    """Return the folders of the starts, version_0, version_1, ..., in order."""
    found = {int(match[1]): path for path in logs.glob("version_*") if (match := re.fullmatch(r"version_(\d+)", path.name))}
    return [found[number] for number in sorted(found)]


def next_start(logs: Path) -> Path:
    """Return the folder of the next start. It is not made."""
    starts = starts_of(logs)
    return logs / f"version_{int(starts[-1].name.removeprefix('version_')) + 1 if starts else 0}"


def make_start_folder(trainer: L.Trainer) -> Path | None:
    """Make the folder of the logs of this start, and return it on rank zero; None on other ranks.

    All ranks call it: they agree on the folder by communicating.
    """
    folder = Path(str(trainer.log_dir))
    if not trainer.is_global_zero:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def suffix_of_start(folder: Path, pattern: str) -> str:
    """Return "_N" for a folder with N files of a pattern, "" for none. Without a logger all starts share one folder."""
    number = len(list(folder.glob(pattern)))
    return f"_{number}" if number else ""


def read_run_id(file: Path) -> str | None:
    """Return the id of an earlier start; None if there was none.

    Raises:
        UntrustedError: the file has something else.
    """
    try:
        text = read_bytes(file, _ID_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    if not re.fullmatch(r"[\w.-]+", text, re.ASCII):
        raise UntrustedError(f"{file}: wanted the id of a run, letters, digits, dots, _ and -; remove the file to begin a new run")
    return text


def write_run_id(file: Path, run_id: str) -> None:
    """Keep the id for the next start."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, f"{run_id}\n".encode())
