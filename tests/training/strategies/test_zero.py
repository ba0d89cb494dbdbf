"""ZeRO against one process with the same global batch: the same losses, norms, weights and averages; and from ranks to ranks."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from safetensors.torch import load_file

from tests.helpers.engine_training import Job, stage, start
from tests.helpers.environment import Bomb
from walt_pl.runs.checkpoint import TAG, CheckpointError, UnsafePickle, tensors_only
from walt_pl.training.strategies.shards import trainable_parameters
from walt_pl.training.strategies.zero import ZeROStrategy, _put_together

SHARDED = ("zero1", "zero2", "zero3")
ENGINES = ("ddp", *SHARDED, "zero2_offload")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps on every engine with a checkpoint in the middle, and what goes on from those checkpoints on another number of ranks."""
    folder = tmp_path_factory.mktemp("engines")
    whole = Job("single", save=4)
    start(folder, 1, whole, replace(whole, name="half", precision="bf16-mixed"))
    start(
        folder,
        2,
        Job("ddp", "ddp", cpu_average=True),
        *(Job(engine, engine, save=4, activation_checkpointing=engine == "zero3") for engine in SHARDED),
        Job("zero2_offload", "zero2_offload", cpu_average=True),
        *(Job(f"{engine} validated", engine, resume=str(folder / engine / "at=4"), validate=True) for engine in ("zero2", "zero3")),
        *(Job(f"{engine} half", engine, precision="bf16-mixed") for engine in ("zero2", "zero3")),
    )
    start(
        folder,
        1,
        *(Job(f"{engine} 2 to 1", engine, resume=str(folder / engine / "at=4")) for engine in SHARDED),
        *(Job(f"{engine} alone", engine, save=4) for engine in ("zero2", "zero3")),
    )
    start(
        folder,
        2,
        *(Job(f"{engine} 1 to 2", engine, resume=str(folder / f"{engine} alone" / "at=4")) for engine in ("zero2", "zero3")),
        Job("zero2 2 to 2", "zero2", resume=str(folder / "zero2" / "at=4")),
    )
    return folder


def result(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "result.json").read_text())


def close(found: list[float], wanted: list[float], tolerance: float = 2e-6) -> bool:
    return len(found) == len(wanted) and torch.allclose(torch.tensor(found), torch.tensor(wanted), rtol=tolerance, atol=0)


def apart(folder: Path, name: str, file: str) -> float:
    """Largest difference between a file of weights and that of the single process."""
    found, wanted = (load_file(folder / run / file) for run in (name, "single"))
    assert list(found) == list(wanted)
    return max(float((found[key] - wanted[key]).abs().max()) for key in wanted)


@pytest.mark.parametrize("engine", ENGINES)
def test_zero_strategy_losses_and_gradient_norms_equal_one_process(folder: Path, engine: str) -> None:
    """Lost clips, given pasts and drawn first passes included: ranks count what weighs together, and draw by slot."""
    found, wanted = result(folder, engine), result(folder, "single")
    assert close(found["losses"], wanted["losses"])
    assert close(found["norms"], wanted["norms"], 1e-5), "clipped by the engine, at the same norm"
    assert all(norm > 0.3 for norm in wanted["norms"]), "the clip of this training is meant to be at work"


@pytest.mark.parametrize("engine", ENGINES)
def test_zero_strategy_weights_and_ema_equal_one_process(folder: Path, engine: str) -> None:
    assert apart(folder, engine, "weights.safetensors") < 5e-6
    assert apart(folder, engine, "ema.safetensors") < 5e-6
    assert apart(folder, "single", "ema.safetensors") == 0
    raw, average = (load_file(folder / engine / file) for file in ("weights.safetensors", "ema.safetensors"))
    assert max(float((raw[key] - average[key]).abs().max()) for key in raw) > 1e-4, "an average is not the weights"


