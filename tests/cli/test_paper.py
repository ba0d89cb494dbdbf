"""`walt paper` on tiny models: rows, seeds, going on, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.helpers.adopted_vae import adopt_tiny_vae
from tests.helpers.environment import ROOT, Walt
from tests.helpers.paper_records import made_record
from walt_pl.blocks.frames import FrameLayout
from walt_pl.cli import paper as paper_command
from walt_pl.cli import paper_row
from walt_pl.cli.main import main
from walt_pl.cli.paper import _missing, choose_rows
from walt_pl.cli.paper_jobs import Job
from walt_pl.cli.paper_row import Places, _steps_in_time, run_row
from walt_pl.data.index import Index
from walt_pl.diffusion.rng import PerSampleRNG
from walt_pl.lock import hold_lock
from walt_pl.paper.measured import Measured
from walt_pl.paper.measures.prompts import TIMESTEPS, denoising_losses, measure_prompts
from walt_pl.paper.measures.text_use import exchange_shapes, measure_text_use
from walt_pl.paper.page import render
from walt_pl.paper.record import read_records, write_record
from walt_pl.paper.row import TABLES, Row, Training, find_row
from walt_pl.paper.rows import ABLATIONS, ROWS
from walt_pl.runs.card import TRAIN, read_card
from walt_pl.runs.manifest import Manifest
from walt_pl.sampling.cascade import Cascade, SamplingConfig
from walt_pl.sampling.stage_sampler import text_condition
from walt_pl.shapes.evaluation import default_steps, read_clips, request_captions, sample_latents, score_words

TINY_BASE = {
    "model": {
        "class_path": "stages.base.BaseStage",
        "init_args": {"warmup_steps": 1, "denoiser": {"width": 32, "depth": 2, "num_heads": 2}},
    },
    "data": {"videos_per_batch": 2, "val_videos": 4},
    "trainer": {"max_steps": 2, "val_check_interval": 2, "precision": "32-true"},
}


class Tables:
    """Folders of a command, and its options."""

    def __init__(self, folder: Path, index: Path) -> None:
        self.experiment = folder / "experiment"
        self.vae = folder / "shapes" / "vae"
        self.run = folder / "paper"
        self.out = folder / "docs"
        self.index = index
        self.wide_index = index.parent / "wide.parquet"
        self.said = ""

    @property
    def words(self) -> list[str]:
        places = {"experiment": self.experiment, "run": self.run, "vae": self.vae, "index": self.index}
        places |= {"wide-index": self.wide_index, "out": self.out}
        return ["paper", *(word for name, path in places.items() for word in (f"--{name}", str(path)))]

    def result(self, name: str) -> Path:
        return self.out / "results" / "ablations" / f"{name}-s1.json"


@pytest.fixture(scope="module")
def tables(walt: Walt, painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """Two rows of one seed, side by side."""
    tables = Tables(tmp_path_factory.mktemp("paper"), painted)
    shutil.copytree(ROOT / "experiments" / "shapes", tables.experiment)
    (tables.experiment / "ablations" / "budget.yaml").write_text(yaml.safe_dump(TINY_BASE))
    adopt_tiny_vae(tables.vae.parent)
    tables.said = walt(*tables.words, "--only", "default,no_qk_norm", "--seeds", "1", "--jobs", "2").said
    return tables


def test_paper_trains_and_measures_each_row_and_writes_the_page(tables: Tables, painted: Path) -> None:
    records = read_records(tables.out, ROWS)
    assert list(records) == [("default", 1), ("no_qk_norm", 1)], tables.said
    for name in ("default", "no_qk_norm"):
        record, folder = records[name, 1], tables.run / "ablations" / f"{name}-s1"
        assert record.stages == {"vae": read_card(tables.vae)["sha256"], "base": read_card(folder / "base")["sha256"]}
        assert record.steps == {"base": 2} and record.seconds_a_step["base"] > 0 and record.threads == record.jobs // 2 == 1
        assert 0.1 < record.peak_gib < 64 and record.minutes["training"] > record.minutes["measuring"] > 0
        assert set(record.figures) == {"colour", "motion", "shape", "all", "unseen_pairs", "iou", "steadiness", "loss"}
        assert not record.picture, "pictures are of seed 0"
        config = yaml.safe_load((folder / "base" / TRAIN).read_text())
        assert (config["seed_everything"], config["data"]["seed"], config["model"]["init_args"]["seed"]) == (1, 1, 1)
    assert (tables.out / "RESULTS.md").read_text() == render(records, ROWS)
    assert (tables.out / "results" / "ablations.png").is_file()
    assert not (tables.run / "ablations" / "default-s1" / "cache").exists(), "rows share the latents of their autoencoder"


def test_paper_goes_on_with_the_row_that_lacks_its_file(
    tables: Tables, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The row runs in this process, which has imported what a process of its own would."""

    def run_here(job: Job, words: Sequence[str], log: Path, threads: int) -> "subprocess.Popen[bytes]":
        paper_row.run([job.row.name, str(job.seed), "false", *words])
        return subprocess.Popen([sys.executable, "-S", "-c", ""])

    monkeypatch.setattr(paper_command, "start_job", run_here)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    before = {name: tables.result(name).stat().st_mtime_ns for name in ("default", "no_qk_norm")}
    tables.result("default").unlink()
    trained = read_card(tables.run / "ablations" / "default-s1" / "base")["sha256"]
    main([*tables.words, "--only", "default,no_qk_norm", "--seeds", "1"])
    said = capfd.readouterr().out
    assert "1 runs to do" in said and "no_qk_norm" not in said
    assert tables.result("no_qk_norm").stat().st_mtime_ns == before["no_qk_norm"]
    record = read_records(tables.out, ROWS)["default", 1]
    assert record.stages["base"] == trained, "the stage was done and is not trained again"


