"""The chain of a run: `runs/NAME/manifest.json` says which stages are finished, from which parents, with which bytes.

What is written down are facts: path and hash of each artifact, hashes of its parents at that time, who is training.
States are derived from them when asked for, so that a changed parent makes its children stale without being told:

    missing   no artifact           training   a run has started and not finished
    done      artifact in place     stale      a parent has changed since, or is stale itself

The manifest is written whole, under a lock that names its holder. One process of a run writes it: rank zero.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import re
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from walt_pl.runs.artifact import CARD, TRAIN, check_replaceable, file_problem, file_sha256, read_card, restore, write_whole

FORMAT = 1
LOCK_WAIT = 10.0
"""Seconds to wait for another process that is writing the manifest; writing takes milliseconds."""

State = Literal["missing", "training", "done", "stale"]

# Stage by name: order in the pipeline, kind, parents. A name may go on after "vae" and "base" (base_l, base_xl): such stages
# stand beside each other in one run, and what comes after builds on the ones without an ending.
STAGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"vae(_\w+)?", "vae", ()),
    (r"base(_\w+)?", "base", ("vae",)),
    (r"sr\d+", "super_resolution", ("vae", "base")),
)
NAMES = "vae, vae_*, base, base_*, sr1, sr2, ..."
"""How stages are named, for errors."""
EXPERIMENTS, RUNS = Path("experiments"), Path("runs")
"""experiments/EXP/STAGE.yaml is trained into runs/EXP/STAGE where nothing else is asked for."""


class ManifestError(ValueError):
    """A run that cannot be used as it is; the message is one sentence that ends with what to type."""


class MissingStage(ManifestError):
    """A stage that has to be trained first."""


class ChangedStage(ManifestError):
    """An artifact whose bytes are not those that its stage left."""


class StaleStage(ManifestError):
    """A stage whose parents were trained again since."""


class LockedManifest(ManifestError):
    """Another process holds the manifest, or trains the stage."""


def _rank(stage: str) -> int:
    for rank, (pattern, *_) in enumerate(STAGES):
        if re.fullmatch(pattern, stage):
            return rank
    raise ManifestError(f'unknown stage "{stage}": wanted {NAMES}')


def in_order(stages: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Stages as they are trained: vae, base, sr1, sr2, ..."""
    return sorted(stages, key=lambda stage: (_rank(stage), len(stage), stage))


def kind_of(stage: str) -> str:
    """Kind of a stage: "vae", "base" or "super_resolution"."""
    return STAGES[_rank(stage)][1]


def parents_of(stage: str) -> tuple[str, ...]:
    """Stages that a stage is trained from."""
    return STAGES[_rank(stage)][2]


# ---- What is written down --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holder:
    """A process that holds the lock or trains a stage."""

    host: str
    pid: int
    born: int | None
    """Its start in clock ticks since boot, since containers use the same few numbers again. None without /proc."""
    time: str
    """Since when, UTC."""

    @classmethod
    def here(cls) -> Holder:
        """This process, now."""
        return cls(platform.node(), os.getpid(), _born(os.getpid()), _now())

    def alive(self) -> bool | None:
        """Whether the process still runs; None on another host, where nobody can tell from here."""
        if self.host != platform.node():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # somebody else's, and alive
        return self.born is None or self.born == _born(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.time})"


@dataclass(frozen=True)
class Training:
    """A training run that has started and not finished."""

    holder: Holder
    parents: dict[str, str]
    """Parent stage -> sha256 of the weights that it started with."""


@dataclass(frozen=True)
class FileRecord:
    """A file as it was when its bytes were last known to be right."""

    sha256: str
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Finished:
    """What a finished stage left."""

    path: str
    """Artifact folder, relative to the run's."""
    sha256: str
    """Hash of the weights."""
    parents: dict[str, str]
    files: dict[str, FileRecord]
    started: str | None
    finished: str


@dataclass(frozen=True)
class Stage:
    """One line of the manifest. A stage that is trained again keeps its artifact until the new one is finished."""

    name: str
    kind: str
    artifact: Finished | None = None
    training: Training | None = None

    @classmethod
    def from_json(cls, name: str, plain: Mapping[str, Any]) -> Stage:
        """Inverse of `dataclasses.asdict`. Raises KeyError or TypeError where something is missing or too much."""
        artifact, training = plain["artifact"], plain["training"]
        if artifact is not None:
            files = {file: FileRecord(**record) for file, record in artifact["files"].items()}
            artifact = Finished(**{**artifact, "files": files})
        if training is not None:
            training = Training(**{**training, "holder": Holder(**training["holder"])})
        return cls(name, plain["kind"], artifact, training)


