"""The manifest of a run: `runs/NAME/manifest.json` records the finished stages, their parents and the hashes of their files.

The manifest records facts: path and hash of each artifact, hashes of its parents at that time, and the process that trains. States are
derived from these facts on each request. A changed parent therefore makes its children stale without a further entry:

    missing   no artifact           training   a run has started and not finished
    done      artifact in place     stopped    a training stopped before its end; its record has the step
    stale     a parent has changed since, or is stale itself

The manifest file is written completely, under a lock that names its holder. One process of a run writes it: rank zero.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from walt_pl.files import remove_left_overs, write_whole
from walt_pl.lock import Holder, hold_lock, now
from walt_pl.plain_records import shown
from walt_pl.runs.card import (
    CARD,
    TRAIN,
    check_replaceable,
    described_sha256,
    file_problem,
    is_described_by,
    new_folder,
    old_folder,
    read_card,
    restore,
)
from walt_pl.runs.experiment_files import EXPERIMENTS, as_typed, find_experiment, has_make, record_experiment
from walt_pl.runs.manifest_records import ArtifactRecord, FileRecord, StageRecord, TrainingRecord
from walt_pl.runs.stage_names import LockedManifest, ManifestError, in_order, kind_of, parents_of
from walt_pl.runs.stop_record import StopRecord
from walt_pl.untrusted import UntrustedError, read_json

FORMAT = 1
MAX_MANIFEST_BYTES = 4 << 20
"""Bytes of manifest.json: about 2 KB for each stage."""
REMEMBERED_BYTES = 64 << 20
"""Artifacts of this size or more are not read each time after a copy of their run: the manifest gets the new times of their files. Smaller
ones are read in 0.1 s, and the manifest of a checkout stays as it was committed."""
State = Literal["missing", "training", "stopped", "done", "stale"]

RUNS = Path("runs")
"""By default experiments/EXP/STAGE.yaml is trained into runs/EXP/STAGE."""


class MissingStage(ManifestError):
    """A required stage has to be trained first."""


class ChangedStage(ManifestError):
    """The bytes of an artifact differ from those that its stage wrote."""


class StaleStage(ManifestError):
    """The parents of a stage were trained again since."""


# ---- The manifest ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """The manifest of one run folder. Every query reads the file again, so changes by other processes are seen."""

    run_dir: Path
    experiment: Path | None = None
    """Folder of the configurations of the run, if it is known. The commands in messages use it."""

    @classmethod
    def open(cls, run_dir: str | Path, experiment: Path | None = None) -> Manifest:
        """Return the manifest of a run; nothing is created.

        Raises:
            ManifestError: there is a manifest that cannot be read.
        """
        manifest = cls(Path(run_dir), experiment)
        manifest.stages()
        return manifest

    @property
    def path(self) -> Path:
        """Path of the manifest file."""
        return self.run_dir / "manifest.json"

    def stages(self) -> dict[str, StageRecord]:
        """Return the stages that were ever started, in the order of the pipeline."""
        if not os.path.lexists(self.path):
            return {}
        try:
            plain = read_json(self.path, MAX_MANIFEST_BYTES)
            if plain["format"] != FORMAT:
                raise ManifestError(
                    f"{self.path}: format version {shown(plain['format'])} is unknown here (wanted {FORMAT}); "
                    "use the version of walt_pl that wrote it"
                )
            stages = {name: StageRecord.from_json(name, record, str(self.path)) for name, record in plain["stages"].items()}
        except ManifestError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            told = error if isinstance(error, UntrustedError) else repr(error)
            raise ManifestError(f"{self.path} is not a manifest ({told}): restore it, or remove it and train again") from error
        return {name: stages[name] for name in in_order(stages)}

    def experiment_folder(self) -> Path:
        """Return the folder of the configurations of the run: the given one, a recorded one, or experiments/NAME, which may not exist."""
        found = [find_experiment(folder) for folder in self._experiments(None)]
        return next((folder for folder in found if folder.is_dir()), found[-1])

    def _experiments(self, stage: str | None) -> list[Path]:
        """Return the folders of configurations: the given one, that of a stage, those of the other stages, experiments/NAME."""
        recorded = {name: record.experiment for name, record in self.stages().items() if record.experiment is not None}
        own = [recorded[stage]] if stage in recorded else []
        given = [self.experiment] if self.experiment is not None else []
        return [*given, *map(Path, dict.fromkeys([*own, *recorded.values()])), EXPERIMENTS / self.run_dir.resolve().name]

    def state(self, stage: str) -> State:
        """Return the state of a stage, derived from the files on disk."""
        return self.state_in(stage, self.stages())

    def start(self, stage: str, parents: Mapping[str, str]) -> None:
        """Record that this process trains a stage from these parents.

        The folder of the stage is checked here, so that an error appears before the training, not when the trained weights are written.

        Args:
            stage: name of the stage.
            parents: parent stage -> sha256, as `check_parents` returns them.

        Raises:
            LockedManifest: a living process on this host trains the stage.
            ArtifactError: the folder of the stage holds something that is no part of an artifact.
        """
        kind = kind_of(stage)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        check_replaceable(self.run_dir / stage)
        with self._edit() as stages:
            before = stages.get(stage, StageRecord(stage, kind))
            self._check_free(before)
            experiment = record_experiment(self.experiment) if self.experiment else before.experiment
            stages[stage] = dataclasses.replace(before, training=TrainingRecord(Holder.here(), dict(parents)), experiment=experiment)

    def check_free(self, stage: str) -> None:
        """Check that no other process trains a stage.

        Raises:
            LockedManifest: another living process on this host trains it.
        """
        if stage in (stages := self.stages()):
            self._check_free(stages[stage])

    def _check_free(self, stage: StageRecord) -> None:
        holder = stage.training.holder if stage.training else None
        if holder and holder.pid != os.getpid() and holder.alive():
            raise LockedManifest(
                f'stage "{stage.name}" of {self.run_dir} is in training by {holder}: stop it with: kill {holder.pid}; then type the same '
                "command again"
            )

    def stop(self, stage: str, stop: StopRecord) -> None:
        """Record that the training of a stage stopped before its end. The next start clears the record."""
        with self._edit() as stages:
            training = stages[stage].training if stage in stages else None
            if training is not None:
                stages[stage] = dataclasses.replace(stages[stage], training=dataclasses.replace(training, stop=stop))

    def finish(self, stage: str, artifact: str | Path) -> None:
        """Record the artifact of a finished stage. Its hashes come from its card, so no weights are read.

        Raises:
            ArtifactError: the folder is not an artifact.
            ManifestError: the card names other parents than `start` recorded, or a file of the artifact is missing or of another size.
        """
        folder = Path(artifact)
        card = read_card(folder)
        for name, listed in card["files"].items():
            problem = file_problem(folder / name, listed["sha256"], listed["bytes"], hashed=False)
            if problem:
                raise ManifestError(f'stage "{stage}": {problem}: {self.command(stage)}')
        files = {name: _record(folder / name, listed["sha256"]) for name, listed in card["files"].items()}
        files[CARD] = _record(folder / CARD, described_sha256(folder))
        with self._edit() as stages:
            before = stages.get(stage, StageRecord(stage, kind_of(stage)))
            training = before.training
            if training and training.parents != card["parents"]:
                raise ManifestError(
                    f'the card of {folder} names parents {card["parents"]}, stage "{stage}" was started with '
                    f"{training.parents}: {self.command(stage)}"
                )
            path = Path(os.path.relpath(folder.resolve(), self.run_dir.resolve())).as_posix()
            started = training.holder.time if training else None
            done = ArtifactRecord(path, card["sha256"], card["parents"], files, started, now())
            stages[stage] = dataclasses.replace(before, kind=card["kind"], artifact=done, training=None)

    def adopt(self, stage: str, artifact: Path) -> None:
        """Use an artifact from another folder as a stage of this run, without a copy.

        It replaces an artifact that was adopted before.

        Raises:
            ArtifactError: the folder is not an artifact.
            ManifestError: the artifact is of another kind, or the run has trained this stage itself.
        """
        if artifact.resolve() == (self.run_dir / stage).resolve():
            return
        card, own = read_card(artifact), self.stages().get(stage, StageRecord(stage, kind_of(stage)))
        if card["kind"] != own.kind:
            raise ManifestError(f'{artifact} is of kind "{card["kind"]}", and the {stage} of a run is of kind "{own.kind}"')
        done = own.artifact if self.has_artifact(own.artifact) else None
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
        """Return the folder of the artifact of a stage, existing or future."""
        found = self.stages().get(stage)
        return self.run_dir / (found.artifact.path if found and found.artifact else stage)

    def sha256(self, stage: str) -> str | None:
        """Return the hash of the weights of a stage; None if there are none."""
        found = self.stages().get(stage)
        return found.artifact.sha256 if found and found.artifact else None

    def check_parents(self, stage: str, allow_stale: bool = False) -> dict[str, str]:
        """Check that the parents of a stage exist, are unchanged and (unless `allow_stale`) not stale.

        Returns:
            Parent stage -> sha256 of its weights.

        Raises:
            MissingStage: a parent has no artifact.
            ChangedStage: the bytes of a parent's artifact have changed.
            StaleStage: a parent is stale. Each message is one sentence that ends with the command to type.
        """
        found = self._require(parents_of(stage), f'stage "{stage}" needs ', allow_stale)
        return {parent: done.sha256 for parent, done in found.items()}

    def usable(self, stages: Sequence[str], allow_stale: bool = False) -> dict[str, Path]:
        """Return the artifact folders of these stages, to sample from.

        Raises:
            MissingStage: a stage has no artifact.
            ChangedStage: the bytes of an artifact have changed.
            StaleStage: a stage is stale, and `allow_stale` is false.
        """
        found = self._require(stages, "sampling needs ", allow_stale)
        return {stage: self.run_dir / done.path for stage, done in found.items()}

    def command(self, stage: str, from_scratch: bool = False) -> str:
        """Return the command that trains a stage of this run, e.g. "make train-vae EXP=shapes".

        A stage without a config file of its own, such as that of an overlay, is trained with the configuration in its artifact, else with
        that of its last start. If there is none of them, EXP stands for the experiment, which is not known.

        Args:
            stage: name of the stage.
            from_scratch: train a stage again that counts as done.
        """
        typed = [as_typed(folder / f"{stage}.yaml") for folder in self._experiments(stage)]
        config = next((path for path in typed if find_experiment(path).is_file()), None)
        name = config.resolve().parent.name if config else ""
        run = "" if config and self.run_dir.resolve() == (RUNS / name).resolve() else f"--run {shlex.quote(str(self.run_dir))}"
        target = {"vae": "train-vae", "base": "train-base"}.get(kind_of(stage))  # `train-sr` trains all super-resolution stages
        if config and target and has_make() and config.is_file() and config.resolve().parent == (EXPERIMENTS / name).resolve():
            words = [f"make {target} EXP={name}", f"STAGE={stage}" if "_" in stage else "", "FRESH=1" if from_scratch else ""]
            words.append(f'ARGS="{run}"' if run else "")
        else:
            kept = self._stored_config(stage)
            said = config is None and kept.is_file()  # the stored configuration also has from_scratch
            config = config or (kept if said else EXPERIMENTS / "EXP" / f"{stage}.yaml")
            again = f"--from_scratch {str(from_scratch).lower()}" if from_scratch or said else ""
            words = [f"python -m walt_pl fit --config {shlex.quote(str(config))}", run, again]
        return " ".join(word for word in words if word)

    def advice(self, stage: str, from_scratch: bool = False) -> str:
        """Return `command` for a message, with a warning where it takes a stored configuration."""
        command = self.command(stage, from_scratch)
        return "; ".join(filter(None, (command, stored_note([command]))))

    def _stored_config(self, stage: str) -> Path:
        """Return the configuration in the artifact of a stage, else that of the last start of its training. It may not exist."""
        folder, own = self.folder(stage), self.run_dir / stage
        # An artifact of another run is not trained again from here, and may be a stranger's.
        kept = (folder if folder.resolve().is_relative_to(self.run_dir.resolve()) else own) / TRAIN
        starts = (self.run_dir / "training" / stage / "logs").glob("version_*/config.yaml")
        last = max(starts, key=lambda path: (len(path.parent.name), path.parent.name), default=kept)  # clocks may be set back
        return kept if kept.is_file() else last

    def problems(self, stage: str, fresh: bool = False) -> list[str]:
        """Compare the files of a finished stage with their records.

        Args:
            stage: name of the stage.
            fresh: read the bytes of all files. Otherwise only files with another size or time are read.

        Returns:
            One sentence a file that differs.
        """
        done = self.stages()[stage].artifact
        return [] if done is None else [problem for problem in self.compare(done, fresh)[0] if problem]

    def state_in(self, stage: str, stages: Mapping[str, StageRecord]) -> State:
        """Return the state of a stage, with the stages of the manifest already read."""
        found = stages.get(stage)
        if found is not None and found.training is not None:
            return "stopped" if found.training.stop else "training"
        if found is None or not self.has_artifact(found.artifact):
            return "missing"
        return "stale" if stale_reason(stage, stages) else "done"

    def has_artifact(self, done: ArtifactRecord | None) -> bool:
        """Return whether the folder of an artifact has a card, after recovery from a crash."""
        if done is None:
            return False
        folder = self.run_dir / done.path
        restore(folder)
        return has_card(folder)

    def _require(self, needed: Sequence[str], wanted_by: str, allow_stale: bool) -> dict[str, ArtifactRecord]:
        stages = self.stages()
        found: dict[str, ArtifactRecord] = {}
        for name in in_order(needed):  # parents first: the first error names the first stage to train
            stage = stages.get(name)
            done = stage.artifact if stage else None
            if stage is None or done is None or not self.has_artifact(done):
                begun = stage.training if stage else None
                why = "missing" if begun is None else str(begun.stop or f"not finished (begun by {begun.holder})")
                raise MissingStage(f'{wanted_by}stage "{name}", which is {why} in {self.run_dir}; make it with: {self.advice(name)}')
            self._check_bytes(name, done, wanted_by)
            reason = None if allow_stale else stale_reason(name, stages)
            if reason:
                raise StaleStage(
                    f'{wanted_by}stage "{name}", which is stale in {self.run_dir} because {reason}; '
                    f"use it all the same with --allow-stale true, or train it again with: {self.advice(name)}"
                )
            found[name] = done
        return found

    def _check_bytes(self, name: str, done: ArtifactRecord, wanted_by: str) -> None:
        problems, files = self.compare(done, fresh=False)
        if problems:
            told = f'{wanted_by}stage "{name}", but {problems[0]}'
            raise ChangedStage(f"{told}; restore the file, or train the stage again with: {self.advice(name, from_scratch=True)}")
        if files != done.files and sum(record.bytes for record in files.values()) >= REMEMBERED_BYTES:
            self._remember(name, done, files)

    def compare(self, done: ArtifactRecord, fresh: bool) -> tuple[list[str], dict[str, FileRecord]]:
        """Compare the files of an artifact with their records.

        Returns:
            The problems, and the present records of the files that are right.
        """
        problems: list[str] = []
        files: dict[str, FileRecord] = {}
        for name, record in done.files.items():
            path = self.run_dir / done.path / name
            known = not fresh and path.is_file() and _record(path, record.sha256) == record
            problem = None if known else file_problem(path, record.sha256, record.bytes, fresh=fresh)
            if problem and not (name == CARD and is_described_by(path.parent, record.sha256)):
                problems.append(problem)
            else:
                files[name] = _record(path, record.sha256)
        return problems, files

    def _remember(self, name: str, done: ArtifactRecord, files: dict[str, FileRecord]) -> None:
        """Record the new times of unchanged files (of a copied run), so that they are not read each time."""
        # This is only a cache: if the run is read-only or locked, the files are read again next time.
        with contextlib.suppress(OSError, LockedManifest), self._edit() as stages:
            if stages[name].artifact == done:
                stages[name] = dataclasses.replace(stages[name], artifact=dataclasses.replace(done, files=files))

    @contextlib.contextmanager
    def _edit(self) -> Iterator[dict[str, StageRecord]]:
        """Yield the stages under the lock, and write them back at the end of the context."""
        with hold_lock(self.run_dir / "manifest.lock", refusal=LockedManifest):
            remove_left_overs(self.path)
            stages = self.stages()
            yield stages
            plain = {name: dataclasses.asdict(stages[name]) for name in in_order(stages)}
            for record in plain.values():
                del record["name"]
                if record["experiment"] is None:
                    del record["experiment"]
            write_whole(self.path, (json.dumps({"format": FORMAT, "stages": plain}, indent=2) + "\n").encode())


def has_card(folder: Path) -> bool:
    """Return whether there is an artifact, also between the two renames of its replacement. Nothing is repaired."""
    # The folder comes again at the end: it may be renamed to its place while the others are looked up.
    return any((place / CARD).exists() for place in (folder, new_folder(folder), old_folder(folder), folder))


def stored_note(commands: Iterable[str]) -> str:
    """Return a warning where a command takes a stored configuration, which may name any class; empty for none."""
    words = [word for command in commands for word in shlex.split(command)]
    stored = [word for word in words if re.search(rf"/({re.escape(TRAIN)}|version_\d+/config\.yaml)$", word)]
    return f"read {stored[0]} first if the run is not yours: fit runs the classes that it names" if stored else ""


def stale_reason(stage: str, stages: Mapping[str, StageRecord]) -> str | None:
    """Return why the artifact of a stage is stale, by the hashes of its parents and of their parents.

    Returns:
        The reason; None if the artifact is not stale.
    """
    found = stages.get(stage)
    if found is None or found.artifact is None:
        return None
    for parent, sha256 in found.artifact.parents.items():
        now = stages[parent].artifact if parent in stages else None
        if now is None or now.sha256 != sha256:
            is_now = now.sha256[:12] if now else "missing"
            return f'its parent "{parent}" has changed since ({is_now}, was {sha256[:12]})'
    others = {name: record for name, record in stages.items() if name != stage}  # a stranger's stages may be parents of each other
    for parent in found.artifact.parents:
        if stale_reason(parent, others):
            return f'its parent "{parent}" is stale'
    return None


def _record(path: Path, sha256: str) -> FileRecord:
    stat = path.stat()
    return FileRecord(sha256, stat.st_size, stat.st_mtime_ns)
