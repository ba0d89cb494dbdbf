"""Files of results: they come back as written, and damaged or foreign ones are refused."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paper_records import made_record
from walt_pl.paper import record as records
from walt_pl.paper.figure import Figure
from walt_pl.paper.record import RecordError, code_is_changed, read_record, read_records, record_path, write_record
from walt_pl.paper.row import find_row
from walt_pl.paper.rows import ROWS

ROW = find_row("patch_1", ROWS)


def test_record_comes_back_with_six_digits(tmp_path: Path) -> None:
    write_record(tmp_path, ROW, made_record(ROW, 1, figures={"all": Figure(2 / 3, 8, 0.1, 0.9)}))
    assert record_path(tmp_path, ROW, 1) == tmp_path / "results" / "ablations" / "patch_1-s1.json"
    assert read_record(tmp_path, ROW, 1) == made_record(ROW, 1, figures={"all": Figure(0.666667, 8, 0.1, 0.9)})
    assert read_record(tmp_path, ROW, 0) is None
    assert list(read_records(tmp_path, ROWS)) == [("patch_1", 1)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 2}, "format is 2, wanted 1"),
        ({"figures": {"all": {"value": float("nan"), "cases": 1, "low": 0, "high": 1}}}, "is nan, wanted a finite number"),
        ({"figures": {"all": {"value": 1}}}, "has no entry cases"),
        ({"stages": {"vae": "short"}}, "wanted 64 hexadecimal digits"),
        ({"minutes": {"training": -1}}, "minutes: training is -1"),
        ({"date": "yesterday"}, "wanted a time such as"),
        ({"more": 1}, "has an entry 'more' that is not known"),
        ({"seed": 2}, "is the result of ablations patch_1 of seed 2"),
        ({"row": "default"}, "is the result of ablations default of seed 0"),
    ],
)
def test_record_that_is_damaged_or_foreign_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    write_record(tmp_path, ROW, made_record(ROW, 0))
    path = record_path(tmp_path, ROW, 0)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(RecordError, match="make paper measures its row again") as refused:
        read_record(tmp_path, ROW, 0)
    assert told in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_record_that_is_cut_is_refused(tmp_path: Path) -> None:
    write_record(tmp_path, ROW, made_record(ROW, 0))
    path = record_path(tmp_path, ROW, 0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecordError, match="is not JSON"):
        read_records(tmp_path, ROWS)


def test_code_is_changed_by_code_and_not_by_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("walt_pl/paper/record.py", "docs/RESULTS.md", "stages/a", "datamodules/a", "experiments/a", "requirements.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(records, "__file__", str(tmp_path / "walt_pl" / "paper" / "record.py"))
    (tmp_path / "docs" / "RESULTS.md").write_text("b\n")
    assert not code_is_changed()
    (tmp_path / "experiments" / "a").write_text("b\n")
    assert code_is_changed()
