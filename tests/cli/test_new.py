"""`walt new`, as a user types it: the files that it writes for folders of every kind, and nothing where it refuses."""

import csv
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.clips import counting_clip
from tests.helpers.environment import ROOT, Walt
from walt_pl.cli import new_costs
from walt_pl.cli.main import main
from walt_pl.cli.plan import PlanCLI
from walt_pl.data.index import Index
from walt_pl.indexing import build_index
from walt_pl.lock import hold_lock, lock_beside
from walt_pl.media.writing import write_image, write_video
from walt_pl.runs.artifact import load
from walt_pl.untrusted import read_yaml

REPORT: dict[str, Any] = {
    "activation_checkpointing": False,
    "parameters": {"total": 10**6, "beside": {}},
    "bytes_per_gpu": {"ddp": {"fits_gib": {"kept": [24, 40, 80]}, "total": {"kept": 2**30}}},
    "flops_per_step": 10**12,
    "steps": 1000,
    "time": {"days": {1: 0.5}},
    "checkpoint": {"ddp": {"bytes": 10**9}},
}
HOSTILE = "a: {b} # 'c' \"d\" [e], & *f !g | > % @`"


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # a process that decodes takes seconds to start


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, PlanCLI]:
    """The stages as `plan` builds them, without counting their steps."""
    plans: dict[str, PlanCLI] = {}

    def report(plan: PlanCLI) -> dict[str, Any]:
        plans[str(plan.stage)] = plan
        return {**REPORT, "stage": plan.stage}

    monkeypatch.setattr(PlanCLI, "report", report)
    return plans


