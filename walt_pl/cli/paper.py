"""``make paper``: the paper's tables on the embedded set, row by row (docs/RESULTS.md).

Every row and seed is an ordinary run in its own folder, ``RUN/TABLE/NAME-sSEED``. Its result is a JSON file beside the page. A row with a
result is not run again, and an interrupted one goes on from its checkpoint.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from walt_pl.cli.function_command import call
from walt_pl.cli.paper_jobs import Job, end_by_signal, list_jobs, run_jobs, start_job
from walt_pl.files import read_start, write_whole
from walt_pl.lock import hold_lock
from walt_pl.paper.page import TITLE, render
from walt_pl.paper.plots import draw_plots
from walt_pl.paper.record import read_record, read_records, record_path
from walt_pl.paper.row import Row, find_row
from walt_pl.paper.rows import ROWS
from walt_pl.runs.card import read_card
from walt_pl.runs.experiment_files import find_experiment
from walt_pl.runs.manifest import Manifest

PAGE = "RESULTS.md"


def paper(
    experiment: str = "experiments/shapes",
    run: str | None = None,
    vae: str = "runs/shapes/vae",
    only: str | None = None,
    seeds: str | None = None,
    short: bool = False,
    jobs: int | None = None,
    index: str = "data/shapes/index.parquet",
    wide_index: str = "data/shapes_9x16/index.parquet",
    out: str | None = None,
) -> None:
    """Train and measure every row of the paper's tables on the embedded set, and write RESULTS.md and its plots.

    A row that has a result is not run again. An interrupted command resumes with the rows and steps where it stopped.

    Args:
        experiment: folder with base.yaml, vae.yaml and ablations/.
        run: folder of the trainings; runs/paper, or runs/paper_short with --short.
        vae: artifact of the autoencoder that the rows share.
        only: rows to run, e.g. default,patch_1; all when not given.
        seeds: seeds to run, e.g. 0,1; those of each row when not given.
        short: one seed, 40 steps a training, an eighth of the cases and no rows of causes; the page lies in the folder of the trainings.
        jobs: rows side by side, each with its share of the cores; 2 on a CPU with two cores or more, 1 on a GPU when not given.
        index: index of the embedded set.
        wide_index: index of the embedded set of 128 rows x 224 columns, for the rows of another aspect ratio.
        out: folder of RESULTS.md and results/; docs when not given.
    """
    found = find_experiment(Path(experiment))
    if not (found / "ablations").is_dir():
        raise ValueError(f"paper: --experiment {experiment} has no folder ablations; name experiments/shapes, or a folder made like it")
    if not Path(index).is_file():
        raise ValueError(f"paper: --index {index}: there is no such file; paint the embedded set: python -m walt_pl index shapes")
    chosen = choose_rows(only, seeds, short)
    if short and out is not None:
        raise ValueError("paper: --short keeps its page in the folder of its trainings: leave out --out")
    count = jobs if jobs is not None else (1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1))
    if count < 1:
        raise ValueError(f"paper: --jobs must be at least 1, got {count}")
    folder = Path(run or ("runs/paper_short" if short else "runs/paper"))
    page = folder if short else Path(out or "docs")
    autoencoder = Manifest.open(Path(vae).parent, found).usable([Path(vae).name])[Path(vae).name]
    if any(row.wide for row, _ in chosen) and not Path(wide_index).is_file():
        paint = f"python -m walt_pl index shapes --out {Path(wide_index).parent} --aspect 1.75"
        raise ValueError(f"paper: --wide-index {wide_index}: there is no such file; paint the set of another aspect ratio: {paint}")
    _check_page(page / PAGE)
    folder.mkdir(parents=True, exist_ok=True)
    page.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder / "paper.lock", wait=0):
        missing = _missing(chosen, page, str(read_card(autoencoder)["sha256"]))
        places = [str(path) for path in (found, folder, autoencoder, index, wide_index, page)]
        failed = _run(missing, count, folder, page, [*places, str(short).lower(), str(count)])
    if failed:
        raise SystemExit("\n".join(["paper: the same command runs these again:", *failed]))


def choose_rows(only: str | None, seeds: str | None, short: bool) -> list[tuple[Row, int]]:
    """Return the rows with their seeds that a command asks for.

    Raises:
        ValueError: a row is unknown, or a seed is none of its row.
    """
    # Rows of causes compare lengths of trainings, which a short run does not have.
    every = [row for row in ROWS if not short or row.table != "causes"]
    rows = [find_row(name.strip(), ROWS) for name in only.split(",")] if only else every
    known = sorted({seed for row in rows for seed in row.seeds})
    asked = known
    if seeds is not None:
        words = [word.strip() for word in seeds.split(",")]
        if unknown := [word for word in words if not word.isdecimal() or int(word) not in known]:
            raise ValueError(f"paper: --seeds has {unknown[0]}; the seeds of these rows are {', '.join(map(str, known))}")
        asked = [int(word) for word in words]
    return [(row, seed) for row in rows for seed in (row.seeds[:1] if short else row.seeds) if seed in asked]


def _missing(chosen: Sequence[tuple[Row, int]], page: Path, sha256: str) -> list[tuple[Row, int]]:
    """Return the rows without a result, and those whose result is of another autoencoder or base. The old result of those is removed."""
    missing = []
    for row, seed in chosen:
        record = read_record(page, row, seed)
        wanted = {} if row.has_own_autoencoder else {"vae": sha256}
        for name, stage in row.adopts:
            if source := read_record(page, find_row(name, ROWS), seed):
                wanted[stage] = source.stages.get(stage, "")
        others = [stage for stage, hashed in wanted.items() if record is not None and record.stages.get(stage) != hashed]
        if record is not None and not others:
            continue
        if others:
            path = record_path(page, row, seed)
            print(f"paper: {path} is of another stage {others[0]} and measured anew: the rows of a table share theirs", flush=True)
            path.unlink()
        missing.append((row, seed))
    return missing


def _run(missing: Sequence[tuple[Row, int]], count: int, folder: Path, page: Path, words: Sequence[str]) -> list[str]:
    """Run the rows without a result, and write the page after each.

    Returns:
        A sentence for each failure.
    """
    end_by_signal()
    jobs = list_jobs(missing)
    threads = max(1, (os.cpu_count() or 1) // count)
    print(f"paper: {len(jobs)} runs to do, {count} side by side, {threads} threads each", flush=True)

    def start(job: Job) -> subprocess.Popen[bytes]:
        log = folder / "logs" / f"{job.row.name}-{'shared' if job.seed is None else f's{job.seed}'}.log"
        print(f"paper: {job}: begins; its log is {log}", flush=True)
        return start_job(job, words, log, threads)

    def after(job: Job) -> None:
        print(f"paper: {job}: done", flush=True)
        write_page(page)

    write_page(page)
    failed = run_jobs(jobs, count, start, after)
    print(f"paper: look at {page / PAGE}", flush=True)
    return failed


def write_page(page: Path) -> None:
    """Write RESULTS.md and its plots from the files of results.

    Raises:
        ValueError: the page is one of another kind.
    """
    records = read_records(page, ROWS)
    _check_page(page / PAGE)
    draw_plots(records, ROWS, page)
    write_whole(page / PAGE, render(records, ROWS).encode())


def _check_page(path: Path) -> None:
    """Refuse to replace a page of another kind.

    Raises:
        ValueError: the file is no page of results.
    """
    if path.exists() and read_start(path, len(TITLE.encode())) != TITLE.encode():
        raise ValueError(f"paper: {path} is no page of results, and is not replaced: name another folder (--out)")


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt paper`."""
    call(paper, words)
