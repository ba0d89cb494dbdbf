"""A training that is killed and goes on is the training that was not killed, to the last bit."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT
from tests.starts import fit, start
from walt_pl.checkpoint import Checkpoint, check_pickle, read_state

STEPS = 12
CRITIC = "{width: 8, multipliers: [2, 2], size: [16, 16]}"
DENOISER = ["--model.denoiser.width", "32", "--model.denoiser.layers", "2", "--model.denoiser.heads", "2"]
ADAMW = ["--model.optimizer", "{class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}"]
SMALL = {
    # Everything with a state: the critic starts in the middle, and its penalty and running means change with the steps.
    "vae": [
        *["--model.vae.width", "8", "--model.vae.multipliers", "[1, 1, 2]", "--model.discriminator", CRITIC, *ADAMW],
        *["--model.adversarial_weight", "0.1", "--model.adversarial_start", "3", "--model.r1_every", "2", "--model.lecam_decay", "0.9"],
        *["--data.crop", "16", "--data.size", "32", "--data.sizes", "[16, 32]"],
    ],
    # Every draw that a step makes: self-conditioning, dropped captions, given frames.
    "base": [*DENOISER, "--model.denoiser.frame_prediction", "true", "--model.denoiser.self_conditioning", "true"],
    "sr1": [*DENOISER, "--model.denoiser.self_conditioning", "true"],
}


class Kill(L.Callback):
    """kill -9 from within, at the beginning of a step: at the same place every time."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def arguments(stage: str, run: Path, index: Path, *more: str) -> list[str]:
    """16 clips by 2: an epoch has 8 steps. It is validated in the middle and at the edge."""
    return [
        *["--config", str(ROOT / "experiments" / "shapes" / f"{stage}.yaml"), "--run", str(run), "--data.index", str(index)],
        *[*SMALL[stage], "--model.warmup", "2", "--trainer.max_steps", str(STEPS), "--trainer.precision", "32-true"],
        *["--data.videos_per_batch", "2", "--data.image_stacks_per_batch", "2", "--data.images_per_stack", "1", "--data.val_videos", "2"],
        *["--data.workers", "0", "--trainer.val_check_interval", "4", "--trainer.log_every_n_steps", "1", "--previews.every", "0"],
        *["--trainer.accelerator", "cpu", "--trainer.devices", "1", *more],
    ]


def losses(run: Path, stage: str) -> list[dict[int, tuple[float, ...]]]:
    """Loss and gradient norm of every step of every start."""
    starts = []
    for version in sorted((run / "training" / stage / "logs").iterdir()):
        events = EventAccumulator(str(version)).Reload()
        if "train/loss" in events.Tags()["scalars"]:
            columns = [events.Scalars(name) for name in ("train/loss", "train/gradient_norm")]
            starts.append({row[0].step: tuple(event.value for event in row) for row in zip(*columns, strict=True)})
    return starts


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    """All that a finished training knows: raw weights, moments and running means of the last checkpoint, and the averages."""
    last = Checkpoint.newest(run / "training" / stage / "checkpoints")
    assert last is not None and last.step == STEPS and last.ema is not None
    averages = load_file(last.ema)
    if last.state.is_dir():
        check_pickle(last.state)
        shards = [torch.load(path, weights_only=False) for path in sorted(last.state.rglob("*optim_states.pt"))]
        parts = [shard["optimizer_state_dict"] for shard in shards]
        return {**averages, **{f"{i}": part["single_partition_of_fp32_groups"][0] for i, part in enumerate(parts)}}
    state = read_state(last.state)
    moments = {
        f"{i}.{j}.{name}": value
        for i, optimizer in enumerate(state["optimizer_states"])
        for j, values in optimizer["state"].items()
        for name, value in values.items()
    }
    return {**state["state_dict"], **{f"ema.{name}": value for name, value in averages.items()}, **moments}


def assert_same(run: Path, whole: Path, stage: str, first: int) -> None:
    """`run` went on after the step before `first`, and did what `whole` did."""
    expected, *_ = losses(whole, stage)
    found = losses(run, stage)[-1]
    assert sorted(expected) == list(range(STEPS)) and sorted(found) == list(range(first, STEPS))
    assert found == {step: values for step, values in expected.items() if step >= first}
    mine, theirs = weights(run, stage), weights(whole, stage)
    assert sorted(mine) == sorted(theirs)
    assert not [name for name in theirs if not torch.equal(torch.as_tensor(mine[name]), torch.as_tensor(theirs[name]))]
    assert (run / stage / "model.safetensors").read_bytes() == (whole / stage / "model.safetensors").read_bytes()


def killed_and_resumed(stage: str, run: Path, index: Path, every: int, kill: int, *more: str, ranks: int = 1) -> str:
    """Train with a checkpoint every so many steps, kill -9 at the beginning of a step, and give the same command again."""
    command = arguments(stage, run, index, "--checkpoint.every_steps", str(every), *more)
    bomb = ["--trainer.callbacks", f"[{{class_path: tests.test_resume.Kill, init_args: {{step: {kill}}}}}]"]
    killed = start("fit", *command, *bomb, ranks=ranks)
    assert killed.wait() == -signal.SIGKILL, killed.said[-3000:]
    said = fit(*command, ranks=ranks)
    assert "going on from" in said
    return said


@pytest.fixture(scope="module")
def parents(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an autoencoder and a base model, two steps each."""
    run = tmp_path_factory.mktemp("parents")
    for stage in ("vae", "base"):
        fit(*arguments(stage, run, painted, "--trainer.max_steps", "2", "--model.warmup", "1", "--trainer.val_check_interval", "2"))
    return run


SHARDED = ["--trainer.devices", "2", "--trainer.strategy", "{class_path: walt_pl.strategies.Zero, init_args: {stage: 2, bucket: 1000000}}"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_find_unused_parameters_true"]
CASES = [
    pytest.param("vae", [], id="vae"),
    pytest.param("vae", TWO, id="vae on two ranks"),
    pytest.param("base", [], id="base"),
    pytest.param("base", [*SHARDED, *ADAMW], id="base on two ranks with ZeRO 2"),
    pytest.param("sr1", [], id="sr1"),
]


@pytest.mark.parametrize("stage, more", CASES)
def test_resume_after_kill_gives_the_same_losses(
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
    killed_and_resumed(stage, runs["edge"], painted, 8, 8, "--data.workers", "2", *more, ranks=ranks)
    assert_same(runs["edge"], runs["whole"], stage, first=8)


def copy_parents(parents: Path, run: Path, stage: str) -> None:
    """A run that has what a stage is trained from, and not the stage."""
    import json
    import shutil

    shutil.copytree(parents, run, ignore=shutil.ignore_patterns(*(["training"] if stage == "base" else [])))
    if stage == "base":
        shutil.rmtree(run / "base")
        manifest = json.loads((run / "manifest.json").read_text())
        del manifest["stages"]["base"]
        (run / "manifest.json").write_text(json.dumps(manifest))
