"""A checkpoint is whole or does not count, and reading one runs nothing that is in it."""

import errno
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.checkpoint_files import describe_again, without_hashes
from tests.helpers.environment import Bomb, full_disk
from walt_pl.models.losses import perceptual_term
from walt_pl.runs.artifact import load
from walt_pl.runs.checkpoint import (
    Checkpoint,
    CheckpointError,
    IncompleteCheckpoint,
    UnsafePickle,
    check_pickle,
    finalize_checkpoint,
    folder_name,
    read_state,
    tensors_only,
    write_state,
)
from walt_pl.runs.whole_weights import weights


def write(folder: Path, step: int) -> Checkpoint:
    part = folder / f"{folder_name(step)}.part"
    part.mkdir(parents=True)
    torch.save({"global_step": step, "weights": torch.full((1000,), float(step))}, part / "state.ckpt")
    return finalize_checkpoint(part, step, samples=4 * step, strategy="ddp", world_size=2, metrics={"val/loss": 0.5})


def test_checkpoint_newest_is_found_and_read(tmp_path: Path) -> None:
    for step in (5, 10, 100_000_000):
        write(tmp_path, step)
    newest = Checkpoint.newest(tmp_path)
    assert newest == Checkpoint.at(tmp_path / "step=100000000")
    assert newest is not None and (newest.step, newest.samples, newest.strategy, newest.world_size) == (100_000_000, 400_000_000, "ddp", 2)
    assert newest.metrics == {"val/loss": 0.5} and newest.ema is None
    assert read_state(newest.state)["global_step"] == newest.step
    assert not list(tmp_path.glob("*.part"))
    assert Checkpoint.newest(tmp_path / "nowhere") is None


