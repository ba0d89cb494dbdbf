"""Train and measure one row of the paper's tables with one seed: a process of `walt paper` (``python -m walt_pl.cli.paper_row``)."""

import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from walt_pl.cli.clock import Clock
from walt_pl.cli.function_command import call
from walt_pl.cli.main import run_command
from walt_pl.cli.run_fit import run_fit
from walt_pl.evaluation.program import machine
from walt_pl.files import write_whole
from walt_pl.lock import now
from walt_pl.media.contact_sheet import captioned_grid, contact_sheet
from walt_pl.media.writing import write_image
from walt_pl.paper.measure_table import MEASURES
from walt_pl.paper.measured import Measured
from walt_pl.paper.record import FORMAT, Record, RecordError, code_is_changed, picture_path, read_record, read_records, write_record
from walt_pl.paper.row import Row, Training, find_row
from walt_pl.paper.rows import ROWS
from walt_pl.removal import describe_left, remove_own
from walt_pl.runs.artifact_writing import code_revision
from walt_pl.runs.card import read_card
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.progress import TrainingProgress
from walt_pl.runs.run_files import RUN_FILES

SHORT_STEPS = 40
"""Steps of every training of a short run."""
SHORT_WARMUP = 4
"""Steps of warm-up of a short run. A slow row has few steps in the default's time, and they have to be more than these."""
SHOWN = 6
"""Clips of a picture. A measure of guidance scales gives one for each of five."""


@dataclass(frozen=True)
class Places:
    """Folders and files of a command, and its options that rows depend on."""

    experiment: Path
    run: Path
    vae: Path
    index: Path
    wide_index: Path
    out: Path
    short: bool
    jobs: int

    def folder(self, row: Row, seed: int) -> Path:
        """Return the run of a row and a seed."""
        return self.run / row.folder / f"{row.name}-s{seed}"

    def shared(self, row: Row) -> Path:
        """Return the run of a row's trainings that serve all seeds."""
        return self.run / "shared" / row.name

    def index_of(self, row: Row) -> Path:
        """Return the index of the set that a row is trained and measured on."""
        return self.wide_index if row.wide else self.index


