"""Records of a manifest: facts about the stages of a run. They may come from a stranger, so each checks its entries."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from walt_pl.lock import Holder
from walt_pl.plain_records import build_record, check_range, check_sha256, check_time, shown
from walt_pl.runs.card import OWN
from walt_pl.runs.card_entries import MAX_WEIGHTS_BYTES
from walt_pl.runs.experiment_files import is_recorded_experiment
from walt_pl.runs.stage_names import kind_of
from walt_pl.runs.stop_record import StopRecord
from walt_pl.untrusted import UntrustedError

MAX_PATH = 1024
"""Largest number of characters of a recorded path. Messages show such paths whole."""
MAX_NAME = 255
"""Largest number of bytes of a name in a path, as file systems have it."""


@dataclass(frozen=True)
class TrainingRecord:
    """A training run that has started and not finished."""

    holder: Holder
    parents: dict[str, str]
    """Parent stage -> sha256 of the parent's weights at the start of the training."""
    stop: StopRecord | None = None
    """None while it trains, and after a crash."""

    def __post_init__(self) -> None:
        _check_parents(self.parents)


@dataclass(frozen=True)
class FileRecord:
    """A file at the time when its bytes were last verified."""

    sha256: str
    bytes: int
    mtime_ns: int

    def __post_init__(self) -> None:
        check_sha256(self.sha256, "sha256")
        check_range(self.bytes, "bytes", MAX_WEIGHTS_BYTES)


@dataclass(frozen=True)
class ArtifactRecord:
    """The artifact of a finished stage."""

    path: str
    """Artifact folder, relative to the folder of the run. One that a person adopted (--model.vae DIR) lies outside. Nothing is opened there
    but the files of an artifact by their names."""
    sha256: str
    """Hash of the weights."""
    parents: dict[str, str]
    files: dict[str, FileRecord]
    started: str | None
    finished: str

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        if path.name in ("", "..") or path.is_absolute():
            raise ValueError(f"path is {shown(self.path)}, wanted the folder of an artifact, relative to that of the run")
        if self.path != posixpath.normpath(self.path) or len(self.path) > MAX_PATH:
            raise ValueError(f"path is {shown(self.path)}, wanted its shortest form of at most {MAX_PATH:,} characters")
        if any(len(name.encode(errors="surrogatepass")) > MAX_NAME for name in path.parts):
            raise ValueError(f"path is {shown(self.path)}, wanted names of at most {MAX_NAME} bytes")
        check_sha256(self.sha256, "sha256")
        _check_parents(self.parents)
        foreign = sorted(set(self.files) - set(OWN))
        if foreign:
            raise ValueError(f"lists the file {shown(foreign[0])}, wanted files of an artifact ({', '.join(OWN)})")
        for name, time in (("started", self.started), ("finished", self.finished)):
            if time is not None:
                check_time(time, name)


@dataclass(frozen=True)
class StageRecord:
    """One entry of the manifest. A stage that is trained again keeps its artifact until the new one is finished."""

    name: str
    kind: str
    artifact: ArtifactRecord | None = None
    training: TrainingRecord | None = None
    experiment: str | None = None
    """Folder of its configuration, such as experiments/shapes; None where it is not known, as in files of older versions."""

    def __post_init__(self) -> None:
        if self.experiment is not None and not is_recorded_experiment(self.experiment):
            raise ValueError(f"experiment is {shown(self.experiment)}, wanted a folder below experiments/")

    @classmethod
    def from_json(cls, name: str, plain: Mapping[str, Any], where: str) -> StageRecord:
        """Build a record from plain values; the inverse of `dataclasses.asdict`.

        Args:
            name: name of the stage.
            plain: its entries.
            where: file that they come from, for the error message.

        Raises:
            KeyError: an entry is missing.
            ManifestError: there is no stage of this name.
            UntrustedError: an entry is unknown, or has another type or range.
        """
        kind, where = kind_of(name), f"{where}: {name}"
        if plain["kind"] != kind:
            raise UntrustedError(f"{where}: kind is {shown(plain['kind'])}, wanted {kind}")
        known = {"artifact": plain["artifact"], "training": plain["training"], "experiment": plain.get("experiment")}
        return build_record(cls, {"name": name, "kind": kind, **known}, where)


def _check_parents(parents: Mapping[str, str]) -> None:
    for parent, sha256 in parents.items():
        kind_of(parent)
        check_sha256(sha256, f"parents: {parent}")
