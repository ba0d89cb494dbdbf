"""Mistakes of users: each is answered in at most five lines that say what to type, or it works."""

import contextlib
import logging
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers.environment import ROOT
from walt_pl.cli.main import main

VAE, BASE = "experiments/shapes/vae.yaml", "experiments/shapes/base.yaml"
NEVER = ("Traceback", "usage:", "Union", "Namespace", "functools", "Errno")
SMALL = (
    "--data.videos_per_batch 2 --trainer.max_steps 2 --trainer.val_check_interval 2 --model.warmup_steps 1 --data.val_videos 4 "
    "--data.num_workers 0 --data.image_stacks_per_batch 1 --trainer.precision 32-true"
)
SMALL_VAE = f"--model.vae.width 8 --model.vae.channel_multipliers '[1, 1, 2]' --data.crop 16 --data.size 32 --data.sizes '[]' {SMALL}"
SMALL_BASE = f"--model.denoiser.width 32 --model.denoiser.depth 2 --model.denoiser.num_heads 2 {SMALL}"


@dataclass(frozen=True)
class Mistake:
    """A command line, and words of its answer. {tmp}, {run} and {index} are folders and the index of the test."""

    typed: str
    answer: tuple[str, ...]
    works: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def refused(typed: str, *answer: str, **environment: str) -> Mistake:
    return Mistake(typed, answer, environment=environment)


def works(typed: str, *answer: str) -> Mistake:
    return Mistake(typed, answer, works=True)


