"""Each start of a training leaves its machine and the counts of its data beside its configuration."""

import json
import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.joint_data import COUNTS, make
from walt_pl.data.index import Index
from walt_pl.data.quarantine import Quarantine
from walt_pl.runs.data_record import DataRecord, KindRecord
from walt_pl.runs.start_record import StartRecord
from walt_pl.training.callbacks.record_start import RecordStart, describe_data
from walt_pl.untrusted import UntrustedError


def one_process(folder: Path, index: str, step: int = 0) -> Any:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    facts = {"is_global_zero": True, "world_size": 3, "global_step": step}
    return SimpleNamespace(log_dir=str(folder), datamodule=make(index), strategy=strategy, **facts)


def test_record_start_writes_two_files_for_each_start_without_a_logger(index: str, tmp_path: Path) -> None:
    for step in (0, 40):
        RecordStart().on_train_start(one_process(tmp_path / "logs", index, step), None)  # type: ignore[arg-type]
    written = ["data.json", "data_1.json", "start.json", "start_1.json"]
    assert [path.name for path in sorted((tmp_path / "logs").iterdir())] == written
    found = StartRecord.read(tmp_path / "logs" / "start_1.json")
    assert found.step == 40 and found.machine.endswith(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, 3 processes")
    assert found.packages["python"] == platform.python_version() and found.packages["torch"] == version("torch")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert (found.code or "").removesuffix("-dirty") == head.stdout.strip()
    assert DataRecord.read(tmp_path / "logs" / "data_1.json") == describe_data(make(index))
    trainer: Any = SimpleNamespace(log_dir=str(tmp_path / "other"), is_global_zero=False, datamodule=make(index))
    RecordStart().on_train_start(trainer, None)  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("record", [DataRecord, StartRecord])
def test_record_start_on_a_full_disk_warns_and_training_goes_on(
    record: type, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record, "write", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        RecordStart().on_train_start(one_process(tmp_path, index), None)  # type: ignore[arg-type]


def test_describe_data_says_why_clips_are_left_out(index: str, tmp_path: Path) -> None:
    shutil.copytree(Path(index).parent, tmp_path / "set")
    copied = str(tmp_path / "set" / Path(index).name)
    corrupt, ugly = Index(copied, "train").videos.places(np.array([0, 1]))
    listed = Quarantine.beside(copied)
    listed.admit(corrupt, "corrupt", "no frame")
    listed.add(ugly, "ugly")
    listed.write()
    found = describe_data(make(copied))
    count = COUNTS["train"][0]
    assert found.splits["train"]["video"] == KindRecord(count, count - 2, {"quarantined": 2}, {"16 x 16": count - 2})
    assert found.splits["train"]["image"].used == COUNTS["train"][1]
    assert found.splits["val"]["video"].left_out == {"beyond the first ones that were asked for": 1}
    assert found.quarantine == {"corrupt": 1, "listed by a person": 1}
    assert (found.index, found.sha256, found.frames) == (copied, Index(copied, "train").sha256, 5)


@pytest.mark.parametrize(
    ("entry", "told"), [({"step": -1}, "step is -1"), ({"time": "noon"}, "time is"), ({"machine": "a\x1b"}, "control"), ({"x": 1}, "known")]
)
def test_start_record_of_a_stranger_is_refused(tmp_path: Path, entry: dict[str, Any], told: str) -> None:
    path = tmp_path / "start.json"
    StartRecord(3, "a machine", None).write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    with pytest.raises(UntrustedError, match=told):
        StartRecord.read(path)


def test_data_record_of_a_stranger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('{"index": "a", "sha256": null, "frames": 5, "fps": null, "splits": {"train": {"video": {"listed": -1, "used": 0}}}}')
    with pytest.raises(UntrustedError, match=r"listed is -1, wanted 0 \.\. "):
        DataRecord.read(path)
