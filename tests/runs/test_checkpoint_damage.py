"""Bytes of a checkpoint that have changed since they were written are found before they are used."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.attack.checkpoint_pickles import in_zip, streams
from tests.attack.checkpoints import exchanged_after_scan
from tests.helpers.checkpoint_files import describe_again, flip_bit, without_hashes
from walt_pl.runs import checked_files
from walt_pl.runs.checked_files import HASH, digest_of, open_inside
from walt_pl.runs.checkpoint import (
    Checkpoint,
    CheckpointError,
    DamagedCheckpoint,
    finalize_checkpoint,
    folder_name,
    read_state,
    update_metrics,
    write_state,
)
from walt_pl.runs.whole_weights import weights


def write(folder: Path, step: int, state: dict[str, object] | None = None) -> Checkpoint:
    part = folder / f"{folder_name(step)}.part"
    part.mkdir(parents=True)
    written = write_state(state or {"global_step": step, "state_dict": {"w": torch.full((1000,), float(step))}}, part / "state.ckpt")
    assert isinstance(written, str)
    save_file({"w": torch.full((1000,), step + 0.5)}, part / "ema.safetensors")
    return finalize_checkpoint(part, step, 4 * step, "single", 1, {"val/loss": 0.5}, {"state.ckpt": written})


def card_of(checkpoint: Checkpoint) -> dict[str, dict[str, dict[str, object]]]:
    return json.loads((checkpoint.path / "checkpoint.json").read_text())


def test_finalize_checkpoint_records_the_hash_of_every_file(tmp_path: Path) -> None:
    """Also of the state, which is hashed as it is written and not read back."""
    made = write(tmp_path, 5)
    for name in ("state.ckpt", "ema.safetensors"):
        with open_inside(made.path, made.path / name, ValueError) as file:
            assert card_of(made)["files"][name] == {"bytes": (made.path / name).stat().st_size, HASH: digest_of(file)}
    assert Checkpoint.at(made.path, hashed=True) == made


@pytest.mark.parametrize("name", ["state.ckpt", "ema.safetensors", "checkpoint.json"])
def test_checkpoint_newest_skips_every_flipped_bit_with_a_warning(name: str, tmp_path: Path) -> None:
    older, newest = write(tmp_path, 5), write(tmp_path, 10)
    whole = (newest.path / name).read_bytes()
    random = Random(0)
    for _ in range(30):
        what = flip_bit(newest.path / name, random)
        with pytest.warns(UserWarning, match=rf"step=00000010 is (damaged|incomplete).*{name}"):
            assert Checkpoint.newest(tmp_path, hashed=True) == older, what
        with pytest.raises(DamagedCheckpoint if name != "checkpoint.json" else CheckpointError, match=name):
            Checkpoint.at(newest.path, hashed=True)
        (newest.path / name).write_bytes(whole)
    with warnings.catch_warnings(action="error"):
        assert Checkpoint.newest(tmp_path, hashed=True) == newest


def test_checkpoint_looked_at_by_size_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status` and the removal of old checkpoints look at many of them."""
    made = write(tmp_path, 5)
    monkeypatch.setattr("walt_pl.runs.checkpoint_card.digest_of", lambda file: pytest.fail("a file was hashed"))
    assert [Checkpoint.newest(tmp_path), *Checkpoint.all(tmp_path)] == [made, made]


@pytest.mark.parametrize(
    "name, read", [("state.ckpt", lambda c: read_state(c.state)), ("state.ckpt", weights), ("ema.safetensors", weights)]
)
def test_reading_refuses_a_damaged_file_by_name(name: str, read: Callable[[Checkpoint], object], tmp_path: Path) -> None:
    """Also where nobody has checked the checkpoint before; the flipped bit leaves a finite weight."""
    made = write(tmp_path, 5)
    read(made)
    data = bytearray((made.path / name).read_bytes())
    place = data.find(torch.full((4,), 5.0 if name == "state.ckpt" else 5.5).numpy().tobytes())
    data[place + 2] ^= 0x40
    (made.path / name).write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match=rf"step=00000005 is damaged: the bytes of {name} have changed since they were written"):
        read(made)


def test_reading_refuses_a_file_that_the_card_does_not_list(tmp_path: Path) -> None:
    made = write(tmp_path, 5)
    describe_again(made.path, files={})
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint.json does not list state.ckpt"):
        read_state(made.state)


def test_update_metrics_keeps_the_checksum_right(tmp_path: Path) -> None:
    made = write(tmp_path, 5)
    update_metrics(made, {"val/loss": 0.25})
    assert Checkpoint.at(made.path, hashed=True).metrics == {"val/loss": 0.25}
    text = (made.path / "checkpoint.json").read_text()
    (made.path / "checkpoint.json").write_text(text.replace("0.25", "0.26"))
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint.json was changed after it was written"):
        Checkpoint.at(made.path)