# ---- The manifest ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """The manifest of one run folder. Every question reads the file anew, so another process's changes are seen."""

    run_dir: Path
    experiment: Path | None = None
    """Folder of the configurations that the run is trained with, where it is known: for the commands in messages."""

    @classmethod
    def open(cls, run_dir: str | Path, experiment: Path | None = None) -> Manifest:
        """Manifest of a run; nothing is created. Raises ManifestError if there is one that cannot be read."""
        manifest = cls(Path(run_dir), experiment)
        manifest.stages()
        return manifest

    @property
    def path(self) -> Path:
        """The file."""
        return self.run_dir / "manifest.json"

    def stages(self) -> dict[str, Stage]:
        """Stages that were ever started, in the order of the pipeline."""
        if not self.path.exists():
            return {}
        try:
            plain = json.loads(self.path.read_text(encoding="utf-8"))
            if plain["format"] != FORMAT:
                raise ManifestError(
                    f"{self.path}: format version {plain['format']} is unknown here (wanted {FORMAT}); "
                    "use the version of walt_pl that wrote it"
                )
            stages = {name: Stage.from_json(name, record) for name, record in plain["stages"].items()}
        except ManifestError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"{self.path} is not a manifest ({error!r}): restore it, or remove it and train again") from error
        return {name: stages[name] for name in in_order(stages)}

    def state(self, stage: str) -> State:
        """State of a stage, derived from what is on disk."""
        return self._state(stage, self.stages())

    def start(self, stage: str, parents: Mapping[str, str]) -> None:
        """Write down that this process trains a stage from these parents (what `check_parents` returned).

        Raises LockedManifest where a living process on this host trains it, ArtifactError where the stage's folder
        holds what is no part of an artifact: better now than when the trained weights are to be written there.
        """
        kind = kind_of(stage)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        check_replaceable(self.run_dir / stage)
        with self._edit() as stages:
            before = stages.get(stage, Stage(stage, kind))
            self._check_free(before)
            stages[stage] = dataclasses.replace(before, training=Training(Holder.here(), dict(parents)))

    def check_free(self, stage: str) -> None:
        """Raises LockedManifest where another living process on this host trains a stage."""
        if stage in (stages := self.stages()):
            self._check_free(stages[stage])

    def _check_free(self, stage: Stage) -> None:
        holder = stage.training.holder if stage.training else None
        if holder and holder.pid != os.getpid() and holder.alive():
            raise LockedManifest(
                f'stage "{stage.name}" of {self.run_dir} is in training by {holder}: stop it with: kill {holder.pid}; then type the same '
                "command again"
            )

    def finish(self, stage: str, artifact: str | Path) -> None:
        """Write down the artifact that a stage left. Its hashes come from its card, so no weights are read.

        Raises ArtifactError where it is not one, ManifestError where its card names other parents than `start` did.
        """
        folder = Path(artifact)
        card = read_card(folder)
        for name, listed in card["files"].items():
            problem = file_problem(folder / name, listed["sha256"], listed["bytes"], hashed=False)
            if problem:
                raise ManifestError(f'stage "{stage}": {problem}: {self.command(stage)}')
        files = {name: _record(folder / name, listed["sha256"]) for name, listed in card["files"].items()}
        files[CARD] = _record(folder / CARD, file_sha256(folder / CARD, fresh=True))
        with self._edit() as stages:
            before = stages.get(stage, Stage(stage, kind_of(stage)))
            training = before.training
            if training and training.parents != card["parents"]:
                raise ManifestError(
                    f'the card of {folder} names parents {card["parents"]}, stage "{stage}" was started with '
                    f"{training.parents}: {self.command(stage)}"
                )
            path = Path(os.path.relpath(folder.resolve(), self.run_dir.resolve())).as_posix()
            started = training.holder.time if training else None
            done = Finished(path, card["sha256"], card["parents"], files, started, _now())
            stages[stage] = Stage(stage, card["kind"], done)

    def adopt(self, stage: str, artifact: Path) -> None:
        """Make an artifact that lies elsewhere a stage of this run, in place of one that was adopted before; it is not copied.

        Raises ArtifactError where it is not one, ManifestError where it is of another kind, or the run has trained this stage itself.
        """
        if artifact.resolve() == (self.run_dir / stage).resolve():
            return
        card, own = read_card(artifact), self.stages().get(stage, Stage(stage, kind_of(stage)))
        if card["kind"] != own.kind:
            raise ManifestError(f'{artifact} is of kind "{card["kind"]}", and the {stage} of a run is of kind "{own.kind}"')
        done = own.artifact if self._there(own.artifact) else None
        if done is not None and done.sha256 == card["sha256"]:
            return
        if own.training is not None or (done is not None and done.path == stage):
            trained = f"has trained its own ({done.sha256[:12]})" if done else "has begun to train its own"
            raise ManifestError(
                f"{artifact} ({card['sha256'][:12]}) is not the {stage} of {self.run_dir}, which {trained}: leave model.{stage} out, "
                "or train in another run (--run DIR)"
            )
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.finish(stage, artifact)

    def folder(self, stage: str) -> Path:
        """Where the artifact of a stage lies, or will lie."""
        found = self.stages().get(stage)
        return self.run_dir / (found.artifact.path if found and found.artifact else stage)

    def check_parents(self, stage: str, allow_stale: bool = False) -> dict[str, str]:
        """Hashes of a stage's parents, once each is there, unchanged and (unless `allow_stale`) not stale.

        Raises MissingStage, ChangedStage or StaleStage: one sentence that ends with the command that mends it.
        """
        found = self._require(parents_of(stage), f'stage "{stage}" needs ', allow_stale)
        return {parent: done.sha256 for parent, done in found.items()}

    def usable(self, stages: Sequence[str], allow_stale: bool = False) -> dict[str, Path]:
        """Artifact folders of these stages, to sample from; raises as `check_parents` does."""
        found = self._require(stages, "sampling needs ", allow_stale)
        return {stage: self.run_dir / done.path for stage, done in found.items()}

    def command(self, stage: str, fresh: bool = False) -> str:
        """What to type to train a stage of this run, e.g. "make train-vae EXP=shapes"; `fresh` for one that counts as done.

        A stage without a file of its own, such as that of an overlay, is trained with the configuration that its artifact keeps. Where
        there is none either, EXP stands for the experiment, which nobody wrote down.
        """
        folders = [folder for folder in (self.experiment, EXPERIMENTS / self.run_dir.resolve().name) if folder is not None]
        config = next((path for folder in folders if (path := folder / f"{stage}.yaml").is_file()), None)
        name = config.resolve().parent.name if config else ""
        run = "" if config and self.run_dir.resolve() == (RUNS / name).resolve() else f"--run {shlex.quote(str(self.run_dir))}"
        target = {"vae": "train-vae", "base": "train-base"}.get(kind_of(stage))  # train-sr trains all of them
        if config and target and config.resolve().parent == (EXPERIMENTS / name).resolve():
            words = [f"make {target} EXP={name}", f"STAGE={stage}" if "_" in stage else "", "FRESH=1" if fresh else ""]
            words.append(f'ARGS="{run}"' if run else "")
        else:
            kept = self.folder(stage) / TRAIN
            said = config is None and kept.is_file()  # also whether its training was a fresh one
            config = config or (kept if said else EXPERIMENTS / "EXP" / f"{stage}.yaml")
            again = f"--fresh {str(fresh).lower()}" if fresh or said else ""
            words = [f"python -m walt_pl fit --config {shlex.quote(str(config))}", run, again]
        return " ".join(word for word in words if word)

    def problems(self, stage: str, fresh: bool = False) -> list[str]:
        """How a finished stage's files differ from what it left: one sentence a file. Bytes are read where size or time
        changed; all of them if `fresh`."""
        done = self.stages()[stage].artifact
        return [] if done is None else [problem for problem in self._compare(done, fresh)[0] if problem]

    def _state(self, stage: str, stages: Mapping[str, Stage]) -> State:
        found = stages.get(stage)
        if found is not None and found.training is not None:
            return "training"
        if found is None or not self._there(found.artifact):
            return "missing"
        return "stale" if _stale_reason(stage, stages) else "done"

    def _there(self, done: Finished | None) -> bool:
        if done is None:
            return False
        restore(self.run_dir / done.path)
        return (self.run_dir / done.path / CARD).exists()

    def _require(self, needed: Sequence[str], wanted_by: str, allow_stale: bool) -> dict[str, Finished]:
        stages = self.stages()
        found: dict[str, Finished] = {}
        for name in in_order(needed):  # upstream first: the first complaint is the first thing to mend
            stage = stages.get(name)
            done = stage.artifact if stage else None
            if stage is None or done is None or not self._there(done):
                why = f"not finished (begun by {stage.training.holder})" if stage and stage.training else "missing"
                raise MissingStage(f'{wanted_by}stage "{name}", which is {why} in {self.run_dir}; make it with: {self.command(name)}')
            self._check_bytes(name, done, wanted_by)
            reason = None if allow_stale else _stale_reason(name, stages)
            if reason:
                raise StaleStage(
                    f'{wanted_by}stage "{name}", which is stale in {self.run_dir} because {reason}; '
                    f"use it all the same with --allow-stale true, or train it again with: {self.command(name)}"
                )
            found[name] = done
        return found

    def _check_bytes(self, name: str, done: Finished, wanted_by: str) -> None:
        problems, files = self._compare(done, fresh=False)
        if problems:
            told = f'{wanted_by}stage "{name}", but {problems[0]}'
            raise ChangedStage(f"{told}; restore the file, or train the stage again with: {self.command(name, fresh=True)}")
        if files != done.files:
            self._remember(name, done, files)

    def _compare(self, done: Finished, fresh: bool) -> tuple[list[str], dict[str, FileRecord]]:
        """Problems of an artifact's files, and the records of those that are right as they lie there now."""
        problems: list[str] = []
        files: dict[str, FileRecord] = {}
        for name, record in done.files.items():
            path = self.run_dir / done.path / name
            known = not fresh and path.is_file() and _record(path, record.sha256) == record
            problem = None if known else file_problem(path, record.sha256, record.bytes, fresh=fresh)
            if problem:
                problems.append(problem)
            else:
                files[name] = _record(path, record.sha256)
        return problems, files

    def _remember(self, name: str, done: Finished, files: dict[str, FileRecord]) -> None:
        """Keep the new times of unchanged files (a run that was copied), so that they are not read each time."""
        # Only a memory: where the run may not be written, or is held, the files are read again next time.
        with contextlib.suppress(OSError, LockedManifest), self._edit() as stages:
            if stages[name].artifact == done:
                stages[name] = dataclasses.replace(stages[name], artifact=dataclasses.replace(done, files=files))

    @contextlib.contextmanager
    def _edit(self) -> Iterator[dict[str, Stage]]:
        with _locked(self.run_dir / "manifest.lock"):
            stages = self.stages()
            yield stages
            plain = {name: dataclasses.asdict(stages[name]) for name in in_order(stages)}
            for record in plain.values():
                del record["name"]
            write_whole(self.path, (json.dumps({"format": FORMAT, "stages": plain}, indent=2) + "\n").encode())


