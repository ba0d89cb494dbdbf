"""Metrics in training, on a line of two numbers that makes grey clips: its weight is their level."""

import json
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from torch import Tensor, nn

import walt_pl.training.callbacks.metrics as module
from tests.helpers.starts import launch
from tests.helpers.training import arguments
from tests.training.callbacks.test_checkpoints import Numbers, kept
from walt_pl.cli.main import main
from walt_pl.data.batch import JointBatch, Sample, SampleRef
from walt_pl.data.measured_clips import BLOCK, MeasuredClips
from walt_pl.data.selection import Bucket
from walt_pl.data.transforms import ClipTransform
from walt_pl.metrics.extractor import ClipBatch, Extractor
from walt_pl.metrics.metric import Better, Metric
from walt_pl.runs.checkpoint import Checkpoint, read_state
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.metrics import Metrics
from walt_pl.training.callbacks.reseed import Reseed
from walt_pl.training.callbacks.throughput import Throughput
from walt_pl.training.measurement import Measured, MeasurementError

SAMPLES = 2 * BLOCK + 1
"""Clips of three blocks, the last one of one clip."""


class Gap(Metric):
    """Mean level of the generated clips, less that of the real ones."""

    name: ClassVar[str] = "gap"
    needs: ClassVar[str] = "level"
    real_side: ClassVar[bool] = True
    better: ClassVar[Better] = "max"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.rows: dict[bool, list[Tensor]] = {True: [], False: []}

    def update(self, rows: Tensor, *, real: bool) -> None:
        self.rows[real].append(rows)

    def compute(self) -> float:
        if not self.rows[False]:
            raise ValueError("no rows")
        generated, real = (torch.cat(self.rows[side]).double() for side in (False, True))
        assert len(generated) == len(real)
        return float((generated - real).mean())


class Level(Extractor):
    """Level of each clip. It draws random numbers wherever it can, as networks do."""

    kind: ClassVar[str] = "level"
    gives: ClassVar[tuple[str, ...]] = ("level",)

    def __init__(self, *events: Any) -> None:
        self.events = list(events)
        """Called one after the other, with each block of generated clips."""

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "sha256": "0" * 64}

    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        torch.rand(3), random.random(), np.random.rand()
        assert all(clip.dtype == torch.uint8 and clip.shape == (2, 4, 4, 3) for clip in batch.clips)
        if batch.originals is not None and self.events:
            self.events.pop(0)()
        return {"level": torch.stack([clip.float().mean() for clip in batch.clips])[:, None]}


class Grey(L.LightningModule):
    """Makes each clip as grey as its weight, and a little brighter with its place."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line, self.dropout = nn.Linear(1, 1), nn.Dropout(dropout)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        assert self.training and self.dropout.training and torch.is_grad_enabled()
        return (self.line(self.dropout(batch)) - 0.9).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1)

    def measured_clips(self, batch: JointBatch) -> Tensor:
        assert not self.dropout.training and not torch.is_grad_enabled()
        place = batch.global_batch_index.view(-1, 1, 1, 1, 1) / 255
        return self.line.weight.clamp(-0.9, 0.9) + place + torch.zeros_like(batch.videos)

    def measured_config(self) -> dict[str, Any]:
        return {"clips": "samples", "steps": 3}


class Pictures:
    """Source of grey clips as bright as their number."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken = broken

    def __getitem__(self, draw: SampleRef) -> Sample:
        failure = f"{draw.item}.mp4 is broken" if draw.item in self.broken else ""
        return Sample(
            draw, torch.full((3, 3, 4, 4), draw.item / 100), None, f"clip {draw.item}", draw.item, f"{draw.item}", failure, "pixels"
        )

    def replace_failed(self, draw: SampleRef, reason: str) -> Sample:
        raise AssertionError("a measurement reads clips itself, and asks for no substitute")


class Data(Numbers):
    clip_transform = ClipTransform(4, frames=3)

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.broken = broken

    def measured_clips(self, samples: int) -> MeasuredClips:
        refs = [SampleRef("video", item, 0, item) for item in range(samples)]
        blocks = [refs[start : start + BLOCK] for start in range(0, samples, BLOCK)]
        return MeasuredClips(blocks, self.clip_transform, [Bucket(4, 4)], [Pictures(self.broken)], 0, 60.0, 60.0)


