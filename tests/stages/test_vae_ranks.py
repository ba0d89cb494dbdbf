"""The autoencoder and its discriminator on two ranks under DDP, against one process with the global batch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.vae import VAEStage
from tests.helpers.engine_training import start
from tests.helpers.tiny_vae import tiny_batch, tiny_stage, train
from walt_pl.data.batch import JointBatch

STEPS = 7
PAUSED = 4
START = 1
EVERY = 3
"""Steps between gradient penalties: they come at step 3 and 6."""


@dataclass(frozen=True)
class Job:
    """One training."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    """Arguments of the stage, other than below."""
    ddp: tuple[tuple[str, Any], ...] = ()
    """Arguments of DDP's strategy; none for its name."""
    nan_at: int | None = None
    """Step at which the discriminator's gradients of rank 1 are nan."""


class Interfere(L.Callback):
    """Pause the discriminator for one step, and break its gradients on one rank. Count the passes that DDP's reducer takes part in."""

    def __init__(self, job: Job, rank: int) -> None:
        self.job = job
        self.rank = rank
        self.armed: list[int] = []
        self.ddp: dict[str, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not isinstance(trainer.strategy, DDPStrategy):
            return
        wrapper: Any = trainer.strategy.model
        self.ddp = {"search": wrapper.find_unused_parameters, "weights": sum(p.numel() for p in wrapper._module_parameters)}
        self.ddp["autoencoder"] = sum(p.numel() for p in pl_module.vae.parameters())
        wrapper.reducer = CountedReducer(wrapper.reducer, self.armed, trainer)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == PAUSED:
            pl_module.discriminator_pause.paused.fill_(True)
        if trainer.global_step == self.job.nan_at and self.rank:
            bias = pl_module.discriminator.logit.bias
            hook = bias.register_hook(lambda gradient: hook.remove() or gradient * torch.nan)


class CountedReducer:
    """DDP's reducer; it writes down the step of each pass that it prepares for."""

    def __init__(self, reducer: Any, armed: list[int], trainer: L.Trainer) -> None:
        self._reducer = reducer
        self._armed = armed
        self._trainer = trainer

    def prepare_for_backward(self, outputs: list[Tensor]) -> None:
        self._armed.append(self._trainer.global_step)
        self._reducer.prepare_for_backward(outputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.5)


def stage(job: Job) -> VAEStage:
    settings = {"adversarial_start": START, "r1_every": EVERY, "r1_weight": 0.5, "discriminator_pause": 0.9, "lecam_weight": 0.2}
    return tiny_stage(sgd, **settings | dict(job.settings))


def global_batches() -> Iterator[JointBatch]:
    """Batches of videos and images with a lost clip, of videos alone, and of images alone."""
    for step in range(STEPS):
        videos, images = ((4, 4), (4, 0), (0, 4))[step % 3]
        batch = tiny_batch(0.5, videos, images, seed=step)
        batch.weight[1] = 0
        yield batch


def share(batch: JointBatch, rank: int, ranks: int) -> JointBatch:
    """Return the part of a global batch that one rank trains on."""
    cut = len(batch.videos)
    rows = [*range(cut)][rank::ranks] + [*range(cut, len(batch.weight))][rank::ranks]
    return replace(
        batch,
        videos=batch.videos[rank::ranks],
        images=batch.images[rank::ranks],
        captions=[batch.captions[row] for row in rows],
        labels=batch.labels[rows],
        weight=batch.weight[rows],
        global_batch_index=batch.global_batch_index[rows],
        paths=[batch.paths[row] for row in rows],
    )


def run(job: Job, folder: Path, rank: int, ranks: int) -> None:
    """Train, and write down weights and logged values of each rank."""
    module, interfere = stage(job), Interfere(job, rank)
    if rank:
        with torch.no_grad():
            for value in (*module.parameters(), *module.buffers()):
                value.copy_(value + 1)  # rank zero's must be trained
    strategy: Any = DDPStrategy(**dict(job.ddp)) if job.ddp else "ddp" if ranks > 1 else "auto"
    batches = [share(batch, rank, ranks) for batch in global_batches()]
    seen = train(module, batches, interfere, folder=folder, devices=ranks, strategy=strategy, use_distributed_sampler=False)
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(module.named_buffers()) | dict(module.named_parameters())
    save_file({name: value.detach().contiguous() for name, value in state.items()}, folder / f"{rank}.safetensors")
    found = {"logged": seen.logged, "moved": seen.moved, "armed": interfere.armed, "ddp": interfere.ddp}
    (folder / f"{rank}.json").write_text(json.dumps(found))


PLAIN = Job("plain")
ALONE = Job("without a discriminator", settings=(("adversarial_weight", 0.0),))
SEARCH = Job("search for unused weights", ddp=(("find_unused_parameters", True),))
STATIC = Job("static graph", ddp=(("static_graph", True),))
BROKEN = Job("nan on one rank", nan_at=5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folder of the trainings by one process, and of those by two."""
    folders = {ranks: tmp_path_factory.mktemp(f"ranks{ranks}") for ranks in (1, 2)}
    start(folders[1], 1, PLAIN, ALONE, run=run)
    start(folders[2], 2, PLAIN, ALONE, SEARCH, STATIC, BROKEN, run=run)
    return folders


def weights(folder: Path, job: Job, rank: int = 0) -> dict[str, Tensor]:
    return load_file(folder / job.name / f"{rank}.safetensors")


def result(folder: Path, job: Job, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / job.name / f"{rank}.json").read_text())
    return found


NORMS = ("gradient_norm", "discriminator_gradient_norm", "discriminator_gradient_norm_with_r1", "discriminator_accuracy")
"""Values of the global batch on every rank. Others are a rank's part, and the mean over ranks is that of the global batch."""
PARTS = ("mse", "kl", "adversarial", "discriminator_loss", "r1", "logit_real", "logit_fake")


@pytest.mark.parametrize(("job", "whole"), [(PLAIN, PLAIN), (ALONE, ALONE), (SEARCH, PLAIN), (STATIC, PLAIN)], ids=lambda job: job.name)
def test_vae_stage_on_two_ranks_equals_one_process(trained: dict[int, Path], job: Job, whole: Job) -> None:
    """Weights, running means and norms of both networks, from rank zero's start; with all clips, with videos alone, with images alone."""
    wanted, ours = weights(trained[1], whole), [weights(trained[2], job, rank) for rank in (0, 1)]
    assert set(wanted) == set(ours[0]) and any("discriminator." in name for name in wanted) == (whole is PLAIN)
    for name, value in wanted.items():
        assert torch.equal(ours[0][name], ours[1][name]), name
        torch.testing.assert_close(ours[0][name], value, rtol=1e-4, atol=1e-6, msg=name)
    expected, found = result(trained[1], whole), [result(trained[2], job, rank) for rank in (0, 1)]
    assert found[0]["moved"] == found[1]["moved"] == expected["moved"]
    for step, logged in enumerate(expected["logged"]):
        both = [part["logged"][step] for part in found]
        assert set(both[0]) == set(both[1]) == set(logged)
        for name in logged:
            short = name.removeprefix("train/")
            if short in NORMS:
                assert both[0][name] == both[1][name] == pytest.approx(logged[name], rel=1e-4), (step, name)
            if short in PARTS:
                assert sum(part[name] for part in both) / 2 == pytest.approx(logged[name], rel=1e-4, abs=1e-6), (step, name)


def test_vae_stage_of_these_tests_starts_pauses_and_penalises(trained: dict[int, Path]) -> None:
    seen = result(trained[1], PLAIN)
    norms = [[f"train/discriminator_gradient_norm{end}" in logged for end in ("", "_with_r1")] for logged in seen["logged"]]
    assert [one for one, _ in norms] == [step >= START and step != PAUSED for step in range(STEPS)]
    assert [two for _, two in norms] == [step in (3, 6) for step in range(STEPS)]
    assert seen["moved"] == [[True, one] for one, _ in norms]


@pytest.mark.parametrize("job", [PLAIN, ALONE], ids=lambda job: job.name)
def test_vae_stage_reducer_prepares_for_the_autoencoder_alone_and_searches_nothing(trained: dict[int, Path], job: Job) -> None:
    for rank in (0, 1):
        seen = result(trained[2], job, rank)
        assert seen["ddp"]["search"] is False and seen["ddp"]["weights"] == seen["ddp"]["autoencoder"] > 0
        assert seen["armed"] == list(range(STEPS)), "one pass a step"


def test_vae_stage_nan_gradient_of_one_rank_skips_the_discriminator_step_on_both(trained: dict[int, Path]) -> None:
    ours = [weights(trained[2], BROKEN, rank) for rank in (0, 1)]
    assert all(torch.equal(ours[0][name], ours[1][name]) and ours[0][name].isfinite().all() for name in ours[0])
    for rank in (0, 1):
        seen = result(trained[2], BROKEN, rank)
        norms = [logged.get("train/discriminator_gradient_norm", 0.0) for logged in seen["logged"]]
        assert [norm != norm for norm in norms] == [step == BROKEN.nan_at for step in range(STEPS)]
        assert seen["moved"] == [[True, step not in (0, PAUSED, BROKEN.nan_at)] for step in range(STEPS)]