def cut_short(folder: Path) -> None:
    data = (folder / "state.ckpt").read_bytes()
    (folder / "state.ckpt").write_bytes(data[: len(data) // 2])


def never_renamed(folder: Path) -> None:
    folder.rename(folder.with_name(f"{folder.name}.part"))


def half_a_card(folder: Path) -> None:
    (folder / "checkpoint.json").write_text((folder / "checkpoint.json").read_text()[:40])


TEARS: list[Callable[[Path], None]] = [
    cut_short,
    half_a_card,
    lambda folder: (folder / "state.ckpt").unlink(),
    lambda folder: (folder / "checkpoint.json").unlink(),
]


@pytest.mark.parametrize("tear", TEARS, ids=["cut short", "half a card", "no state", "no card"])
def test_checkpoint_newest_skips_an_incomplete_one_with_a_warning(tear: Callable[[Path], None], tmp_path: Path) -> None:
    for step in (5, 10):
        write(tmp_path, step)
    tear(tmp_path / "step=00000010")
    with pytest.warns(UserWarning, match="step=00000010 is incomplete"):
        newest = Checkpoint.newest(tmp_path)
    assert newest is not None and newest.step == 5
    with pytest.raises(IncompleteCheckpoint, match="use an older checkpoint beside it"):
        Checkpoint.at(tmp_path / "step=00000010")


def test_checkpoint_newest_ignores_an_unfinished_one(tmp_path: Path) -> None:
    for step in (5, 10):
        write(tmp_path, step)
    never_renamed(tmp_path / "step=00000010")
    with warnings.catch_warnings(action="error"):
        newest = Checkpoint.newest(tmp_path)
    assert newest is not None and newest.step == 5


def test_checkpoint_of_another_format_is_not_called_incomplete(tmp_path: Path) -> None:
    describe_again(write(tmp_path, 5).path, format=9)
    with pytest.raises(CheckpointError, match="format 9, this program reads 3"):
        Checkpoint.newest(tmp_path)


@pytest.mark.parametrize("limit", [2_000, 100_000, 900_000])
def test_write_state_returns_the_error_of_a_full_disk(limit: int, tmp_path: Path) -> None:
    """Python's files are buffered, so that torch's writer comes to know at another moment for small tensors than for large ones."""
    file, state = tmp_path / "state.ckpt", {"small": torch.randn(1000), "a": torch.randn(200_000), "b": torch.randn(200_000)}
    with full_disk(limit):
        refused = write_state(state, file)
    assert isinstance(refused, OSError) and refused.errno == errno.EFBIG
    assert isinstance(write_state(state, file), str)
    assert torch.equal(read_state(file)["b"], state["b"])
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_state({"a": lambda: None}, file)  # what cannot be pickled is no full disk


# ---- Code in what is read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol, zipped", [(2, True), (4, True), (2, False)])
def test_read_state_refuses_code_in_a_single_file(bomb: Bomb, protocol: int, zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / "state.ckpt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "x": bomb}, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    for read in (read_state, check_pickle):
        with pytest.raises(UnsafePickle, match="nothing of it was run"):
            read(file)
    file.write_bytes(pickle.dumps(bomb))  # and a pickle that torch did not write
    for read in (read_state, check_pickle):
        with pytest.raises(UnsafePickle, match="nothing of it was run"):
            read(file)
    assert not bomb.mark.exists()


def shards(folder: Path, **more: object) -> Path:
    """A folder as DeepSpeed writes it."""
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "latest").write_text("checkpoint")
    for name in ("mp_rank_00_model_states", "zero_pp_rank_0_mp_rank_00_optim_states", "zero_pp_rank_1_mp_rank_00_optim_states"):
        held = more if "rank_1" in name or not name.startswith("zero") else {}
        torch.save({"global_step": 3, **held}, folder / "checkpoint" / f"{name}.pt")
    return folder


def test_read_state_refuses_code_in_a_shard(bomb: Bomb, tmp_path: Path) -> None:
    assert read_state(shards(tmp_path / "good"))["global_step"] == 3
    bad = shards(tmp_path / "bad", x=bomb)
    for read in (read_state, check_pickle):
        with pytest.raises(UnsafePickle, match=r"mkdir.*nothing of it was run"):
            read(bad)
    (bad / "checkpoint" / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(UnsafePickle, match="rank_1"):
        check_pickle(bad)
    assert not bomb.mark.exists()


NAMES = [
    "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states",
    "mp_rank_00_model_states.pt.bak",
    "layer_00-model_states.PT",
    ".hidden.x",
    "deep/er/x.pt",
    "../zero/x",
    "../latest_universal",
]


@pytest.mark.parametrize("name", NAMES)
def test_check_pickle_looks_at_every_file(bomb: Bomb, tmp_path: Path, name: str) -> None:
    """DeepSpeed finds its files by how their names begin, and in folders too."""
    bad = shards(tmp_path / "bad") / "checkpoint" / name
    bad.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"x": bomb}, bad)
    for read in (read_state, check_pickle):
        with pytest.raises(UnsafePickle, match="mkdir"):
            read(tmp_path / "bad")
    assert not bomb.mark.exists()


@pytest.mark.parametrize("latest", ["../bad/checkpoint", "..", ".", "", "{tmp}/bad/checkpoint", "other", None])
def test_check_pickle_refuses_shards_elsewhere(bomb: Bomb, tmp_path: Path, latest: str | None) -> None:
    """DeepSpeed follows what `latest` says; only what was looked at may be followed."""
    shards(tmp_path / "bad", x=bomb)
    good = shards(tmp_path / "good")
    (good / "other").mkdir()
    for folder in (tmp_path, good):
        torch.save({"x": bomb} if folder == tmp_path else {}, folder / "mp_rank_00_model_states.pt")
    (good / "latest").unlink()
    if latest is not None:
        (good / "latest").write_text(latest.replace("{tmp}", str(tmp_path)))
    for read in (read_state, check_pickle):
        with pytest.raises(CheckpointError, match=r'latest names .*, wanted "checkpoint"'):
            read(good)


def sharded(folder: Path, step: int, **more: object) -> Checkpoint:
    part = folder / f"{folder_name(step)}.part"
    shards(part / "state.ckpt", **more)
    (part / "ema.safetensors").write_bytes(b"")
    return finalize_checkpoint(part, step, samples=step, strategy="zero2", world_size=2, metrics={})


def linked(name: str) -> Callable[[Path, Path], None]:
    """Put a link to the same file or folder of another checkpoint in the place of its own."""

    def link(folder: Path, other: Path) -> None:
        (folder / name).rename(folder.parent / "moved")
        (folder / name).symlink_to(other / name)

    return link


LINKS: dict[str, Callable[[Path, Path], object]] = {
    "folder of the shards": linked("state.ckpt/checkpoint"),
    "shard": linked("state.ckpt/checkpoint/mp_rank_00_model_states.pt"),
    "state": linked("state.ckpt"),
    "latest": linked("state.ckpt/latest"),
    "averages": linked("ema.safetensors"),
    "card": linked("checkpoint.json"),
    "further shard": lambda folder, other: (folder / "state.ckpt/checkpoint/zero_pp_rank_2").symlink_to(other / "ema.safetensors"),
    "further folder": lambda folder, other: (folder / ".deep").symlink_to(other),
    "link to nothing": lambda folder, other: (folder / "state.ckpt.resharded").symlink_to(other / "nothing"),
    "pipe": lambda folder, other: os.mkfifo(folder / "state.ckpt" / "checkpoint" / "mp_rank_01_model_states.pt"),
}


@pytest.mark.parametrize("case", LINKS)
def test_checkpoint_refuses_links_and_pipes(bomb: Bomb, tmp_path: Path, case: str) -> None:
    bad = sharded(tmp_path / "bad", 7, x=bomb)
    good = sharded(tmp_path / "run", 7)
    older = sharded(tmp_path / "run", 5)
    LINKS[case](good.path, bad.path)
    for read in (Checkpoint.at, lambda path: Checkpoint.newest(path.parent)):
        with pytest.raises(CheckpointError, match=r"is a (symbolic link to|pipe).*wanted a plain file or folder"):
            read(good.path)
    if "state.ckpt/" in str(next((path for path in good.path.rglob("*") if path.is_symlink()), "")):
        for look in (check_pickle, read_state):
            with pytest.raises(CheckpointError, match="wanted a plain file or folder"):
                look(good.state)
    assert Checkpoint.all(tmp_path / "run") == [older], "and does not stop a training that writes beside it"
    assert not bomb.mark.exists()


def test_checkpoint_is_found_through_links_that_were_typed(tmp_path: Path) -> None:
    real = sharded(tmp_path / "real", 7)
    (tmp_path / "run").symlink_to("real")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / real.path.name).symlink_to(real.path)
    for folder in (tmp_path / "run", tmp_path / "elsewhere"):
        newest = Checkpoint.newest(folder)
        assert newest is not None and newest.step == 7 and read_state(newest.state)["global_step"] == 3


