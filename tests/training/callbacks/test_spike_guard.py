"""A batch that would spoil the training: on one device and on two ranks, under every engine; and what is written down of it."""

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.engine_training import start
from tests.helpers.guarded_training import SLOT, Guarded, run
from walt_pl.runs.artifact import load
from walt_pl.runs.checkpoint import Checkpoint
from walt_pl.runs.whole_weights import weights
from walt_pl.training.callbacks.spike_guard import SpikeGuard
from walt_pl.training.engine_memory import checkpoint_bytes

NAN, SPIKE = float("nan"), 1e4
BAD = {3: NAN, 8: SPIKE}
ENGINES = ("ddp", "zero1", "zero2", "zero3", "zero2_offload")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings of ten steps with a checkpoint after five."""
    folder = tmp_path_factory.mktemp("guarded")
    start(
        folder,
        1,
        Guarded("single", spoil=BAD),
        Guarded("resumed", spoil=BAD, resume="single"),
        Guarded("single back", policy="rollback", spoil=BAD),
        Guarded("resumed back", policy="rollback", spoil=BAD, resume="single back"),
        Guarded("too many", spoil={3: NAN, 4: NAN, 6: NAN}, max_incidents=2),
        Guarded("far apart", spoil={0: NAN, 4: NAN, 8: NAN}, max_incidents=1, window=4),
        Guarded("off", spoil={3: NAN}, policy="off", steps=5),
        run=run,
    )
    start(
        folder,
        2,
        *(Guarded(engine, engine, spoil=BAD) for engine in ENGINES),
        *(Guarded(f"{engine} back", engine, policy="rollback", spoil={8: SPIKE}) for engine in ("ddp", "zero2", "zero3")),
        *(Guarded(f"{engine} half", engine, precision="bf16-mixed", spoil=BAD) for engine in ("zero2", "zero3")),
        Guarded("zero2 raw", "zero2", decay=0.0, steps=5),
        run=run,
    )
    return folder


def seen(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / name / f"seen.{rank}.json").read_text())


def incident(folder: Path, name: str, step: int) -> dict[str, Any]:
    return json.loads((folder / name / "incidents" / f"step={step:08d}.json").read_text())


def stayed(marks: list[float]) -> list[int]:
    """Steps after which there was what had been before."""
    return [step for step in range(1, len(marks)) if marks[step] == marks[step - 1]]


@pytest.mark.parametrize("name", ["single", *ENGINES, "zero2 half", "zero3 half"])
def test_spike_guard_skipped_steps_keep_weights_and_moments_on_every_rank(folder: Path, name: str) -> None:
    for rank in range(1 if name == "single" else 2):
        marks = seen(folder, name, rank)
        assert stayed(marks["weights"]) == sorted(BAD)
        # A rank may hold nothing but padding of a state; what it holds stays.
        assert set(BAD) <= set(stayed(marks["moments"]))
        assert len(set(marks["rate"])) > 5, "the schedule goes on"
    assert all(torch.isfinite(value).all() for value in load_file(folder / name / "weights.safetensors").values())


@pytest.mark.parametrize("name", ENGINES)
def test_spike_guard_of_ranks_skips_the_steps_of_one_process(folder: Path, name: str) -> None:
    mine, single = (load_file(folder / run / "weights.safetensors") for run in (name, "single"))
    for key, value in single.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_spike_guard_incident_names_loss_files_and_norms_alike_for_every_engine(folder: Path, name: str) -> None:
    mine, single = (incident(folder, run, 8) for run in (name, "single"))
    assert mine["action"] == "skipped" and "deviations above the median" in " ".join(mine["why"])
    assert (mine["loss"], mine["gradient norm"]) == pytest.approx((single["loss"], single["gradient norm"]), rel=1e-3)
    layers = "gradient norm by layer"
    assert mine[layers] == pytest.approx(single[layers], rel=1e-3)
    assert sum(norm**2 for norm in mine[layers].values()) == pytest.approx(mine["gradient norm"] ** 2, rel=1e-3)
    files = [file for rank in mine["ranks"] for batch in rank["files"] for file in batch]
    assert sorted(file["global_batch_index"] for file in files) == list(range(8))
    assert {file["global_batch_index"]: file["path"] for file in files} == {
        f["global_batch_index"]: f["path"] for f in single["ranks"][0]["files"][0]
    }
    spoilt = incident(folder, name, 3)
    assert [rank["loss"] == "nan" for rank in spoilt["ranks"]] == [False, True], "it says who had it"
    assert SLOT in [file["global_batch_index"] for file in spoilt["ranks"][1]["files"][0]]
    assert spoilt["loss"] == "nan" and spoilt[layers]


def test_spike_guard_off_ends_the_training_at_a_nan_batch(folder: Path) -> None:
    assert "step 5: training ends without a checkpoint" in seen(folder, "off")["said"]
    assert "are nan or infinite" in seen(folder, "off")["said"]


@pytest.mark.parametrize("policy", ["", " back"])
def test_spike_guard_history_survives_a_resume(folder: Path, policy: str) -> None:
    """Three steps after the checkpoint are too few to call anything a spike: it is one for what came before."""
    whole, resumed = f"single{policy}", f"resumed{policy}"
    for key in ("weights", "moments", "average", "rate"):
        assert seen(folder, resumed)[key] == seen(folder, whole)[key][5:]
    assert incident(folder, resumed, 8) == incident(folder, whole, 8)


@pytest.mark.parametrize("name", ["single back", "ddp back", "zero2 back", "zero3 back"])
def test_spike_guard_rollback_restores_weights_moments_and_ema(folder: Path, name: str) -> None:
    for rank in range(1 if name.startswith("single") else 2):
        marks = seen(folder, name, rank)
        for key in ("weights", "moments", "average"):
            assert marks[key][8] == marks[key][4], "the checkpoint is of five steps"
            assert marks[key][9] != marks[key][8], "and training goes on from there"
        assert marks["rate"][8] < marks["rate"][4], "with the schedule of the step it is at"
    assert incident(folder, name, 8)["action"] == "rolled back"


def test_spike_guard_ends_the_training_after_too_many_incidents(folder: Path) -> None:
    said = seen(folder, "too many")["said"]
    assert "step 6: the loss is nan" in said and "spike_guard.max_incidents is 2" in said and "lower model.optimizer.init_args.lr" in said
    assert incident(folder, "too many", 6)["action"] == "stopped"
    assert incident(folder, "too many", 4)["action"] == "skipped"
    assert not (folder / "too many" / "run" / "base").exists(), "what diverged is not finished"
    assert seen(folder, "far apart")["said"] == "", "not more than one within the window"


def test_spike_guard_median_ignores_spikes_and_adapts_to_a_new_level() -> None:
    guard = SpikeGuard(window=16, deviations=8)
    known = guard._history["loss"]
    assert guard._judge("loss", 1e9) is None, "nothing is known yet"
    known.extend([1.0, 1.2, 0.9, 1.1, 1000.0, 1.0])
    assert guard._judge("loss", 2.0) is None
    assert "8.0 deviations" not in str(guard._judge("loss", 50.0)) and guard._judge("loss", 50.0)
    known.extend([50.0] * 12)
    assert guard._judge("loss", 55.0) is None
    assert guard._judge("loss", float("inf")) == "the loss is inf"


@pytest.mark.parametrize(("name", "value"), [("deviations", 0.5), ("window", 3), ("max_incidents", -1)])
def test_spike_guard_refuses_settings_that_make_no_sense(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"guard.{name} must be at least"):
        SpikeGuard(**{name: value})  # type: ignore[arg-type]


# ---- Whole weights, and artifacts, of every engine ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["single", *ENGINES, "zero2 half", "zero3 half", "zero2 raw"])
def test_weights_of_a_checkpoint_are_those_that_trained(folder: Path, name: str) -> None:
    last = Checkpoint.newest(folder / name / "checkpoints")
    assert last is not None
    raw, trained = weights(last, ema=False), load_file(folder / name / "weights.safetensors")
    assert sorted(raw) == sorted(trained) and all(value.dtype == torch.float32 for value in raw.values())
    assert all(torch.equal(raw[key], trained[key]) for key in trained)
    averaged = weights(last)
    same = all(torch.equal(averaged[key], raw[key]) for key in raw)
    assert same == (name == "zero2 raw"), "averages where there are any"


@pytest.mark.parametrize("name", ["single", *ENGINES, "zero2 half", "zero3 half", "zero2 raw"])
def test_export_of_a_checkpoint_equals_the_artifact_of_the_training(folder: Path, name: str, tmp_path: Path) -> None:
    from walt_pl.cli.export import export_checkpoint

    checkpoint, sha256 = export_checkpoint(folder / name / "checkpoints", tmp_path / "out")
    left, made = load(folder / name / "run" / "base"), load(tmp_path / "out", verify=True)
    assert sha256 == left.sha256, "the same weights, to the last bit"
    assert made.config == left.config and made.card["files"] == left.card["files"]
    for key in ("kind", "parents", "index", "steps", "samples"):
        assert made.card[key] == left.card[key]
    assert checkpoint.step == made.card["steps"]


@pytest.mark.parametrize("name", ["single", "ddp", "zero1", "zero2", "zero3", "zero2 half", "zero3 half", "zero2 raw"])
def test_checkpoint_bytes_are_as_planned(folder: Path, name: str) -> None:
    """Every byte of a tensor in its files; names and sizes are little beside those of a model worth planning."""
    last = Checkpoint.newest(folder / name / "checkpoints")
    assert last is not None
    count = sum(value.numel() for value in load_file(folder / name / "weights.safetensors").values())
    engine = name.split()[0].replace("single", "ddp")
    precision = "bf16-mixed" if "half" in name else "32-true"
    planned = checkpoint_bytes(engine, count, count, 8 * count, precision, last.ema is not None)  # type: ignore[arg-type]
    found = 4 * count * (last.ema is not None)
    for path in [last.state] if last.state.is_file() else last.state.rglob("*.pt"):
        with ZipFile(path) as archive:
            found += sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)
    assert found == pytest.approx(planned, rel=0.02)