def paper_row(
    name: str,
    seed: int,
    shared: bool,
    experiment: str,
    run: str,
    vae: str,
    index: str,
    wide_index: str,
    out: str,
    short: bool,
    jobs: int,
) -> None:
    """Train and measure a row with a seed, and write its file; or train what its seeds share.

    Args:
        name: name of the row.
        seed: seed of its trainings.
        shared: train what all seeds share, and measure nothing.
        experiment: folder of the stages' files.
        run: folder of the trainings.
        vae: artifact of the autoencoder.
        index: index of the embedded set.
        wide_index: index of the embedded set of 128 rows x 224 columns.
        out: folder of the page.
        short: take fewer steps and cases.
        jobs: rows side by side, for the record.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("paper: terminated; the same command goes on"))
    places = Places(Path(experiment), Path(run), Path(vae), Path(index), Path(wide_index), Path(out), short, jobs)
    row = find_row(name, ROWS)
    if shared:
        for training in row.trainings:
            if training.shared:
                _train(training, row, seed, places.shared(row), places)
    else:
        run_row(row, seed, places)


def run_row(row: Row, seed: int, places: Places) -> None:
    """Train and measure a row with a seed, and write its file."""
    folder = places.folder(row, seed)
    _begin(row, seed, places)
    for training in row.trainings:
        if not training.shared:
            _train(training, row, seed, folder, places)
    clock = Clock(folder / "seconds.json")
    clock.seconds.pop("measuring", None)  # measured anew
    with clock.counts("measuring"):
        # Seeds take other noise: each clip of a measure adds 1.
        measured = MEASURES[row.measure](folder, places.index_of(row), 1000 * seed, places.short)
    _note_memory(folder)
    picture = measured.clips is not None and seed == row.seeds[0]
    if picture:
        _draw(measured, places.out / picture_path(row))
    record = _describe(row, seed, places, measured, picture)
    write_record(places.out, row, record)
    print(f"paper: {row.name} of seed {seed} is measured", flush=True)


# ---- Training ----------------------------------------------------------------------------------------------------------


def _begin(row: Row, seed: int, places: Places) -> None:
    """Adopt the stages that a row's run does not train itself. A run with others in their place is removed first.

    Raises:
        ValueError: a stage to adopt is missing, or there are files in that run that are none of a training.
    """
    folder, adopted = places.folder(row, seed), {} if row.has_own_autoencoder else {"vae": places.vae}
    for name, stage in row.adopts:
        source = places.folder(find_row(name, ROWS), seed)
        if Manifest.open(source).state(stage) != "done":
            told = f"{row.name} takes the stage {stage} of {source}, which is not done"
            raise ValueError(f"paper: {told}: run the row {name} first, and remove its file if it has one")
        adopted[stage] = source / stage
    adopted |= {training.stage: places.shared(row) / training.stage for training in row.trainings if training.shared}
    before = {stage: Manifest.open(folder).sha256(stage) for stage in adopted}
    if others := [stage for stage, path in adopted.items() if before[stage] not in (None, read_card(path)["sha256"])]:
        print(f"paper: {folder} is of another stage {others[0]} and trained anew: the rows of a table share theirs", flush=True)
        if left := remove_own(folder, RUN_FILES):
            raise ValueError(f"paper: {describe_left(left)} is no file of a training: move it away, and type the command again")
    for stage, path in adopted.items():
        Manifest.open(folder).adopt(stage, path)


def _train(training: Training, row: Row, seed: int, folder: Path, places: Places) -> None:
    """Train a stage of a row unless it is done."""
    if Manifest.open(folder).state(training.stage) == "done":
        return
    files = [f"{training.stage}.yaml", *training.overlays]
    words = [word for file in files for word in ("--config", str(places.experiment / file))]
    words += ["--run", str(folder), "--data.index", str(places.index_of(row))]
    if training.init:
        words += ["--init", str(Manifest.open(folder).folder(training.init))]
    # Each on its own: a file may set one of them.
    words += [word for key in ("seed_everything", "data.seed", "model.seed") for word in (f"--{key}", str(seed))]
    if (steps := _choose_steps(training, row, seed, places)) is not None:
        words += ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps)]
    if places.short:
        words += ["--model.warmup_steps", str(SHORT_WARMUP)]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with Clock(folder / "seconds.json").counts(training.stage):
            run_fit(words, f"paper: stage {training.stage} of {row.name}, seed {seed}")
    finally:
        _note_memory(folder)


def _choose_steps(training: Training, row: Row, seed: int, places: Places) -> int | None:
    """Return the steps of a training; None for those of its files."""
    if training.time_of:
        return _steps_in_time(training, row, seed, places)
    return SHORT_STEPS if places.short else training.steps


def _steps_in_time(training: Training, row: Row, seed: int, places: Places) -> int:
    """Return the steps that take the time of another row's training, by the seconds a step of each row's fastest seed.

    The fastest counts, since other programs on the machine only make a training slower.

    Raises:
        ValueError: one of the two rows is not measured, or their machines differ.
    """
    sources, seconds = [], []
    for name in (training.time_of, training.pace_of):
        source = find_row(name, ROWS)
        found = read_record(places.out, source, seed)
        if found is None:
            raise ValueError(f"paper: the steps of {row.name} follow from {name} of seed {seed}, which is not measured: add it to --only")
        alike = [record for record in read_records(places.out, [source]).values() if _conditions(record) == _conditions(found)]
        sources.append(found)
        seconds.append(min(record.seconds_a_step[training.stage] for record in alike))
    time, pace = sources
    if _conditions(time) != _conditions(pace):
        told = f"{training.time_of} and {training.pace_of} of seed {seed} were trained on different machines or with different --jobs"
        raise ValueError(f"paper: {told}, so that {row.name} cannot take equal time: remove their files and train them anew")
    return max(SHORT_WARMUP + 1, round(time.steps[training.stage] * seconds[0] / seconds[1]))


def _conditions(record: Record) -> tuple[str, str, int]:
    """Return all that the seconds of a step depend on beside the row."""
    return record.machine, record.device, record.jobs


# ---- Record ------------------------------------------------------------------------------------------------------------


def _describe(row: Row, seed: int, places: Places, measured: Measured, picture: bool) -> Record:
    """Return the record of a row that is measured."""
    folder = places.folder(row, seed)
    manifest = Manifest.open(folder)
    seconds = Clock(folder / "seconds.json").seconds
    own = {training.stage: places.shared(row) if training.shared else folder for training in row.trainings}
    progress = {stage: TrainingProgress.read(place / "training" / stage) for stage, place in own.items()}
    hashes = {stage: manifest.sha256(stage) for stage in manifest.stages()}
    return Record(
        format=FORMAT,
        row=row.name,
        table=row.table,
        seed=seed,
        short=places.short,
        figures=dict(measured.figures),
        steps={stage: int(read_card(place / stage)["steps"]) for stage, place in own.items()},
        seconds_a_step={stage: 1 / found.steps_per_second for stage, found in progress.items() if found and found.steps_per_second},
        minutes={
            "training": round(sum(value for part, value in seconds.items() if part != "measuring") / 60, 2),
            "measuring": round(seconds["measuring"] / 60, 2),
        },
        peak_gib=round(_read_memory(folder) / 2**20, 2),
        machine=machine(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        threads=torch.get_num_threads(),
        jobs=places.jobs,
        commit=(code_revision() or "").removesuffix("-dirty") or None,
        dirty=code_is_changed(),
        date=now(),
        stages={stage: sha256 for stage, sha256 in hashes.items() if sha256},
        picture=picture,
    )


def _note_memory(folder: Path) -> None:
    """Keep the largest resident memory of this process and its trainings, over all starts, in KiB."""
    here = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    write_whole(folder / "peak_kib.txt", f"{max(here, _read_memory(folder))}\n".encode())


def _read_memory(folder: Path) -> int:
    """Return what `_note_memory` has kept; 0 for nothing.

    Raises:
        RecordError: the file is damaged.
    """
    path = folder / "peak_kib.txt"
    if not path.exists():
        return 0
    text = path.read_text(encoding="utf-8")
    if not text.strip().isdecimal():
        raise RecordError(f"{path} is no number of KiB: remove it, and type the command again")
    return int(text)


def _draw(measured: Measured, path: Path) -> None:
    """Write a small picture of a row's first clips, or images."""
    assert measured.clips is not None
    clips, captions = measured.clips[:SHOWN], measured.captions[:SHOWN]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, captioned_grid(clips, captions)[0] if clips.shape[2] == 1 else contact_sheet(clips, captions, side=320))


def run(words: Sequence[str]) -> None:
    """Run the words of the command line."""
    call(paper_row, words)


if __name__ == "__main__":
    run_command("paper_row", sys.argv[1:])