FIT = f"fit --config {VAE} --run {{tmp}}/new --data.index {{index}}"
MISTAKES = [
    # the command
    refused("trian", 'there is no command "trian"', "there are: index"),
    refused("fit", "walt fit: which stage? give --config experiments/EXP/STAGE.yaml"),
    refused("plan", "walt plan: which stage?"),
    refused("index", "walt index needs SOURCE", "walt index --help"),
    refused("status --run", "--run needs a value: text"),
    refused("status --jsn true", "--jsn: there is no such key; did you mean --json?"),
    refused("index a b", 'found the word "b", which belongs to no option'),
    # keys
    refused(f"{FIT} --model.vae.widht 8", "--model.vae.widht: there is no such key; did you mean --model.vae.width?", "walt fit --config"),
    refused(f"{FIT} --trainer.max_step 8", "--trainer.max_step: there is no such key; did you mean --trainer.max_steps?"),
    refused(f"{FIT} --model.optimizer.betes 8", "--model.optimizer.betes: there is no such key; did you mean --model.optimizer.betas?"),
    refused(f"{FIT} --trainer.strategy.stage 3", "--trainer.strategy.stage: there is no such key"),
    refused(f"plan --config {BASE} --model.denoiser.heads 2", "--model.denoiser.heads has another name now: model.denoiser.num_heads"),
    # values
    refused(f"{FIT} --model.vae.width wide", "--model.vae.width: found wide, wanted a whole number"),
    refused(f"{FIT} --trainer.max_steps many", "--trainer.max_steps: found many, wanted a whole number"),
    refused(f"{FIT} --trainer.max_steps null", "--trainer.max_steps: found null, wanted a whole number"),
    refused(f"{FIT} --data.index null", "--data.index: found null, wanted text"),
    refused(f"{FIT} --model.lr_schedule linear", "--model.lr_schedule: found linear, wanted one of cosine, constant"),
    refused(f"{FIT} --from_scratch maybe", "--from_scratch: found maybe, wanted true or false"),
    refused(f"plan --config {BASE} --model.denoiser.window_size [5,3]", "found [5,3], wanted a list of 3 whole numbers"),
    refused(f"{FIT} --model.optimizer torch.optim.AdmW", "--model.optimizer: found torch.optim.AdmW, wanted a class", "has no attribute"),
    refused(f"plan --config {BASE} --tflops -1", "--tflops: found -1, wanted a number above 0 or null"),
    refused(f"plan --config {BASE} --model.denoiser.num_heads 7", "denoiser.width must be a multiple of denoiser.num_heads, got 192 and 7"),
    refused(f"{FIT} --data.videos_per_batch -2", "data.videos_per_batch must be at least 0, got -2"),
    refused(f"{FIT} --trainer.precision 3", "--trainer.precision: found 3, wanted one of", "bf16-mixed"),
    refused(f"{FIT} --model.discriminator null", "--model.discriminator: found null", "give --model.adversarial_weight 0"),
    # files
    refused("fit --config experiments/shapes/vea.yaml", "there is no such file; did you mean experiments/shapes/vae.yaml"),
    refused("fit --config experiments/shapes", "is a folder; name one of its files: base.yaml"),
    refused("plan --config {tmp}/tab/vae.yaml", "tab/vae.yaml:3: found a tab"),
    refused("plan --config {tmp}/twice/vae.yaml", "twice/vae.yaml:4: max_steps comes twice, first in line 3"),
    refused("plan --config {tmp}/typo/vae.yaml", "typo/vae.yaml:2: modle: there is no such key; did you mean model?"),
    refused("cache --config {tmp}/typo/vae.yaml", "typo/vae.yaml:2: modle: there is no such key; did you mean model?"),
    refused("ready --config {tmp}/tab/vae.yaml", "tab/vae.yaml:3: found a tab"),
    refused("plan --config {tmp}/type/vae.yaml", "type/vae.yaml:2: model.vae.width: found wide, wanted a whole number"),
    refused("fit --config {tmp}/empty/vae.yaml", "empty/vae.yaml: found nothing, wanted keys such as model"),
    refused("fit --config {tmp}/group/vae.yaml", "group/vae.yaml:2: trainer: found nothing, wanted keys below it"),
    refused("fit --config {tmp}/extends/vae.yaml", "extends names nix.yaml, but there is no"),
    refused(f"fit --config {VAE} --run {{tmp}}/new --data.index {{tmp}}/none.parquet", "none.parquet: no such index; make it with"),
    refused(f"fit --config {VAE} --run {{tmp}}/new --data.index {{tmp}}/tab/vae.yaml", "not a Parquet file that can be read"),
    refused(f"{FIT} --ckpt_path {{tmp}}/none", "--ckpt_path: there is no", "there are: none"),
    refused(f"{FIT} --stage foo", 'unknown stage "foo": wanted vae'),
    refused(f"fit --config {BASE} --run {{tmp}}/new", 'needs stage "vae", which is missing', "make train-vae"),
    # going on
    refused(
        f"{FIT} {SMALL_VAE} --ckpt_path {{run}}/training/vae/checkpoints/step=00000002 --model.vae.width 16",
        "found weights of another size, model.vae.width 8 in place of 16",
        "--from_scratch true",
    ),
    refused(
        f"{FIT} {SMALL_VAE} --ckpt_path {{run}}/training/vae/checkpoints/step=00000002 --model.optimizer torch.optim.SGD",
        "found the state of the optimiser timm.optim.Muon, wanted that of torch.optim.SGD",
    ),
    # the trainer and the machine
    refused("fit --config experiments/ucf101/base_l.yaml --run {tmp}/new", "found no GPU on this machine", "--trainer.accelerator cpu"),
    refused(f"{FIT} --trainer.devices 4000", "processors on this machine", "4000 processes", "give --trainer.devices 1"),
    refused(f"{FIT} --trainer.num_nodes 2", "nothing says where the first machine is", "MASTER_ADDR"),
    refused(f"{FIT} --trainer.enable_checkpointing false", "goes on from its checkpoints after a stop; leave it out"),
    refused(f"{FIT} --trainer.val_check_interval 0.5", "a share of an epoch, wanted a number of steps: --trainer.val_check_interval 500"),
    refused(f"{FIT} --trainer.strategy nope", "trainer.strategy: no strategy 'nope'", "zero2"),
    refused(f"{FIT} --trainer.devices 2", "put srun before the command, or type: unset SLURM_NTASKS", SLURM_NTASKS="2"),
    works(f"{FIT} {SMALL_VAE} --trainer.fast_dev_run true", "no checkpoint, no artifact"),
    # the use of a run
    refused("sample --run {run}", "give one of --prompt, --prompts and --label, got none"),
    refused("sample --run {tmp}/none --prompt x", 'sampling needs stage "vae", which is missing'),
    refused("sample --run {run} --prompt x --stages foo", 'unknown stage "foo"'),
    refused("sample --run {run} --label 5 --out {tmp}/clips/", "this run makes clips from text: give --prompt or --prompts"),
    refused("sample --run {run} --prompt x --seconds 0", "--seconds must be above 0, got 0"),
    refused("sample --run {run} --prompt x --batch 0", "--batch must be at least 1, got 0"),
    refused("sample --run {run} --prompt x --device quantum", "--device quantum: wanted cpu, cuda"),
    refused("sample --run {run} --prompt x --out {tmp}/clip.avi", "--out must end in .mp4"),
    refused("sample --run {run} --image {tmp}/none.png", "none.png: there is no such file"),
    refused("sample --run {run} --prompts {tmp}/none.txt", "there is no", "none.txt"),
    refused("sample --steps many --prompt x", "--steps: found many, wanted a whole number or names with whole numbers"),
    refused("export {tmp}/none", "none has no whole checkpoint"),
    refused("export {run}/training/vae/checkpoints --out {tmp}/tab", "is no file of an artifact"),
    refused("evaluate {tmp}/none", 'needs stage "vae", which is missing'),
    refused("evaluate --run {run}", "the run is typed without --run now, such as: walt evaluate runs/shapes"),
    refused("evaluate", "walt evaluate needs RUN"),
    refused("evaluate {run} --clips 0", "--clips must be at least 1, got 0"),
    refused("evaluate {run} --dtype int8", "--dtype int8: wanted float32, bfloat16, float16"),
    refused("evaluate {run} --prompts 0", "--prompts and --unseen must be at least 1"),
    refused("verify --run {tmp}/none", "is no run, it has no manifest.json"),
    refused("status --run {tmp}/tab", "is no run, it has no manifest.json"),
    refused("validate --config experiments/shapes/vae.yaml --run {tmp}/new --ckpt_path auto", "has neither a whole checkpoint"),
    refused("index {tmp}/none", "no such folder or file"),
    refused("index {tmp}/tab --out {tmp}/i.parquet", "no video or image in it"),
    refused("index {tmp}/tab --seconds 0 --out {tmp}/i.parquet", "--seconds must be above 0, got 0"),
    refused("index {index} --layout nope", "--layout: found nope, wanted one of auto"),
    refused("demo --experiment experiments/none --run {tmp}/new", "experiments/none has no vae.yaml"),
    refused("paper --experiment nowhere --run {tmp}/new", "nowhere has no folder ablations"),
    refused("paper --index {tmp}/none --run {tmp}/new", "paint the embedded set: python -m walt_pl index shapes"),
    refused("paper --index {index} --short --out {tmp}/new", "paper: --short keeps its page in the folder of its trainings"),
    refused("paper --index {index} --jobs 0 --run {tmp}/new", "--jobs must be at least 1, got 0"),
    refused("paper --index {index} --vae {tmp}/new/vae --run {tmp}/new", 'stage "vae", which is missing in'),
    refused("paper --index {index} --vae {run}/vae --run {tmp}/new --only pach_1", "there is no row pach_1; there are: class_video"),
    refused("paper --index {index} --vae {run}/vae --run {tmp}/new --seeds 7", "--seeds has 7; the seeds of these rows are 0, 1, 2"),
]


