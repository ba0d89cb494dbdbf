"""A training that is killed and goes on is the training that was not killed, to the last bit."""

import contextlib
import json
import os
import pty
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.starts import Start, fit, start
from tests.helpers.training import ADAMW, SHARDED, STEPS, arguments, copy_parents
from tests.soak.kills import CHECKPOINTS, soak
from walt_pl.runs.checkpoint import Checkpoint, check_pickle, read_state
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.status import status_rows


class Kill(L.Callback):
    """kill -9 from within, at the beginning of a step: at the same place every time."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def losses(run: Path, stage: str) -> list[dict[int, tuple[float, ...]]]:
    """Loss and gradient norm of every step of every start."""
    starts = []
    for version in sorted((run / "training" / stage / "logs").iterdir()):
        events = EventAccumulator(str(version)).Reload()
        if "train/loss" in events.Tags()["scalars"]:
            columns = [events.Scalars(name) for name in ("train/loss", "train/gradient_norm")]
            starts.append({row[0].step: tuple(event.value for event in row) for row in zip(*columns, strict=True)})
    return starts


def weights(run: Path, stage: str, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """All that a finished training knows: raw weights, moments and running means of the last checkpoint, and the averages."""
    last = Checkpoint.newest(run / "training" / stage / "checkpoints")
    assert last is not None and last.step == steps and last.ema is not None
    averages = load_file(last.ema)
    if last.state.is_dir():
        check_pickle(last.state)
        shards = [torch.load(path, weights_only=False) for path in sorted(last.state.rglob("*optim_states.pt"))]
        parts = [shard["optimizer_state_dict"]["single_partition_of_fp32_groups"] for shard in shards]
        return {**averages, **{f"{i}.{j}": group for i, groups in enumerate(parts) for j, group in enumerate(groups)}}
    state = read_state(last.state)
    moments = {
        f"{i}.{j}.{name}": value
        for i, optimizer in enumerate(state["optimizer_states"])
        for j, values in optimizer["state"].items()
        for name, value in values.items()
    }
    return {**state["state_dict"], **{f"ema.{name}": value for name, value in averages.items()}, **moments}


def assert_same(run: Path, whole: Path, stage: str, first: int, steps: int = STEPS) -> None:
    """`run` went on after the step before `first`, and did what `whole` did."""
    expected, *_ = losses(whole, stage)
    found = losses(run, stage)[-1]
    assert sorted(expected) == list(range(steps)) and sorted(found) == list(range(first, steps))
    assert found == {step: values for step, values in expected.items() if step >= first}
    mine, theirs = weights(run, stage, steps), weights(whole, stage, steps)
    assert sorted(mine) == sorted(theirs)
    assert not [name for name in theirs if not torch.equal(torch.as_tensor(mine[name]), torch.as_tensor(theirs[name]))]
    assert (run / stage / "model.safetensors").read_bytes() == (whole / stage / "model.safetensors").read_bytes()


def killed_and_resumed(stage: str, run: Path, index: Path, every: int, kill: int, *more: str, ranks: int = 1) -> str:
    """Train with a checkpoint every so many steps, kill -9 at the beginning of a step, and give the same command again."""
    command = arguments(stage, run, index, "--checkpoint.every_n_train_steps", str(every), *more)
    bomb = ["--trainer.callbacks", f"[{{class_path: tests.training.test_resume.Kill, init_args: {{step: {kill}}}}}]"]
    killed = start("fit", *command, *bomb, ranks=ranks)
    assert killed.wait() == -signal.SIGKILL, killed.said[-3000:]
    end = time.monotonic() + 20
    while killed.leftovers():
        assert time.monotonic() < end, f"workers survive the training that was killed: {killed.leftovers()}"
        time.sleep(0.2)
    said = fit(*command, ranks=ranks)
    assert "going on from" in said
    (changed,) = [line for line in said.splitlines() if "changed since" in line]
    assert ": trainer.callbacks " in changed and changed.count(" -> ") == 1 and "cannot be told" not in said, "the bomb is gone"
    return said


@pytest.fixture(scope="module")
def parents(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an autoencoder and a base model, two steps each."""
    run = tmp_path_factory.mktemp("parents")
    for stage in ("vae", "base"):
        fit(*arguments(stage, run, painted, "--trainer.max_steps", "2", "--model.warmup_steps", "1", "--trainer.val_check_interval", "2"))
    return run