@pytest.mark.parametrize("engine", ENGINES)
def test_zero_strategy_validates_with_ema_and_trains_with_weights(folder: Path, engine: str) -> None:
    assert close(result(folder, engine)["validations"], result(folder, "single")["validations"])


@pytest.mark.parametrize("engine", SHARDED)
def test_zero_strategy_every_rank_averages_its_own_shard(folder: Path, engine: str) -> None:
    whole = result(folder, "single")["held"][0]["average"]
    held = result(folder, engine)["held"]
    assert sum(rank["average"] for rank in held) < 1.02 * whole, "two halves, and padding"
    assert all(rank["average"] < 0.52 * whole for rank in held)
    assert all(rank["weights"] < 0.52 * whole for rank in held) == (engine == "zero3")


@pytest.mark.parametrize("name", ["zero1 2 to 1", "zero2 2 to 1", "zero3 2 to 1", "zero2 1 to 2", "zero3 1 to 2", "zero2 2 to 2"])
def test_zero_strategy_resumes_with_another_number_of_ranks(folder: Path, name: str) -> None:
    """Moments, schedule, order, draws and average: without one of them the losses part."""
    found, wanted = result(folder, name), result(folder, "single")
    assert close(found["losses"], wanted["losses"][4:])
    assert close(found["validations"], wanted["validations"][1:])
    assert apart(folder, name, "weights.safetensors") < 5e-6
    assert apart(folder, name, "ema.safetensors") < 5e-6
    assert not list(folder.rglob("*.resharded")), "what was put together on the way is gone"


def test_zero_strategy_all_ranks_report_a_checkpoint_that_could_not_be_resharded(folder: Path, tmp_path: Path) -> None:
    """And none of them waits for the others; here there is a file in the way, as it might be a full disk."""
    shutil.copytree(folder / "zero2 alone" / "at=4", tmp_path / "at=4")
    (tmp_path / "at=4" / "state.ckpt.resharded").touch()
    with pytest.raises(AssertionError) as said:
        start(tmp_path, 2, Job("blocked", "zero2", resume=str(tmp_path / "at=4")))
    message = r"written by 1 ranks and could not be put together for 2 \(FileExistsError.*24 bytes .*make room there, or go on with 1 ranks"
    assert len(re.findall(message, str(said.value))) >= 2
    assert (tmp_path / "at=4" / "state.ckpt" / "latest").exists()


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_zero_strategy_writes_no_weight_outside_of_the_checkpoint(folder: Path, engine: str, tmp_path: Path) -> None:
    """The names of weights in a stranger's shards become folders when they are put together for other ranks."""
    shards = shutil.copytree(folder / f"{engine} alone" / "at=4" / "state.ckpt" / TAG, tmp_path / "deep" / "er" / TAG)
    outside = str(tmp_path / "outside")
    for path in shards.glob("*model_states.pt"):
        with tensors_only(shards):
            state = torch.load(path)
        for group in (state["module"], *state["param_shapes"]):
            if group:
                group[outside] = group[next(iter(group))]
        torch.save(state, path)
    names = {name for name, _ in trainable_parameters(stage())}
    failure = _put_together(shards, tmp_path / "deep" / "universal", names)
    assert failure is not None and "is not of this model" in failure and outside in failure
    assert not Path(outside).exists() and not (tmp_path / "deep" / "universal").exists()


