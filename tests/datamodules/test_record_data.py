"""Each start of a training leaves the counts of its data beside its configuration."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.helpers.joint_data import COUNTS, make
from walt_pl.data.index import Index
from walt_pl.data.quarantine import Quarantine
from walt_pl.runs.data_record import DataRecord, KindRecord
from walt_pl.training.callbacks.record_data import RecordData, describe_data
from walt_pl.untrusted import UntrustedError


def test_record_data_writes_a_file_for_each_start_without_a_logger(index: str, tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(log_dir=str(tmp_path / "logs"), is_global_zero=True, datamodule=make(index))
    for _ in range(2):
        RecordData().on_train_start(trainer, None)  # type: ignore[arg-type]
    assert [path.name for path in sorted((tmp_path / "logs").iterdir())] == ["data.json", "data_1.json"]
    assert DataRecord.read(tmp_path / "logs" / "data_1.json") == describe_data(make(index))
    trainer = SimpleNamespace(log_dir=str(tmp_path / "other"), is_global_zero=False, datamodule=make(index))
    RecordData().on_train_start(trainer, None)  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()


def test_record_data_on_a_full_disk_warns_and_training_goes_on(index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DataRecord, "write", full)
    trainer: Any = SimpleNamespace(log_dir=str(tmp_path), is_global_zero=True, datamodule=make(index))
    with pytest.warns(UserWarning, match="No space left on device"):
        RecordData().on_train_start(trainer, None)  # type: ignore[arg-type]


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


def test_data_record_of_a_stranger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('{"index": "a", "sha256": null, "frames": 5, "fps": null, "splits": {"train": {"video": {"listed": -1, "used": 0}}}}')
    with pytest.raises(UntrustedError, match=r"listed is -1, wanted 0 \.\. "):
        DataRecord.read(path)