TWO = ["--trainer.devices", "2"]
CASES = [
    pytest.param("vae", [], id="vae", marks=pytest.mark.slow),
    pytest.param("vae", TWO, id="vae on two ranks"),
    pytest.param("base", [], id="base"),
    pytest.param("base", [*SHARDED, *ADAMW], id="base on two ranks with ZeRO 2"),
    pytest.param("sr1", [], id="sr1", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("stage, more", CASES)
def test_fit_command_resumed_after_a_kill_gives_the_same_losses(
    stage: str, more: list[str], painted: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In the middle of an epoch, and at its edge with the validation that was cut off, there with workers that read ahead."""
    runs = {name: tmp_path / name for name in ("whole", "middle", "edge")}
    if stage != "vae":
        for run in runs.values():
            copy_parents(request.getfixturevalue("parents"), run, stage)
    ranks = 2 if more else 1
    fit(*arguments(stage, runs["whole"], painted, *more), ranks=ranks)
    killed_and_resumed(stage, runs["middle"], painted, 5, 7, *more, ranks=ranks)
    assert_same(runs["middle"], runs["whole"], stage, first=5)
    killed_and_resumed(stage, runs["edge"], painted, 8, 8, "--data.num_workers", "2", *more, ranks=ranks)
    assert_same(runs["edge"], runs["whole"], stage, first=8)


def test_fit_command_on_two_ranks_draws_as_one_process(painted: Path, tmp_path: Path) -> None:
    """Crops, noise, the penalty on the discriminator and its running means: the norm of the global batch's gradient is the same number."""
    norms, latents = [], []
    for ranks, more in ((1, []), (2, TWO)):
        run = tmp_path / str(ranks)
        fit(*arguments("vae", run, painted, "--trainer.max_steps", "6", "--data.val_videos", "0", *more), ranks=ranks)
        norms.append([norm for _, norm in losses(run, "vae")[0].values()])
        latents.append(json.loads((run / "vae" / "card.json").read_text())["latents"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    for value in ("mean", "std"):
        assert latents[1][value] == pytest.approx(latents[0][value], rel=1e-3, abs=1e-4), "of what both ranks trained on"


def test_fit_command_second_start_beside_a_living_one_is_refused(painted: Path, parents: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    copy_parents(parents, run, "base")
    command = arguments("base", run, painted, "--trainer.max_steps", "100000", "--checkpoint.every_n_train_steps", "2")
    first = start("fit", *command)
    until(first, "step 1/")
    while len(Checkpoint.all(run / CHECKPOINTS)) < 2:
        time.sleep(0.05)
    kept = {checkpoint.step for checkpoint in Checkpoint.all(run / CHECKPOINTS)}
    for more in (["--from_scratch", "true"], []):
        second = start("fit", *command, *more)
        assert second.wait() == 1
        assert re.search(r'stage "base" of .* is in training by .*: stop it with: kill \d+; then type the same command', second.said)
    assert first.ranks[0].is_alive() and max(kept) <= max(c.step for c in Checkpoint.all(run / CHECKPOINTS))
    first.kill()
    assert "going on from" in fit(*command, "--trainer.max_steps", str(max(kept) + 200))


def test_fit_command_killed_at_random_moments_gives_the_same_training(painted: Path, parents: Path, tmp_path: Path) -> None:
    """Fifty are `make soak`."""
    counts = soak(tmp_path, painted, parents, kills=2, steps=100, seed=1)
    assert counts["of starts that went on"] == 2


def until(started: Start, words: str) -> None:
    """Wait until the program has said something."""
    end = time.monotonic() + 120
    while words not in started.said:
        assert time.monotonic() < end and started.ranks[0].is_alive(), started.said[-3000:]
        time.sleep(0.05)


def test_fit_command_signal_to_one_rank_stops_all_and_resumes(painted: Path, tmp_path: Path) -> None:
    """SIGTERM reaches one rank only; no step is computed twice."""
    run = tmp_path / "run"
    command = arguments(
        "vae", run, painted, *TWO, "--trainer.max_steps", "100000", "--checkpoint.every_n_train_steps", "0", "--data.val_videos", "0"
    )
    for number, begins in ((signal.SIGTERM, "step 1/100000"), (signal.SIGUSR1, "going on from")):
        started = start("fit", *command, ranks=2)
        until(started, begins)
        until(started, "/100000  ")
        told = time.monotonic()
        os.kill(started.ranks[1].pid or 0, number)
        assert started.wait() == 128 + number, started.said[-3000:]
        assert started.ranks[1].exitcode == 128 + number, "torchrun and SLURM take a rank with 0 for one that is done"
        assert time.monotonic() - told < 10
        assert f"stopped by {number.name} after step" in started.said and "the same command goes on" in started.said
        assert Manifest.open(run).state("vae") == "stopped"
    last = Checkpoint.newest(run / "training" / "vae" / "checkpoints")
    assert last is not None
    assert f'stage "vae" stopped at step {last.step} of 100000; checkpoint: {last.path}' in started.said
    assert f"stopped by SIGUSR1 after step {last.step}, everything is in" in started.said
    assert not (run / "vae").exists(), "an interrupted stage has no artifact"


def test_fit_command_options_win_over_the_checkpoint(painted: Path, parents: Path, tmp_path: Path) -> None:
    """Neither its optimiser's learning rate nor hyper-parameters that Lightning keeps; and every start leaves its configuration."""
    run = tmp_path / "run"
    last = Checkpoint.newest(parents / "training" / "vae" / "checkpoints")
    assert last is not None
    state = read_state(last.state)
    foreign = tmp_path / "foreign.ckpt"
    torch.save({**state, "hyper_parameters": {"_class_path": "stages.vae.VAEStage", "gradient_clip_val": 77.0, "kl_weight": 9.0}}, foreign)
    for checkpoint in (foreign, last.path):
        fit(
            *arguments(
                "vae", run, painted, "--ckpt_path", str(checkpoint), "--model.lr_schedule", "constant", "--model.optimizer.lr", "0.5"
            )
        )
        newest = Checkpoint.newest(run / "training" / "vae" / "checkpoints")
        assert newest is not None and newest.step == STEPS
        groups = [group for optimizer in read_state(newest.state)["optimizer_states"] for group in optimizer["param_groups"]]
        assert {group["lr"] for group in groups} == {0.5}
    logs = run / "training" / "vae" / "logs"
    assert sorted(path.name for path in logs.iterdir()) == ["version_0", "version_1"]
    for version in logs.iterdir():
        told = yaml.safe_load((version / "config.yaml").read_text())
        assert told["model"]["init_args"]["gradient_clip_val"] == 1.0 and told["model"]["init_args"]["kl_weight"] != 9.0
        assert told["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.5


OUT_OF_TIME = "[{{class_path: tests.training.callbacks.test_training_end.OutOfTime, init_args: {{step: {}}}}}]"


@pytest.mark.parametrize("more", [pytest.param([], id="one rank"), pytest.param(TWO, id="two ranks", marks=pytest.mark.slow)])
def test_fit_command_out_of_time_is_no_end_and_the_same_command_goes_on(more: list[str], painted: Path, tmp_path: Path) -> None:
    """There is a checkpoint and no artifact, children are refused, and the rest is the training that nobody stopped."""
    ranks, whole, run = (2 if more else 1), tmp_path / "whole", tmp_path / "run"
    done = fit(*arguments("vae", whole, painted, *more), ranks=ranks)
    command = arguments("vae", run, painted, *more, "--trainer.max_time", "00:01:00:00", "--from_scratch", "true")
    said = fit(*command, "--trainer.callbacks", OUT_OF_TIME.format(7), ranks=ranks)
    last = run / "training" / "vae" / "checkpoints" / "step=00000007"
    stopped, figures, after = said.splitlines()[-3:]
    assert stopped == f'stage "vae" stopped at step 7 of {STEPS} by trainer.max_time; checkpoint: {last}'
    assert "val/psnr_video" in figures and float(figures.rpartition("val/psnr_video ")[2]) > 0
    assert after.startswith("next: python -m walt_pl fit --config ") and "--trainer.max_time" in after and "scratch" not in after
    assert not (run / "vae").exists() and Manifest.open(run).state("vae") == "stopped"
    assert [(row.state, row.step, row.total) for row in status_rows(run)] == [("stopped", 7, STEPS)]
    refused = start("fit", *arguments("base", run, painted))
    assert refused.wait() == 1 and f'needs stage "vae", which is stopped at step 7 of {STEPS} in {run}' in refused.said
    said = fit(*command[:-2], ranks=ranks)
    assert f"going on from {last}" in said
    assert_same(run, whole, "vae", first=7)
    assert Manifest.open(run).state("vae") == "done"
    for folder, lines in ((whole, done.splitlines()[-3:]), (run, said.splitlines()[-3:])):
        assert lines[0] == f'stage "vae" is done after step {STEPS}; artifact: {folder / "vae"}'
        assert lines[2] == "next: " + Manifest.open(folder, Path("experiments/shapes")).command("base")


def test_fit_command_skips_an_incomplete_checkpoint_and_from_scratch_starts_over(painted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = arguments("vae", run, painted, "--checkpoint.every_n_train_steps", "3", "--data.val_videos", "0")
    bomb = ["--trainer.callbacks", "[{class_path: tests.training.test_resume.Kill, init_args: {step: 8}}]"]
    assert start("fit", *command, *bomb).wait() == -signal.SIGKILL
    checkpoints = run / "training" / "vae" / "checkpoints"
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["step=00000003", "step=00000006"]
    with (checkpoints / "step=00000006" / "state.ckpt").open("r+b") as file:
        file.truncate(1000)
    said = fit(*command)
    assert "step=00000006 is incomplete" in said and "going on from" in said and "step=00000003" in said
    said = fit(*command, "--from_scratch", "true")
    assert "going on from" not in said and "step 1/12" in said


def test_fit_command_shows_a_progress_bar_in_a_terminal_only(painted: Path, tmp_path: Path) -> None:
    command = arguments("vae", tmp_path / "run", painted, "--trainer.max_steps", "3", "--data.val_videos", "0")
    assert "━" not in fit(*command, "--from_scratch", "true")
    master, slave = pty.openpty()
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the terminal is closed
            while data := os.read(master, 65536):
                shown.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    code = start("fit", *command, "--from_scratch", "true", terminal=os.ttyname(slave)).wait()
    os.close(slave)
    reader.join(10)
    assert code == 0 and "━".encode() in shown and b" s a step" not in shown