def use(extractor: Level) -> None:
    module.choose_metrics = lambda text: [Gap]  # type: ignore[attr-defined]
    module.choose_extractors = lambda *_: [extractor]  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo `use` after the test."""
    for name in ("choose_metrics", "choose_extractors"):
        monkeypatch.setattr(module, name, getattr(module, name))


def train(
    folder: Path,
    steps: int,
    every: int = 2,
    *extra: L.Callback,
    stage: Grey | None = None,
    data: Data | None = None,
    trainer: dict[str, Any] | None = None,
    **options: Any,
) -> L.Trainer:
    """Train, and go on from the newest checkpoint if there is one."""
    newest = Checkpoint.newest(folder / "checkpoints")
    settings = {"every_n_train_steps": 1, "every_n_minutes": 0, "keep": 10, **options}
    metrics = Metrics(every_steps=every, samples=SAMPLES, names=("gap",), frames=2)
    built = L.Trainer(
        **{"accelerator": "cpu", "devices": 1, **(trainer or {})},
        max_steps=steps,
        max_epochs=-1,
        callbacks=[*extra, EMA(decay=0.5), Checkpoints(str(folder / "checkpoints"), **settings)],
        logger=CSVLogger(folder / "logs"),
        log_every_n_steps=1000,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        default_root_dir=folder,
    )
    built.callbacks.append(metrics)  # type: ignore[attr-defined]  # after the checkpoints, as `fit` does
    if newest is not None:
        built.ckpt_path = str(newest.state)
    built.fit(stage or Grey(), data or Data())
    return built


def recorded(folder: Path) -> dict[int, float]:
    return {c.step: c.metrics["metrics/gap"] for c in Checkpoint.all(folder / "checkpoints") if "metrics/gap" in c.metrics}


def expected(folder: Path, step: int, places: range | list[int] = range(SAMPLES)) -> tuple[float, float]:
    """Gap of the averaged weights of a checkpoint, and of its raw ones."""
    checkpoint = Checkpoint.at(folder / "checkpoints" / f"step={step:08d}")
    assert checkpoint.ema is not None
    averaged, raw = load_file(checkpoint.ema)["line.weight"], read_state(checkpoint.state)["state_dict"]["line.weight"]

    def level(x: float) -> int:
        return round((min(1.0, x) + 1) * 127.5)

    first, second = ([level(float(weight.clamp(-0.9, 0.9)) + place / 255) for place in places] for weight in (averaged, raw))
    real = float(np.mean([level(place / 100) for place in places]))
    return float(np.mean(first)) - real, float(np.mean(second)) - real


def everything(folder: Path) -> dict[str, Tensor]:
    newest = Checkpoint.newest(folder / "checkpoints")
    assert newest is not None and newest.ema is not None
    state = read_state(newest.state)
    moments = state["optimizer_states"][0]["state"]
    named = {f"{number}.{name}": torch.as_tensor(value) for number, values in moments.items() for name, value in values.items()}
    return {**state["state_dict"], **named, **{f"ema.{name}": value for name, value in load_file(newest.ema).items()}}


def assert_equal(one: Path, other: Path) -> None:
    mine, theirs = everything(one), everything(other)
    assert sorted(mine) == sorted(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_metrics_are_those_of_the_averaged_weights_at_every_nth_step(tmp_path: Path) -> None:
    use(Level())
    trainer = train(tmp_path, 6)
    found = recorded(tmp_path)
    assert sorted(found) == [2, 4, 6]
    for step, value in found.items():
        averaged, raw = expected(tmp_path, step)
        assert value == pytest.approx(averaged, abs=0.01) and value != pytest.approx(raw, abs=0.5)
    lines = (Path(str(trainer.log_dir)) / "metrics.csv").read_text().split()
    assert lines == ["metrics/gap,step", *(f"{value},{step}" for step, value in found.items())]
    callback = trainer.callbacks[-1]  # type: ignore[attr-defined]
    card = callback.card_entries(Grey(), averaged=True)["in_training"]
    assert card["step"] == 6 and card["values"] == {"gap": found[6]}
    assert card["protocol"] == {
        **{"samples": SAMPLES, "frames": 2, "split": "val", "real": "pixels of the index, view 0", "weights": "averaged"},
        **{"extractors": [{"kind": "level", "sha256": "0" * 64}], "clips": "samples", "steps": 3},
    }
    assert callback.card_entries(Grey(), averaged=False)["in_training"]["protocol"]["weights"] == "raw"


def test_metrics_leave_the_training_equal_to_the_bit(tmp_path: Path) -> None:
    """Nothing reseeds dropout in the first two; the third goes on from a checkpoint, where that is needed."""
    use(Level())
    for name, every in (("without", 0), ("with", 1)):
        train(tmp_path / name, 6, every)
    assert_equal(tmp_path / "with", tmp_path / "without")
    train(tmp_path / "plain", 6, 0, Reseed(1))
    train(tmp_path / "resumed", 3, 1, Reseed(1))
    train(tmp_path / "resumed", 6, 1, Reseed(1))
    assert_equal(tmp_path / "resumed", tmp_path / "plain")
    assert sorted(recorded(tmp_path / "resumed")) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("schedule", [1, 0])
@pytest.mark.parametrize(("mode", "best"), [("max", 4), ("min", 2)])
def test_checkpoints_keeps_the_best_by_a_metric_of_the_callback(schedule: int, mode: str, best: int, tmp_path: Path) -> None:
    """The best one is also saved where the schedule has none."""
    use(Level())
    stage, levels = Grey(), {2: -0.5, 4: 0.5, 6: 0.1, 8: 0.2}

    def set_level(batch: JointBatch) -> Tensor:
        return torch.full_like(batch.videos, levels[stage.global_step])

    stage.measured_clips = set_level  # type: ignore[method-assign]
    train(tmp_path, 9, stage=stage, keep=1, monitor="metrics/gap", mode=mode, every_n_train_steps=schedule)
    assert kept(tmp_path / "checkpoints") == [best, 9]


@pytest.mark.filterwarnings("ignore:.*could not be measured")
@pytest.mark.parametrize("fails", [False, True])
def test_metrics_take_no_time_from_the_speed_of_the_training(fails: bool) -> None:
    speed, logged = Throughput(every_n_steps=1), {}

    def measure(*_: Any) -> Measured:
        time.sleep(0.5)
        if fails:
            raise MeasurementError("no room")
        return Measured({}, [], 0)

    callback, groups = Metrics(), [{"lr": 0.1}]
    callback._measurement = SimpleNamespace(measure=measure)  # type: ignore[assignment]
    trainer: Any = SimpleNamespace(
        global_step=1, world_size=1, callbacks=[speed], loggers=[], optimizers=[SimpleNamespace(param_groups=groups)]
    )
    stage: Any = Grey()
    stage.log_dict = logged.update
    speed.on_train_start(trainer, stage)
    trainer.global_step = 2
    callback._measure(trainer, stage)
    speed.on_train_batch_end(trainer, stage, None, SimpleNamespace(videos=torch.zeros(4, 3), images=torch.zeros(0, 3)), 0)  # type: ignore[arg-type]
    assert logged["speed/clips_per_second"] > 4 / 0.5


@pytest.mark.filterwarnings("ignore:.*of weight 0 so far")
def test_metrics_leave_out_clips_that_cannot_be_read_and_warn_of_a_failure(tmp_path: Path) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("no room")

    use(Level(fail))
    with pytest.warns(UserWarning, match=r"step 2: the metrics could not be measured \(no room\); training goes on"):
        trainer = train(tmp_path, 4, data=Data(broken=(1, SAMPLES - 1)))
    assert trainer.global_step == 4 and list(recorded(tmp_path)) == [4]
    readable = [place for place in range(SAMPLES) if place not in (1, SAMPLES - 1)]
    assert recorded(tmp_path)[4] == pytest.approx(expected(tmp_path, 4, readable)[0], abs=0.01)
    with pytest.warns(UserWarning, match="step 2: no value of gap: no rows; training goes on"):
        assert train(tmp_path / "none", 2, data=Data(broken=tuple(range(SAMPLES)))).global_step == 2


def test_metrics_stopped_by_a_signal_are_measured_by_the_next_start(tmp_path: Path) -> None:
    use(Level(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, 4, 2, Reseed(1), every_n_train_steps=0)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert kept(tmp_path / "checkpoints") == [2] and not recorded(tmp_path)
    train(tmp_path, 4, 2, Reseed(1), every_n_train_steps=0)
    train(tmp_path / "whole", 4, 2, Reseed(1), every_n_train_steps=2)
    assert recorded(tmp_path) == recorded(tmp_path / "whole") and list(recorded(tmp_path)) == [2, 4]


def train_on_ranks(folder: Path) -> None:
    """Train on two ranks; the extractor of the second one fails at step 2."""

    def fail() -> None:
        if os.environ["LOCAL_RANK"] == "1":
            raise RuntimeError("no room on rank 1")

    use(Level(fail))
    train(folder, 4, stage=Grey(dropout=0), trainer={"devices": 2, "strategy": "ddp"})


def test_metrics_on_two_ranks_are_those_of_one_and_a_failure_of_one_rank_is_told(tmp_path: Path) -> None:
    assert (started := launch(train_on_ranks, tmp_path / "two", ranks=2)).wait(120) == 0, started.said
    assert "step 2: the metrics could not be measured (no room on rank 1); training goes on" in started.said
    use(Level())
    train(tmp_path / "one", 4, stage=Grey(dropout=0))
    assert recorded(tmp_path / "two") == {4: recorded(tmp_path / "one")[4]}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"every_steps": -1}, r"metrics\.every_steps must be at least 0, got -1"),
        ({"frames": 0}, r"metrics\.frames must be at least 1, got 0"),
        ({"samples": 0}, r"metrics\.samples must be at least 1, got 0"),
        ({"every_steps": 1}, r"metrics\.names is empty: add --metrics\.names '\[psnr\]'"),
        ({"every_steps": 1, "names": ("pnsr",)}, 'there is no metric "pnsr"'),
    ],
)
def test_metrics_refuse_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Metrics(**settings)


def test_metrics_refuse_missing_extractors_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("metrics.extractor: no such file")

    use(Level())
    monkeypatch.setattr(module, "choose_extractors", refuse)
    with pytest.raises(ValueError, match="no such file"):
        train(tmp_path, 2)
    assert not kept(tmp_path / "checkpoints")
    data: Any = SimpleNamespace(datamodule=Data(), ckpt_path=None)
    with pytest.raises(ValueError, match=r"metrics\.frames is 4, but a clip has 3"):
        Metrics(every_steps=2, names=("gap",), frames=4).setup(data, Grey(), "fit")
    callback = Metrics(every_steps=2, names=("gap",))
    callback.setup(SimpleNamespace(), Grey(), "validate")  # type: ignore[arg-type]


def test_fit_command_with_metrics_makes_the_artifact_of_one_without(
    painted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--trainer.max_steps", "4", "--data.val_videos", "6", "--trainer.val_check_interval", "4"]
    measured = ["--metrics.every_steps", "2", "--metrics.samples", "6", "--metrics.names", "[psnr]", "--checkpoint.monitor", "metrics/psnr"]
    for name, extra in (("with", measured), ("without", [])):
        main(["fit", *arguments("vae", tmp_path / name, painted, *more), *extra])
    mine, theirs = (tmp_path / name / "vae" for name in ("with", "without"))
    assert (mine / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    card = json.loads((mine / "card.json").read_text())["metrics"]
    assert card["values"] == json.loads((theirs / "card.json").read_text())["metrics"]["values"]
    assert card["in_training"]["step"] == 4 and card["in_training"]["protocol"]["clips"] == "reconstructions"
    # Six clips of the validation, as the callback has them.
    assert card["in_training"]["values"]["psnr"] == pytest.approx(card["values"]["val/psnr_video"], abs=0.1)
    last = Checkpoint.newest(tmp_path / "with" / "training" / "vae" / "checkpoints")
    assert last is not None and set(last.metrics) == {"metrics/psnr", "val/psnr_video", "val/psnr_image"}