def test_checkpoint_of_format_2_is_read_with_a_warning(tmp_path: Path) -> None:
    """It has no hashes. A training that older programs began goes on."""
    made = write(tmp_path, 5)
    without_hashes(made.path)
    with pytest.warns(UserWarning, match="has no hashes, since an older program wrote it"):
        assert Checkpoint.newest(tmp_path, hashed=True) == made
    assert read_state(made.state)["global_step"] == 5 and float(weights(made)["w"][0]) == 5.5
    update_metrics(made, {"val/loss": 0.25})
    assert Checkpoint.at(made.path).metrics == {"val/loss": 0.25}


def test_checkpoint_of_format_3_cannot_be_read_as_format_2(tmp_path: Path) -> None:
    """A flipped bit makes a 3 a 2."""
    made = write(tmp_path, 5)
    card = made.path / "checkpoint.json"
    card.write_text(card.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(DamagedCheckpoint):
        Checkpoint.at(made.path)


def test_digest_of_reads_an_unchanged_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a" * 100)
    os.utime(file, (1, 1))
    for _ in range(2):
        with file.open("rb") as opened:
            known = digest_of(opened)
        monkeypatch.setattr(checked_files, "_BLOCK", None)
    monkeypatch.setattr(checked_files, "_BLOCK", 64)
    file.write_bytes(b"b" * 100)
    with file.open("rb") as opened:
        assert digest_of(opened) != known


# ---- What is scanned is what is loaded -------------------------------------------------------------------------------


@pytest.mark.parametrize("hashed", [True, False])
def test_read_state_loads_the_file_that_it_scanned(hashed: bool, tmp_path: Path) -> None:
    made = write(tmp_path, 5)
    if not hashed:
        without_hashes(made.path)
    hostile = in_zip(next(stream for _, stream in streams(tmp_path / "mark", tmp_path)))
    with exchanged_after_scan(made.state, hostile, "rename", 1):
        assert read_state(made.state)["global_step"] == 5
    with pytest.raises(CheckpointError):
        read_state(made.state)
    assert not (tmp_path / "mark").exists()


def test_read_state_refuses_a_file_written_to_after_its_scan(tmp_path: Path) -> None:
    made = write(tmp_path, 5)
    other = write(tmp_path / "other", 6).state.read_bytes()
    with exchanged_after_scan(made.state, other, "in place", 1), pytest.raises(DamagedCheckpoint, match="was changed while it was read"):
        read_state(made.state)


def test_open_inside_follows_no_link_below_the_folder(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "inner").mkdir(parents=True)
    (real / "inner" / "file").write_bytes(b"x")
    (tmp_path / "run").symlink_to(real)
    run = tmp_path / "run"
    with open_inside(run, run / "inner" / "file", CheckpointError) as file:
        assert file.read() == b"x", "the run itself may be a link"
    (real / "linked").symlink_to("inner")
    (real / "inner" / "link").symlink_to("file")
    os.mkfifo(real / "pipe")
    for path in ("linked/file", "inner/link", "pipe", "inner", "../real/inner/file", ".."):
        with pytest.raises(CheckpointError):
            open_inside(run, run / path, CheckpointError)
    with pytest.raises(FileNotFoundError):
        open_inside(run, run / "none", CheckpointError)


# ---- Weights of other kinds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_refuses_averages_that_are_not_floating_point(dtype: torch.dtype, tmp_path: Path) -> None:
    made = write(tmp_path, 5)
    averages = load_file(made.path / "ema.safetensors")
    save_file({"w": averages["w"].to(dtype)}, made.path / "ema.safetensors")
    describe_again(made.path)
    with pytest.raises(CheckpointError, match=rf"ema.safetensors: the weight w has values of type {dtype}, wanted floating-point"):
        weights(made)


@pytest.mark.parametrize("held", [{"module": {"w": 0}}, {"optimizer_state_dict": {"fp32_flat_groups": [0]}}])
def test_load_file_refuses_integer_weights_of_a_shard(held: dict[str, object], tmp_path: Path) -> None:
    def fill(value: object) -> object:
        if isinstance(value, dict):
            return {name: fill(one) for name, one in value.items()}
        return [fill(one) for one in value] if isinstance(value, list) else torch.zeros(3, dtype=torch.int32)

    made = write(tmp_path, 5, {"global_step": 5, **{name: fill(value) for name, value in held.items()}})
    with pytest.raises(CheckpointError, match=r"the weight (w|fp32_flat_groups.0) has values of type torch.int32"):
        read_state(made.state)


def test_copied_checkpoint_keeps_its_hashes(tmp_path: Path) -> None:
    made = write(tmp_path, 5)
    away = shutil.copytree(made.path, tmp_path / "away" / made.path.name)
    assert Checkpoint.at(away, hashed=True).step == 5