def test_zero_strategy_runs_no_code_that_deepspeed_reads(bomb: Bomb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that was exchanged after the look at it, for as many ranks and on the way to another number of them."""
    from deepspeed.checkpoint import ds_to_universal

    (tmp_path / TAG).mkdir()
    torch.save({"x": bomb}, tmp_path / "exchanged.pt")

    def read(*_: Any) -> Any:
        return torch.load(tmp_path / "exchanged.pt", weights_only=False)

    monkeypatch.setattr(DeepSpeedStrategy, "load_checkpoint", read)
    monkeypatch.setattr(ds_to_universal, "main", read)
    with pytest.raises(UnsafePickle, match="nothing of it was run"):
        ZeROStrategy(2)._read(tmp_path, True)
    failure = _put_together(tmp_path / TAG, tmp_path / "universal", set())
    assert failure is not None and "UnsafePickle" in failure
    assert not bomb.mark.exists()


def test_zero_strategy_refuses_links_before_deepspeed_reads(folder: Path, tmp_path: Path) -> None:
    state = shutil.copytree(folder / "zero2" / "at=4" / "state.ckpt", tmp_path / "state.ckpt")
    assert ZeROStrategy(2)._check_checkpoint(state) == 2
    (state / TAG).rename(tmp_path / "elsewhere")
    (state / TAG).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a symbolic link to"):
        ZeROStrategy(2)._check_checkpoint(state)


@pytest.mark.parametrize(
    ("files", "stage", "found"),
    [
        ((), 2, "without ZeRO"),
        ((), 3, "without ZeRO"),
        (("optim",), 3, "by ZeRO 1 or 2"),
        (("optim", "model"), 2, "by ZeRO 3"),
        (("optim",), 2, None),
        (("optim", "model"), 3, None),
    ],
)
def test_zero_strategy_names_the_strategy_that_wrote_a_checkpoint(
    files: tuple[str, ...], stage: Any, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walt_pl.training.strategies.zero.check_pickle", lambda path: None)
    (tmp_path / TAG).mkdir()
    for kind in files:
        for rank in range(3):
            (tmp_path / TAG / f"bf16_zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt").touch()
    strategy = ZeROStrategy(stage)
    if found is None:
        assert strategy._check_checkpoint(tmp_path) == 3
        return
    with pytest.raises(ValueError, match=f"was written {found}, and now the strategy is ZeRO {stage}: go on with the strategy"):
        strategy._check_checkpoint(tmp_path)


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_zero_strategy_validate_uses_the_ema_of_a_checkpoint(folder: Path, engine: str) -> None:
    assert close(result(folder, f"{engine} validated")["validations"], result(folder, "single")["validations"][:1])


def test_zero_strategy_half_precision_stays_near_float32(folder: Path) -> None:
    """DeepSpeed makes the weights half precise and keeps float32 masters; batches, noise and counts stay float32."""
    wanted = result(folder, "single")["losses"]
    for name in ("half", "zero2 half", "zero3 half"):
        assert 0 < apart(folder, name, "weights.safetensors") < 0.02, name
        assert close(result(folder, name)["losses"], wanted, 1e-3), name


def test_zero_strategy_float16_trains_or_is_refused_with_a_choice(folder: Path, tmp_path: Path) -> None:
    """Few CPUs have it, every GPU has."""
    from deepspeed.accelerator import get_accelerator

    half = Job("half", "zero2", precision="16-mixed")
    if not get_accelerator().is_fp16_supported():
        with pytest.raises(AssertionError, match="no float16 arithmetic; choose bf16-mixed or 32-true"):
            start(tmp_path, 1, half)
        return
    start(tmp_path, 1, half)
    assert close(result(tmp_path, "half")["losses"], result(folder, "single")["losses"], 0.02)


@pytest.mark.slow
def test_zero_strategy_fifty_steps_equal_one_process(tmp_path: Path) -> None:
    start(tmp_path, 1, Job("single", steps=50), Job("accumulated", steps=25, accumulate=2))
    jobs = [Job(engine, engine, steps=50) for engine in ENGINES]
    start(tmp_path, 2, *jobs, *(Job(f"{engine} accumulated", engine, steps=25, accumulate=2) for engine in SHARDED))
    for engine in ENGINES:
        assert close(result(tmp_path, engine)["losses"], result(tmp_path, "single")["losses"], 1e-4)
    for engine in SHARDED:
        assert close(result(tmp_path, f"{engine} accumulated")["losses"], result(tmp_path, "accumulated")["losses"], 1e-4)
        assert close(result(tmp_path, f"{engine} accumulated")["norms"], result(tmp_path, "accumulated")["norms"], 1e-3)