def test_checkpoint_card_names_no_file_outside(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("mine")
    good = sharded(tmp_path / "run", 7)
    for name in ("../../private", str(tmp_path / "private")):
        describe_again(good.path, files={name: {"bytes": 4}})
        with pytest.raises(IncompleteCheckpoint, match="is missing"):
            Checkpoint.at(good.path)


def test_weights_run_no_code_of_a_shard_exchanged_after_the_check(bomb: Bomb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard is exchanged between the look at it and DeepSpeed's reading. Hashes of format 3 find it, too."""
    good = sharded(tmp_path / "run", 7)
    without_hashes(good.path)

    def look(folder: Path) -> None:
        check_pickle(folder)
        torch.save({"x": bomb}, folder / "checkpoint" / "mp_rank_00_model_states.pt")

    monkeypatch.setattr("walt_pl.runs.whole_weights.check_pickle", look)
    with pytest.raises(UnsafePickle, match="nothing of it was run"):
        weights(good)
    assert not bomb.mark.exists()


@pytest.mark.parametrize("variable", ["TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "OTHER"])
def test_tensors_only_holds_against_every_environment_variable(
    bomb: Bomb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    monkeypatch.setenv(variable, "0" if "NO" not in variable else "1")
    torch.save({"x": bomb}, tmp_path / "bad.pt")
    torch.save({"x": LossScaler(2.0), "w": torch.ones(2)}, tmp_path / "good.pt")
    with tensors_only(tmp_path):
        assert torch.load(tmp_path / "good.pt", weights_only=False)["x"].cur_scale == 2.0
    with pytest.raises(UnsafePickle, match="nothing of it was run"), tensors_only(tmp_path):
        torch.load(tmp_path / "bad.pt", weights_only=False)
    assert not bomb.mark.exists()
    assert os.environ[variable] == ("0" if "NO" not in variable else "1"), "and the environment is as it was"


def test_read_state_reads_types_of_deepspeed_without_it(tmp_path: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    held = {"scaler": LossScaler(1.0), "stage": ZeroStageEnum(2), "place": fragment_address(numel=3, start=1)}
    assert read_state(shards(tmp_path / "s", **held))["global_step"] == 3


def test_perceptual_term_refuses_code_in_weights(bomb: Bomb, tmp_path: Path) -> None:
    file = tmp_path / "vgg16.pth"
    torch.save({"features.0.weight": bomb}, file)
    with pytest.raises(ValueError):
        perceptual_term("lpips", str(file))
    assert not bomb.mark.exists()


def test_load_artifact_refuses_code(bomb: Bomb, tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "model.safetensors").write_bytes(pickle.dumps(bomb))
    mark = f"!!python/object/apply:os.mkdir ['{bomb.mark}']"
    (tmp_path / "artifact" / "model.yaml").write_text(mark)
    (tmp_path / "artifact" / "card.json").write_text("{}")
    with pytest.raises(ValueError):
        load(tmp_path / "artifact")
    assert not bomb.mark.exists()


def test_extended_files_runs_no_code_of_a_configuration(bomb: Bomb, tmp_path: Path) -> None:
    from walt_pl.cli.config_files import extended_files

    file = tmp_path / "vae.yaml"
    file.write_text(f"extends: !!python/object/apply:os.mkdir ['{bomb.mark}']")
    with pytest.raises(ValueError, match="no YAML"):
        extended_files(file)
    assert not bomb.mark.exists()