def _stale_reason(stage: str, stages: Mapping[str, Stage]) -> str | None:
    """Why a stage's artifact is stale (None: it is not), by the hashes of its parents and of theirs."""
    found = stages.get(stage)
    if found is None or found.artifact is None:
        return None
    for parent, sha256 in found.artifact.parents.items():
        now = stages[parent].artifact if parent in stages else None
        if now is None or now.sha256 != sha256:
            is_now = now.sha256[:12] if now else "missing"
            return f'its parent "{parent}" has changed since ({is_now}, was {sha256[:12]})'
    for parent in found.artifact.parents:
        if _stale_reason(parent, stages):
            return f'its parent "{parent}" is stale'
    return None


def _record(path: Path, sha256: str) -> FileRecord:
    stat = path.stat()
    return FileRecord(sha256, stat.st_size, stat.st_mtime_ns)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---- Looking at a run ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StatusRow:
    """One stage as `status` shows it."""

    stage: str
    kind: str
    state: State
    sha256: str | None
    """Of the weights; None where there are none."""
    parents: dict[str, str]
    time: str | None
    """When it was finished, or since when it is in training."""
    command: str
    """What to type next; empty where nothing is to be done."""


def status_rows(run_dir: str | Path, stages: Sequence[str] = ("vae", "base")) -> list[StatusRow]:
    """State of the stages of a run, in order: those of the manifest, and those of `stages` that are not there yet; any base is a base.

    Reads no weights.
    """
    manifest = Manifest.open(run_dir)
    found = manifest.stages()
    rows = []
    kinds = {kind_of(name) for name in found}
    for name in in_order([*found, *(name for name in stages if name not in found and (kind_of(name) != "base" or "base" not in kinds))]):
        stage = found.get(name, Stage(name, kind_of(name)))
        state = manifest._state(name, found)
        done = stage.artifact if state != "missing" else None
        when = stage.training.holder.time if stage.training else done.finished if done else None
        command = "" if state == "done" else manifest.command(name)
        sha256, parents = (done.sha256, done.parents) if done else (None, {})
        rows.append(StatusRow(name, stage.kind, state, sha256, parents, when, command))
    return rows


