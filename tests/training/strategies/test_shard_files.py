"""DeepSpeed loads a shard from the one open file that was hashed and scanned."""

from pathlib import Path

import pytest
import torch

from tests.attack.checkpoint_pickles import in_zip, streams
from tests.attack.checkpoints import exchanged_after_scan
from tests.helpers.checkpoint_files import without_hashes
from walt_pl.runs.checkpoint import TAG, Checkpoint, CheckpointError, DamagedCheckpoint, finalize_checkpoint, folder_name, tensors_only
from walt_pl.training.strategies.shard_files import ShardFiles


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    part = tmp_path / "run" / f"{folder_name(5)}.part"
    shards = part / "state.ckpt" / TAG
    shards.mkdir(parents=True)
    files = ShardFiles()
    for rank in range(2):
        files.save({"rank": rank, "w": torch.full((100,), float(rank))}, str(shards / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"))
    assert files.failure is None
    hashes = {Path(path).relative_to(part).as_posix(): digest for path, digest in files.hashes.items()}
    return finalize_checkpoint(part, 5, 5, "zero2", 2, {}, hashes)


def shard(checkpoint: Checkpoint, rank: int = 0) -> Path:
    return checkpoint.state / TAG / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def test_shard_files_save_hashes_what_is_written(checkpoint: Checkpoint) -> None:
    assert Checkpoint.at(checkpoint.path, hashed=True) == checkpoint
    assert ShardFiles().load(str(shard(checkpoint, 1)), map_location="cpu")["rank"] == 1


@pytest.mark.parametrize("hashed", [True, False])
def test_shard_files_load_what_was_scanned(checkpoint: Checkpoint, hashed: bool, tmp_path: Path) -> None:
    """Hostile bytes take the place of the shard between the two: the bytes that were scanned are loaded."""
    if not hashed:
        without_hashes(checkpoint.path)
    hostile = in_zip(next(stream for _, stream in streams(tmp_path / "mark", tmp_path)))
    with exchanged_after_scan(shard(checkpoint), hostile, "rename", 1):
        assert ShardFiles().load(str(shard(checkpoint)))["rank"] == 0
    with pytest.raises(CheckpointError):
        ShardFiles().load(str(shard(checkpoint)))
    assert not (tmp_path / "mark").exists()


def test_shard_files_refuse_a_link_to_another_shard(checkpoint: Checkpoint) -> None:
    shard(checkpoint).unlink()
    shard(checkpoint).symlink_to(shard(checkpoint, 1).name)
    with pytest.raises(CheckpointError, match="is refused: there is a link"):
        ShardFiles().load(str(shard(checkpoint)))


def test_tensors_only_checks_the_hash_of_what_deepspeed_loads(checkpoint: Checkpoint) -> None:
    """Also memory-mapped, and through a run that is itself a link."""
    run = checkpoint.path.parent.with_name("linked")
    run.symlink_to(checkpoint.path.parent)
    path = run / shard(checkpoint).relative_to(checkpoint.path.parent)
    with tensors_only(run / checkpoint.path.name):
        assert torch.load(path, map_location="cpu", mmap=True, weights_only=False)["rank"] == 0
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(DamagedCheckpoint, match=path.name):
            torch.load(path, map_location="cpu", mmap=True, weights_only=False)
        with pytest.raises(CheckpointError, match="does not lie in"):
            torch.load(run.parent / "elsewhere.pt")
    assert torch.load.__module__ == "torch.serialization"


def test_shard_files_keep_the_error_of_a_full_disk(tmp_path: Path) -> None:
    files = ShardFiles()
    files.save({}, str(tmp_path / "none" / "shard.pt"))
    assert isinstance(files.failure, OSError) and not files.hashes
