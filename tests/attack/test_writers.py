"""Files that several processes write: faults of the file system, and the attack notices a loss."""

from pathlib import Path

import pytest

from tests.attack import writers
from walt_pl.lock import Holder


@pytest.mark.parametrize("fault", writers.FAULT_NUMBERS)
def test_write_whole_survives_every_fault_of_the_file_system(fault: str, tmp_path: Path) -> None:
    outcome = writers.fail_at_each_call("write_whole", fault, tmp_path)
    assert outcome.verdict == ("unharmed" if fault == "no os.link" else "refused"), outcome


def test_attack_of_faults_notices_content_that_is_neither_old_nor_new(tmp_path: Path) -> None:
    def write(folder: Path, number: int) -> None:
        try:
            (folder / "file.bin").write_bytes(b"%03d" % number * 1000)  # not through a temporary file
        except OSError as error:
            error.filename = str(folder)
            raise

    outcome = writers.fail_at_each_call("torn", "ENOSPC", tmp_path, (write, *writers.FAULTY["write_whole"][1:]))
    assert outcome.verdict == "wrong" and "wanted 0 or 1, found" in outcome.detail


def test_attack_of_kills_notices_files_that_stay(tmp_path: Path) -> None:
    (tmp_path / "manifest.json.tmp").touch()
    assert writers._remove_what_kills_left(tmp_path).verdict == "wrong"


def test_attack_of_two_writers_notices_rows_that_are_lost(tmp_path: Path) -> None:
    def torn(folder: Path) -> str:
        return writers._manifest_has_all(folder)

    outcome = writers.two_at_once("manifest", (writers._manifest, lambda folder: torn(folder) or "", None), tmp_path)
    assert outcome.verdict == "unharmed" and Holder.here().alive()
    (tmp_path / "manifest.json").unlink()
    assert torn(tmp_path)