def render_status(run_dir: str | Path, stages: Sequence[str] = ("vae", "base")) -> Table:
    """`status_rows` as a table for the terminal."""
    colours = {"missing": "dim", "training": "cyan", "done": "green", "stale": "yellow"}
    table = Table(title=f"{run_dir}", title_justify="left")
    for column in ("stage", "kind", "state", "weights", "trained from", "time (UTC)", "next"):
        table.add_column(column)
    for row in status_rows(run_dir, stages):
        parents = ", ".join(f"{parent} {sha256[:12]}" for parent, sha256 in row.parents.items())
        state = f"[{colours[row.state]}]{row.state}[/]"
        table.add_row(row.stage, row.kind, state, (row.sha256 or "")[:12], parents, (row.time or "")[:19], row.command)
    return table


def verify_run(run_dir: str | Path) -> list[str]:
    """Read every byte of every artifact of a run and follow the chain; one sentence a problem, none: all is well.

    Raises ManifestError where there is no run.
    """
    manifest = Manifest.open(run_dir)
    if not manifest.path.is_file():
        runs = sorted({str(path.parent) for folder in (manifest.run_dir.parent, RUNS) for path in folder.glob("*/manifest.json")})
        raise ManifestError(
            f"{manifest.run_dir} is no run, it has no manifest.json; there are: {', '.join(runs) or 'none'}. "
            "Type: python -m walt_pl verify --run RUN (make verify EXP=shapes)"
        )
    stages = manifest.stages()
    problems: list[str] = []
    for name, stage in stages.items():
        if stage.artifact is None:
            continue
        if not manifest._there(stage.artifact):
            problems.append(f'stage "{name}" has no artifact in {manifest.run_dir / stage.artifact.path}: {manifest.command(name)}')
            continue
        changed, _ = manifest._compare(stage.artifact, fresh=True)
        problems += [f'stage "{name}": {problem}: restore the file, or {manifest.command(name, fresh=True)}' for problem in changed]
        reason = _stale_reason(name, stages)
        if reason:
            problems.append(f'stage "{name}" is stale because {reason}: {manifest.command(name)}')
    return problems


# ---- The lock --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    deadline = time.monotonic() + LOCK_WAIT
    while (holder := _take(path)) is not None:
        if time.monotonic() > deadline:
            raise LockedManifest(f"{path} is held by {holder}: wait for it, or remove the file if that process is gone")
        time.sleep(0.05)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take(path: Path) -> Holder | str | None:
    """Try to take the lock once: None if it is ours now, else who holds it."""
    mine = json.dumps(dataclasses.asdict(Holder.here()))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(mine)
        return None
    except FileExistsError:
        pass
    try:
        with path.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two that find the same dead holder take over one after the other
            holder = _holder(file.read())
            dead = holder.alive() is False if holder else time.time() - os.fstat(file.fileno()).st_mtime > 1.0
            if not dead or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return holder or "a process that has not said its name yet"
            told = f"{path} was held by {holder or 'a process without a name'}, which is gone: taken over"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
            file.seek(0)
            file.truncate()
            file.write(mine)
        return None
    except FileNotFoundError:
        return "a process that let go of it just now"


def _holder(text: str) -> Holder | None:
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _born(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None for one that has ended, and where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