def test_paper_second_command_on_one_folder_is_refused(tables: Tables) -> None:
    before = set(threading.enumerate())
    with hold_lock(tables.run / "paper.lock"), pytest.raises(SystemExit, match=r"paper\.lock is held by process \d+"):
        main([*tables.words, "--only", "default", "--seeds", "1"])
    assert set(threading.enumerate()) <= before


def test_paper_never_replaces_a_page_of_another_kind(tables: Tables, tmp_path: Path) -> None:
    (tmp_path / "RESULTS.md").write_text("# Mine\n")
    tables.out, before = tmp_path, tables.out
    try:
        with pytest.raises(SystemExit, match=r"RESULTS\.md is no page of results, and is not replaced"):
            main([*tables.words, "--only", "default", "--seeds", "1"])
    finally:
        tables.out = before
    assert (tmp_path / "RESULTS.md").read_text() == "# Mine\n"


def test_paper_tells_failures_at_the_end_and_runs_the_other_rows(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row that fails and the row that needs it are told; the row that has its file is not run."""
    started = []

    def fail(job: Job, words: Sequence[str], log: Path, threads: int) -> "subprocess.Popen[bytes]":
        started.append((str(job), list(words), log, threads))
        return subprocess.Popen([sys.executable, "-S", "-c", f"import sys; sys.exit({int(job.row.name == 'patch_1')})"])

    monkeypatch.setattr(paper_command, "start_job", fail)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main([*tables.words, "--only", "patch_1,patch_1_equal_time,default,video_only", "--seeds", "1", "--jobs", "1"])
    finally:
        signal.signal(signal.SIGTERM, before)
    failure = "patch_1, seed 1 failed (exit code 1)"
    told = [failure, f"patch_1_equal_time, seed 1 was not run, since {failure}"]
    assert str(ended.value).split("\n") == ["paper: the same command runs these again:", *told]
    places = [str(path) for path in (tables.experiment, tables.run, tables.vae, tables.index, tables.wide_index, tables.out)]
    cores = os.cpu_count()
    assert started == [
        (f"{name}, seed 1", [*places, "false", "1"], tables.run / "logs" / f"{name}-s1.log", cores) for name in ("patch_1", "video_only")
    ]


def test_paper_result_of_another_autoencoder_is_measured_anew(tables: Tables, tmp_path: Path) -> None:
    own = find_row("latent_channels_4", ROWS)
    for row in (ABLATIONS[0], own):
        write_record(tmp_path, row, made_record(row, 0))
    assert _missing([(ABLATIONS[0], 0), (own, 0)], tmp_path, "a" * 64) == []
    assert _missing([(ABLATIONS[0], 0), (own, 0)], tmp_path, "c" * 64) == [(ABLATIONS[0], 0)]
    assert list(read_records(tmp_path, ROWS)) == [("latent_channels_4", 0)]


# ---- One row ------------------------------------------------------------------------------------------------------------


def places(tables: Tables, **changes: Any) -> Places:
    given = {"experiment": tables.experiment, "run": tables.run, "vae": tables.vae, "index": tables.index}
    given |= {"wide_index": tables.wide_index, "out": tables.out}
    return Places(**{**given, "short": False, "jobs": 2, **changes})


def test_steps_in_time_are_those_of_the_measured_pace(tables: Tables, tmp_path: Path) -> None:
    row = find_row("patch_1_equal_time", ROWS)
    write_record(tmp_path, ABLATIONS[0], made_record(ABLATIONS[0], 0, steps={"base": 700}, seconds_a_step={"base": 0.4}))
    with pytest.raises(ValueError, match="follow from patch_1 of seed 0, which is not measured: add it to --only"):
        _steps_in_time(row.trainings[0], row, 0, places(tables, out=tmp_path))
    patch = find_row("patch_1", ROWS)
    write_record(tmp_path, patch, made_record(patch, 0, seconds_a_step={"base": 1.0}))
    assert _steps_in_time(row.trainings[0], row, 0, places(tables, out=tmp_path)) == 280
    # Another seed had the machine to itself; a faster machine does not count.
    write_record(tmp_path, patch, made_record(patch, 1, seconds_a_step={"base": 0.8}))
    write_record(tmp_path, patch, made_record(patch, 2, seconds_a_step={"base": 0.1}, machine="another"))
    assert _steps_in_time(row.trainings[0], row, 0, places(tables, out=tmp_path)) == 350
    write_record(tmp_path, patch, made_record(patch, 0, machine="another"))
    with pytest.raises(ValueError, match="on different machines"):
        _steps_in_time(row.trainings[0], row, 0, places(tables, out=tmp_path))


def test_paper_row_of_another_autoencoder_is_removed_and_trained_anew(tables: Tables, tmp_path: Path) -> None:
    run = tmp_path / "paper"
    folder = Path(shutil.copytree(tables.run / "ablations" / "default-s1", run / "ablations" / "default-s1"))
    other = Path(shutil.copytree(tables.vae, tmp_path / "other" / "vae"))
    card = json.loads((other / "card.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert card["sha256"] == manifest["stages"]["vae"]["artifact"]["sha256"]
    manifest["stages"]["vae"]["artifact"]["sha256"] = "c" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"mine\.txt is no file of a training: move it away"):
        run_row(ABLATIONS[0], 1, places(tables, run=run, vae=other))
    assert not (folder / "base").exists() and (folder / "mine.txt").exists()


def adopter(source: str, wide: bool = False) -> Row:
    """Return a row that starts from the base of another row."""
    training = Training("base_other", init="base")
    return Row("adopter", "tasks", "adopter", (training,), "prompts", seeds=(1,), adopts=((source, "base"),), wide=wide)


class Runner:
    """Rows run in this process; trainings and measures are noted and not done."""

    def __init__(self, tables: Tables, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.places = places(tables, run=Path(shutil.copytree(tables.run / "ablations", folder / "ablations")).parent, out=folder)
        self.folder = folder / "tasks" / "adopter-s1"
        self.typed: list[list[str]] = []
        self.measured: list[tuple[Path, Path]] = []
        patch.setattr(paper_row, "run_fit", lambda words, name: self.typed.append(words))
        patch.setattr(paper_row, "MEASURES", {"prompts": self.measure})
        patch.setattr(paper_row, "_describe", lambda row, seed, *_: made_record(row, seed))

    def measure(self, run: Path, index: Path, seed: int, short: bool) -> Measured:
        self.measured.append((run, index))
        return Measured({})

    def run(self, row: Row) -> None:
        run_row(row, 1, self.places)

    def option(self, name: str) -> str:
        """Value of an option of the last training."""
        words = self.typed[-1]
        return words[words.index(name) + 1]


@pytest.fixture
def runner(tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(tables, tmp_path, monkeypatch)


def test_paper_row_adopts_a_stage_of_another_row_and_starts_from_it(runner: Runner) -> None:
    runner.run(adopter("default"))
    source = runner.places.run / "ablations" / "default-s1" / "base"
    assert Manifest.open(runner.folder).folder("base").resolve() == source.resolve()
    assert Path(runner.option("--init")).resolve() == source.resolve()
    assert runner.measured == [(runner.folder, runner.places.index)]


def test_paper_row_is_trained_and_measured_on_its_own_set(runner: Runner) -> None:
    for wide, index in ((False, runner.places.index), (True, runner.places.wide_index)):
        runner.run(adopter("default", wide))
        assert runner.option("--data.index") == str(index) and runner.measured[-1] == (runner.folder, index)


def test_paper_row_refuses_to_adopt_what_is_not_done(runner: Runner) -> None:
    with pytest.raises(ValueError, match=r"adopter takes the stage base of .*patch_1-s1, which is not done: run the row patch_1 first"):
        runner.run(adopter("patch_1"))
    assert not runner.folder.exists() and not runner.typed


def test_paper_row_of_another_base_is_removed_and_trained_anew(runner: Runner) -> None:
    runner.run(adopter("default"))
    trained = runner.folder / "training" / "base_other"
    trained.mkdir(parents=True)
    runner.run(adopter("default"))
    assert trained.exists()
    runner.run(adopter("no_qk_norm"))
    base = read_card(runner.places.run / "ablations" / "no_qk_norm-s1" / "base")["sha256"]
    assert not trained.exists() and Manifest.open(runner.folder).sha256("base") == base


def test_paper_row_whose_adopted_stage_was_trained_anew_is_measured_anew(tmp_path: Path) -> None:
    row, source = (find_row(name, ROWS) for name in ("super_resolution", "guidance"))
    write_record(tmp_path, row, made_record(row, 0))
    assert _missing([(row, 0)], tmp_path, "a" * 64) == [], "the row guidance has no result to compare with"
    write_record(tmp_path, source, made_record(source, 0))
    assert _missing([(row, 0)], tmp_path, "a" * 64) == []
    write_record(tmp_path, source, made_record(source, 0, stages={"vae": "a" * 64, "base": "c" * 64}))
    assert _missing([(source, 0), (row, 0)], tmp_path, "a" * 64) == [(row, 0)]


def test_paper_wants_the_wide_set_for_the_rows_of_another_aspect(tables: Tables) -> None:
    said = r"wide\.parquet: there is no such file; paint .*: python -m walt_pl index shapes --out .*shapes\d* --aspect 1\.75"
    with pytest.raises(SystemExit, match=said):
        main([*tables.words, "--only", "aspect_scratch"])


def test_choose_rows_takes_the_first_seed_of_a_short_run() -> None:
    short = choose_rows(None, None, short=True)
    assert {seed for _, seed in short} == {0} and {row.table for row, _ in short} == {"tasks", "ablations", "equal time"}
    assert {row.table for row, _ in choose_rows(None, None, short=False)} == {*TABLES}
    assert [(row.name, seed) for row, seed in choose_rows("patch_1,default", "0,2", short=False)] == [
        ("patch_1", 0),
        ("patch_1", 2),
        ("default", 0),
        ("default", 2),
    ]


# ---- The measure "prompts" -----------------------------------------------------------------------------------------------


def test_measure_prompts_are_the_scores_of_the_same_samples(tables: Tables) -> None:
    run = tables.run / "ablations" / "default-s1"
    cascade = Cascade.open(run, ["base"])
    captions = [entry.caption for entry in Index(tables.index, "val").videos]
    latents = sample_latents(cascade, "base", request_captions(captions, 1000), SamplingConfig(default_steps(cascade)))
    expected = score_words(cascade.decode(latents), captions)
    found = measure_prompts(run, tables.index, 1000, short=True)
    assert {name: found.figures[name].value for name in ("colour", "motion", "shape", "all")} == pytest.approx(
        {name: float(expected[name]) for name in ("colour", "motion", "shape", "all")}
    )
    assert found.figures["loss"].cases == len(captions) == 6
    assert found.clips is not None and list(found.captions) == captions and len(found.clips) == 6


@pytest.mark.parametrize("exchanged", [False, True])
def test_denoising_losses_are_the_errors_of_v_at_the_five_timesteps(tables: Tables, exchanged: bool) -> None:
    cascade = Cascade.open(tables.run / "ablations" / "default-s1", ["base"], dtype=torch.float32)
    entries, sampler = Index(tables.index, "val").videos, cascade.samplers["base"]
    captions = [entry.caption for entry in entries]
    captions = exchange_shapes(captions) if exchanged else captions
    latents = sampler.normalizer.normalize_clips(cascade.encode(read_clips(entries, 32)))
    layout = FrameLayout(1, latents.shape[2], 0)
    x0 = latents[4].movedim(1, 0)
    condition = text_condition(cascade.text, captions[4:5], None, layout, torch.ones(1, dtype=torch.bool))
    errors = []
    for timestep in TIMESTEPS:
        eps = PerSampleRNG(0, timestep, torch.tensor([4])).randn_frames(layout, x0.shape[1:])
        alpha, sigma = (float(value) for value in sampler.path.alpha_sigma(torch.tensor([timestep])))
        with torch.no_grad():
            output = sampler.denoiser(alpha * x0 + sigma * eps, torch.tensor([timestep]), condition, None)
        # v = alpha eps - sigma x0 (Salimans and Ho, arXiv 2202.00512, appendix D).
        errors.append(float((output - (alpha * eps - sigma * x0)).square().mean()))
    assert denoising_losses(cascade, entries, captions)[4].tolist() == pytest.approx(errors, rel=1e-4)


def test_exchange_shapes_names_another_shape_and_nothing_else() -> None:
    captions = ["a striped red circle moving left", "a plain blue bar growing", "a dotted cyan triangle moving up"]
    expected = ["a striped red bar moving left", "a plain blue triangle growing", "a dotted cyan circle moving up"]
    assert exchange_shapes(captions) == expected


def test_measure_text_use_gives_the_growth_of_the_error_with_another_shape(tables: Tables) -> None:
    run = tables.run / "ablations" / "default-s1"
    found = measure_text_use(run, tables.index, 1000, short=True).figures
    cascade, entries = Cascade.open(run, ["base"]), Index(tables.index, "val").videos
    captions = [entry.caption for entry in entries]
    own, other = (denoising_losses(cascade, entries, words).mean(dim=0) for words in (captions, exchange_shapes(captions)))
    assert [found[f"loss_{timestep}"].value for timestep in TIMESTEPS] == pytest.approx(own.tolist())
    assert [found[f"growth_{timestep}"].value for timestep in TIMESTEPS] == pytest.approx((other - own).tolist(), abs=1e-9)
    assert any(found[f"growth_{timestep}"].value for timestep in TIMESTEPS), "the word took part"
    assert found["shape"].value == measure_prompts(run, tables.index, 1000, short=True).figures["shape"].value