@pytest.fixture(scope="module")
def places(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of configs with mistakes, and a run with an autoencoder and a base of two steps."""
    tmp = tmp_path_factory.mktemp("mistakes")
    below = f"extends: [{ROOT / VAE}]\n"
    for name, text in (
        ("tab", f"{below}trainer:\n\tmax_steps: 3\n"),
        ("twice", f"{below}trainer:\n  max_steps: 3\n  max_steps: 4\n"),
        ("typo", f"{below}modle: {{}}\n"),
        ("type", f"{below}model: {{init_args: {{vae: {{width: wide}}}}}}\n"),
        ("empty", ""),
        ("group", f"{below}trainer:\n"),
        ("extends", "extends: [nix.yaml]\n"),
    ):
        (tmp / name).mkdir()
        (tmp / name / "vae.yaml").write_text(text)
    with contextlib.chdir(ROOT):
        for stage, small in (("vae", SMALL_VAE), ("base", SMALL_BASE)):
            config = ["--config", f"experiments/shapes/{stage}.yaml", "--run", str(tmp / "run"), "--data.index", str(painted)]
            main(["fit", *config, *shlex.split(small)])
    return {"tmp": tmp, "run": tmp / "run", "index": painted}


def say(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command in this process, and return its exit code and what it said at its end."""
    code: object = 0
    capsys.readouterr()
    try:
        main(words)
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    if isinstance(code, str):
        return 1, code
    return int(code or 0), printed.out + printed.err  # type: ignore[call-overload]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.typed for mistake in MISTAKES])
def test_main_mistake_is_answered_in_five_lines(
    mistake: Mistake, places: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's logger keeps the stream of an earlier test
    for name, value in mistake.environment.items():
        monkeypatch.setenv(name, value)
    code, answer = say(shlex.split(mistake.typed.format(**places)), capsys)
    assert bool(code) != mistake.works, answer
    if not mistake.works:
        assert answer.startswith("error: ") and len(answer.splitlines()) <= 5, answer
    for words in mistake.answer:
        assert words in answer
    assert not [word for word in NEVER if word in answer]
    assert not (places["tmp"] / "new" / "manifest.json").exists()


def test_mistakes_are_at_least_fifty() -> None:
    assert len(MISTAKES) >= 50


def run_outside(words: list[str], cwd: Path, **environment: str) -> tuple[int, str]:
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_main_outside_the_virtual_environment_names_its_python() -> None:
    code, answer = run_outside([sys.executable, "-S", "-m", "walt_pl", "status"], ROOT)
    assert code and len(answer.splitlines()) <= 5 and "Traceback" not in answer
    assert "is not installed in" in answer and ".venv/bin/python" in answer


def test_main_from_another_folder_finds_the_experiments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, answer = say(["fit", "--config", VAE], capsys)
    assert code and f"{tmp_path}/data/shapes/index.parquet: no such index; make it with" in answer
    assert not (tmp_path / "runs").exists()


def test_make_names_the_experiment_nearest_to_a_misspelt_one() -> None:
    code, answer = run_outside(["make", "-n", "-o", ".venv/.ready", "train-vae", "EXP=shaps"], ROOT)
    assert code and "no experiments/shaps; did you mean EXP=shapes" in answer and len(answer.splitlines()) <= 5


def test_main_shows_the_traceback_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WALT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="found wide"), contextlib.redirect_stderr(None):
        main(["plan", "--config", VAE, "--model.vae.width", "wide"])
