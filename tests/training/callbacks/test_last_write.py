"""The artifact on a disk that is full at the end: it is tried again, then written elsewhere, and no rank waits in silence."""

import errno
import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from torch.distributed import distributed_c10d

from tests.helpers.starts import launch
from tests.helpers.training import arguments
from walt_pl.cli.main import main
from walt_pl.runs.artifact import load
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.runs.checkpoint import Checkpoint
from walt_pl.runs.manifest import Manifest
from walt_pl.training.callbacks import last_write
from walt_pl.training.callbacks.last_write import LastWrite

EXPORT = "python -m walt_pl export runs/shapes/training/vae/checkpoints --out DIR"


class Disk:
    """Writes artifacts once there is room: a full disk refuses so many times."""

    def __init__(self, refusals: int, seconds: float = 0.0) -> None:
        self.refusals = refusals
        self.seconds = seconds
        self.tries: list[str] = []

    def save(self, folder: Path) -> None:
        self.tries.append(folder.name)
        time.sleep(self.seconds)
        if folder.name == "vae" and len(self.tries) <= self.refusals:
            raise OSError(errno.ENOSPC, "the disk is full")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Write on a disk, with seconds in place of minutes."""
    monkeypatch.setattr(last_write, "RETRY", 0.05)
    monkeypatch.setattr(Manifest, "finish", lambda self, stage, folder: self.path.write_text(str(folder)))

    def write(disk: Disk, minutes: float = 1.0, rescue: Path | None = None, is_stopping: Callable[[], bool] = lambda: False) -> Any:
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        found = LastWrite(trainer, Manifest(tmp_path), "vae", rescue, minutes, is_stopping, EXPORT).run(disk.save)
        return (*found, (tmp_path / "manifest.json").read_text() if (tmp_path / "manifest.json").exists() else None)

    return write


def test_last_write_tries_again_until_there_is_room(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = Disk(refusals=2)
    assert run(disk) == (tmp_path / "vae", None, str(tmp_path / "vae"))
    said = capsys.readouterr().out
    assert disk.tries == ["vae"] * 3 and said.count("the artifact is not written: [Errno 28] the disk is full") == 2
    assert "trying again in 0 s, for 1 more minutes (--checkpoint.retry_minutes)" in said


def test_last_write_ends_after_its_minutes_and_says_what_to_type(run: Any, tmp_path: Path) -> None:
    disk = Disk(refusals=99)
    folder, failure, listed = run(disk, minutes=1 / 60)
    assert 3 <= len(disk.tries) <= 21 and listed is None and isinstance(failure, OSError)
    assert str(failure) == (
        f'stage "vae" is trained, and its artifact could not be written to {folder} in 0.0166667 minutes: [Errno 28] the disk is full; '
        f"the last checkpoint stays: once there is room type the same command again, or write the artifact elsewhere: {EXPORT}"
    )


def test_last_write_ends_its_tries_at_a_signal(run: Any) -> None:
    disk = Disk(refusals=99)
    assert isinstance(run(disk, is_stopping=lambda: len(disk.tries) > 1)[1], OSError)
    assert len(disk.tries) == 2


def test_last_write_goes_to_the_rescue_folder_and_the_manifest_lists_it(run: Any, tmp_path: Path) -> None:
    disk, rescue = Disk(refusals=99), tmp_path / "rescue"
    assert run(disk, minutes=0, rescue=rescue) == (rescue, None, str(rescue))
    assert disk.tries == ["vae", "rescue"]


def test_last_write_names_the_rescued_weights_if_the_manifest_has_no_room(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room for the manifest")

    monkeypatch.setattr(Manifest, "finish", refuse)
    _, failure, _ = run(Disk(refusals=0), minutes=0, rescue=tmp_path / "rescue")
    assert f"; the weights are in {tmp_path}/rescue, and {tmp_path}/manifest.json does not list them" in str(failure)


def test_last_write_tries_other_errors_once(run: Any, tmp_path: Path) -> None:
    tries = []

    class Broken(Disk):
        def save(self, folder: Path) -> None:
            tries.append(folder)
            raise ValueError("not a number")

    _, failure, _ = run(Broken(0), rescue=tmp_path / "rescue")
    assert isinstance(failure, ValueError) and len(tries) == 1


def write_on_two_ranks(folder: Path) -> None:
    """Write for longer than the process group waits in a collective, on a disk that is full at first."""
    last_write.RETRY, last_write.POLL = 4.0, 0.5
    Manifest.finish = lambda *_: None  # type: ignore[method-assign]
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False)
    trainer.strategy.setup_environment()
    trainer.strategy.barrier()  # ranks may start at any time
    distributed_c10d._set_pg_timeout(timedelta(seconds=3))
    disk = Disk(refusals=1, seconds=4.0)
    found, failure = LastWrite(trainer, Manifest(folder), "vae", None, 1.0, lambda: False, EXPORT).run(disk.save)
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps([str(found), failure, disk.tries]))


def test_last_write_on_two_ranks_never_waits_for_the_time_out_of_the_process_group(tmp_path: Path) -> None:
    assert (started := launch(write_on_two_ranks, tmp_path, ranks=2)).wait(120) == 0, started.said
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert told == [[str(tmp_path / "vae"), None, ["vae", "vae"]], [str(tmp_path / "vae"), None, []]]


def test_fit_command_on_a_full_disk_keeps_the_checkpoint_and_the_rescue_folder_gets_the_artifact(
    painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def save(folder: Path, **more: Any) -> str:
        if folder == tmp_path / "run" / "vae":
            raise OSError(errno.ENOSPC, "the disk is full")
        return save_artifact(folder, **more)

    monkeypatch.setattr("walt_pl.training.callbacks.export.save_artifact", save)
    last = ["--trainer.max_steps", "2", "--model.warmup_steps", "1", "--trainer.val_check_interval", "2", "--checkpoint.retry_minutes", "0"]
    typed = ["fit", *arguments("vae", tmp_path / "run", painted), *last]
    with pytest.raises(SystemExit) as error:
        main(typed)
    checkpoints = tmp_path / "run" / "training" / "vae" / "checkpoints"
    assert str(error.value).endswith(f": python -m walt_pl export {checkpoints} --out DIR --index {painted}")
    assert (newest := Checkpoint.newest(checkpoints)) is not None and newest.step == 2
    main([*typed, "--rescue", str(rescue := tmp_path / "elsewhere")])
    assert f'stage "vae" is done after step 2; artifact: {rescue}\n' in capfd.readouterr().out
    assert load(rescue, verify=True).card["steps"] == 2
    manifest = Manifest.open(tmp_path / "run")
    assert manifest.state("vae") == "done" and manifest.folder("vae").resolve() == rescue