def clips(folder: str, count: int = 6, height: int = 64, width: int = 64, frames: int = 18, fps: float = 8, name: str = "") -> list[Path]:
    """Write short videos and return their paths."""
    paths = [Path(folder) / f"{name}{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        write_video(path, np.roll(counting_clip(frames, height, width), number, axis=2), fps=fps)
    return paths


def pictures(folder: str, count: int, side: int = 64) -> None:
    for number in range(count):
        write_image(Path(folder) / f"{number}.png", np.full((side, side, 3), 3 * number, np.uint8))


def tree() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


def keys(stage: str) -> dict[str, Any]:
    return dict(read_yaml(Path("experiments/mine") / f"{stage}.yaml"))


# ---- Kinds of data ---------------------------------------------------------------------------------------------------


def landscape_with_texts() -> None:
    for number, clip in enumerate(clips("set", height=72, width=128)):
        clip.with_suffix(".txt").write_text(f"{HOSTILE} {number}\nsecond line: - x\n")


def portrait_with_a_csv() -> None:
    with open("words.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "caption"])
        table.writerows([clip.name, f"a dog, {HOSTILE}"] for clip in clips("set", height=128, width=72))


def square_with_a_jsonl() -> None:
    lines = [{"path": clip.name, "caption": ["a dog\nruns", HOSTILE]} for clip in clips("set")]
    Path("words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def classes() -> None:
    for name in ("- red: {}", "blue #circles"):
        clips(f"set/{name}", count=3)


def images_alone() -> None:
    pictures("set", 24)


def joint() -> None:
    clips("set/v", count=4)
    pictures("set/v", 6)


def mixed_rates() -> None:
    clips("set", count=4, fps=24, frames=60, name="fast")
    clips("set", count=2, fps=10, frames=40, name="slow")


def short() -> None:
    clips("set", frames=10)


def stills() -> None:
    clips("set", frames=3)


def one_broken() -> None:
    for broken in clips("set", count=5)[:1]:
        broken.write_bytes(b"words " * 99)


KINDS: dict[str, tuple[Callable[[], None], str, dict[str, Any]]] = {
    "landscape": (landscape_with_texts, "", {"latents": [5, 8, 14], "aspect": 1.75, "text": True}),
    "portrait": (portrait_with_a_csv, "--captions words.csv", {"latents": [5, 14, 8], "aspect": 16 / 28, "text": True}),
    "square": (square_with_a_jsonl, "--captions words.jsonl", {"latents": [5, 8, 8], "aspect": 1.0, "text": True}),
    "classes": (classes, "", {"latents": [5, 8, 8], "num_classes": 2}),
    "images": (images_alone, "--val 0.2", {"latents": [1, 8, 8], "videos_per_batch": 0, "frames": 1}),
    "joint": (joint, "", {"latents": [5, 8, 8], "image_stacks_per_batch": 8, "images_per_stack": 5}),
    "rates": (mixed_rates, "", {"latents": [5, 8, 8], "fps": 8.0}),
    "short": (short, "", {"latents": [3, 8, 8], "frames": 9}),
    "stills": (stills, "", {"latents": [1, 8, 8], "frames": 1, "videos_per_batch": 32}),
    "broken": (one_broken, "", {"latents": [5, 8, 8], "train": 4}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_new_command_writes_stages_that_parse_build_and_fit_together(
    kind: str, built: dict[str, PlanCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    make, words, wanted = KINDS[kind]
    make()
    main(["new", "mine", "--videos", "set", *(words.split() or ["--val", "0"])])
    said = capsys.readouterr().out
    assert list(built) == ["vae", "base", "sr1"], "the stages were parsed by the program itself, and built"
    base, sr1 = built["base"].model.denoiser.config, built["sr1"].model.denoiser.config
    assert list(base.size) == wanted["latents"] and base.num_classes == sr1.num_classes == wanted.get("num_classes")
    assert (base.text_width is not None) == (sr1.text_width is not None) == wanted.get("text", False)
    assert [2 * side for side in base.size[1:]] == list(sr1.size[1:])
    assert built["vae"].model.vae.config.factors[0] == (4 if base.size[0] > 1 else 1)
    data = {**keys("data")["data"], **keys("base")["data"]}
    assert {key: data[key] for key in wanted.keys() & data.keys()} == {key: wanted[key] for key in wanted.keys() & data.keys()}
    assert ("fps" in data) == ("fps" in wanted)
    assert built["base"].datamodule.selection("train"), "training finds its clips"
    assert "experiments/mine/sr1.yaml" in said and f"{wanted.get('train', '')} of " in said
    if kind == "images":
        assert len(Index("data/mine.parquet", "val").images) == keys("data")["data"]["val_videos"] > 0
    if kind == "classes":
        assert Path("data/mine.classes.txt").read_text() == "- red: {}\nblue #circles\n"


def test_new_command_prints_the_costs_of_plan_and_commands_that_parse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count, reports = PlanCLI.report, dict[str, dict[str, Any]]()
    monkeypatch.setattr(PlanCLI, "report", lambda plan: reports.setdefault(plan.stage, count(plan)))
    clips("set")
    main(["new", "mine", "--videos", "set"])
    said = capsys.readouterr().out
    hours = 0.0
    for stage, report in reports.items():
        (line,) = [re.sub("[│ ]+", " ", line).split() for line in said.split("\n") if line.startswith(f"│ {stage} ")]
        held = report["bytes_per_gpu"]["ddp"]["total"]["recomputed" if stage != "vae" else "kept"] / 2**30
        hours += report["steps"] * report["flops_per_step"] / 50e12 / 3600
        assert line[:2] == [stage, f"{report['parameters']['total'] / 1e6:.1f}"]
        assert line[3:5] == [f"{report['flops_per_step']:.2e}", f"{held:.1f}"] and f"{report['steps']:,}" in line
    assert list(reports) == ["vae", "base", "sr1"]
    assert f"All stages: {hours:,.1f} hours, if the GPU reaches 50 TFLOP/s" in said
    trials = [shlex.split(line) for line in said.split("\n") if "RUN=runs/mine-try" in line]
    assert [words[1:3] for words in trials] == [["train-vae", "EXP=mine"], ["train-base", "train-sr"]]
    for words, stages in zip(trials, (["vae"], ["base", "sr1"]), strict=True):
        overrides = shlex.split(words[-1].removeprefix("ARGS="))
        for stage in stages:
            plan = PlanCLI(["--config", f"experiments/mine/{stage}.yaml", *overrides])
            assert plan.options.trainer.max_steps == 20 > plan.options.model.init_args.warmup_steps
    assert "make train-vae train-base train-sr EXP=mine\n" in said and "make sample EXP=mine ARGS='--prompt \"\"'" in said


@pytest.mark.parametrize("make", [landscape_with_texts, classes])
def test_new_command_indexes_as_walt_index_does(
    make: Callable[[], None], built: dict[str, PlanCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    make()
    main(["new", "mine", "--videos", "set", "--val", "0.4"])
    (line,) = [line for line in Path("experiments/mine/data.yaml").read_text().split("\n") if "walt index" in line]
    words = shlex.split(line[line.index("walt index") :])[1:]
    before = Path("data/mine.parquet").read_bytes()
    main(words)
    assert "6 rows, 0 of them new; 0 files examined" in capsys.readouterr().out
    assert Path("data/mine.parquet").read_bytes() == before


# ---- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "../mine", "a/b", ".mine", "my set", "mine\n", "a" * 101, "mine.2"])
def test_new_command_refuses_a_name_that_is_no_plain_folder_name(name: str) -> None:
    clips("set", count=1)
    before = tree()
    with pytest.raises(SystemExit, match="wanted one of letters, digits, _ and -"):
        main(["new", name, "--videos", "set"])
    assert tree() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("new mine", "which files. type: walt new mine --videos DIR"),
        ("new mine --videos gone", "--videos gone: there is no such folder"),
        ("new mine --videos empty", "no video or image in it"),
        ("new mine --videos bad", "bad: none of its 2 files can be used .2 corrupt., the first: .*bad/0.mp4: corrupt: "),
        ("new mine --videos set --captions set/0.mp4", r"wanted a .csv or .jsonl with path and caption"),
        ("new mine --videos set --captions gone.csv", "--captions gone.csv: there is no such file"),
        ("new mine --videos set --captions absent.csv", "absent.csv: 2 of 5 files are not there, the first: set/x.mp4"),
        ("new mine --videos set --captions lacking.csv", "lacking.csv: 2 of 3 files of set have no row, the first: set/1.mp4; add their"),
        ("new mine --videos set --captions wordless.csv", "wordless.csv: no row has a caption; name the column caption"),
        ("new mine --videos tiny", "tiny: the median clip has 24 rows x 24 columns, and the smallest size of square is 32 x 32"),
        ("new mine --videos held", r"held: no usable file is of split train .there are: val."),
        ("new mine --videos set --val 1", "--val must be at least 0 and below 1"),
        (
            "new shapes --videos set",
            "experiments/shapes exists already; move it away, or give another name: walt new shapes-2 --videos DIR",
        ),
        ("new taken --videos set", "experiments/taken exists already"),
        ("new indexed --videos set", "data/indexed.parquet exists already"),
        ("new trained --videos set", "runs/trained exists already"),
    ],
)
def test_new_command_refuses_and_leaves_nothing(words: str, said: str) -> None:
    clips("set", count=3)
    clips("tiny", count=1, height=24, width=24)
    clips("held/val", count=1)
    Path("empty").mkdir()
    for number in range(2):
        Path("bad").mkdir(exist_ok=True)
        Path(f"bad/{number}.mp4").write_bytes(b"words " * 99)
    rows = {"absent": ["0,a", "1,a", "2,a", "x,a", "y,a"], "lacking": ["0,a"], "wordless": ["0,", "1,", "2,"]}
    for name, lines in rows.items():
        Path(f"{name}.csv").write_text("path,caption\n" + "".join(line.replace(",", ".mp4,") + "\n" for line in lines))
    for folder in ("experiments/taken", "data", "runs/trained"):
        Path(folder).mkdir(parents=True)
    Path("data/indexed.parquet").write_bytes(b"")
    before = tree()
    with pytest.raises(SystemExit, match=said):
        main(words.split())
    assert tree() == before


def test_new_command_refuses_a_name_that_another_process_writes() -> None:
    clips("set", count=1)
    Path("experiments").mkdir()
    with hold_lock(lock_beside(Path("experiments/mine"))), pytest.raises(SystemExit, match="is held by process"):
        main(["new", "mine", "--videos", "set"])
    assert not Path("data").exists()


# ---- Failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "x"), KeyboardInterrupt(), RuntimeError("a fault of ours")])
def test_new_command_that_fails_after_indexing_leaves_nothing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    clips("set", count=1)
    before = tree()

    def fail(configs: list[Path], run: Path) -> None:
        assert all(config.is_file() for config in configs) and Path("data/mine.parquet").is_file()
        raise error

    monkeypatch.setattr(new_costs, "plan_stages", fail)
    with pytest.raises((SystemExit, RuntimeError)):
        main(["new", "mine", "--videos", "set"])
    assert tree() == before


def test_new_command_interrupted_while_it_decodes_goes_on(
    built: dict[str, PlanCLI], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips("set", count=2)
    before = tree()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_index, "write_table", interrupt)
        with pytest.raises(SystemExit, match="the same command goes on"):
            main(["new", "mine", "--videos", "set"])
    assert tree() - before == {"data", "data/.mine.parquet.journal"}, "the files that were decoded, and nothing else"
    main(["new", "mine", "--videos", "set"])
    assert not Path("data/.mine.parquet.journal").exists() and Path("experiments/mine/base.yaml").exists()


def test_new_command_replaces_what_a_kill_left_of_an_earlier_one(built: dict[str, PlanCLI]) -> None:
    clips("set", count=1)
    left = Path("experiments/.mine.new")
    left.mkdir(parents=True)
    (left / "sr2.yaml").write_text("model: {}\n")
    main(["new", "mine", "--videos", "set"])
    assert not left.exists()
    assert sorted(path.name for path in Path("experiments/mine").iterdir()) == ["base.yaml", "data.yaml", "sr1.yaml", "vae.yaml"]


# ---- Training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["landscape", "images", "joint"])
def test_new_command_files_train_every_stage(
    kind: str, built: dict[str, PlanCLI], walt: Walt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words, _ = KINDS[kind]
    make()
    main(["new", "mine", "--videos", "set", *(words.split() or ["--val", "0.4"])])
    short = ["--trainer.max_steps", "2", "--model.warmup_steps", "1", "--data.num_workers", "0", "--trainer.precision", "32-true"]
    batch = ["--data.videos_per_batch", "0" if kind == "images" else "2", "--data.image_stacks_per_batch", "1" if kind == "joint" else "0"]
    batch = ["--data.image_stacks_per_batch", "2"] if kind == "images" else batch
    monkeypatch.chdir(ROOT)  # the processes of `walt` import the helpers of the tests
    for stage in built:
        config = ["--config", str(tmp_path / "experiments/mine" / f"{stage}.yaml"), "--run", str(tmp_path / "runs/mine")]
        walt("fit", *config, "--data.index", str(tmp_path / "data/mine.parquet"), *short, *batch, "--trainer.val_check_interval", "2")
        assert load(tmp_path / "runs/mine" / stage, verify=True).card["steps"] == 2
