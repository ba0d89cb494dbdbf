"""Folders of starts, and the id of a run in a service."""

from pathlib import Path

import pytest

from walt_pl.training.log_folder import next_start, read_run_id, starts_of, write_run_id
from walt_pl.untrusted import UntrustedError


def test_next_start_follows_the_largest_number(tmp_path: Path) -> None:
    assert next_start(tmp_path / "none").name == "version_0"
    for name in ("version_9", "version_10", "version_x", "metrics", "version_2"):
        (tmp_path / name).mkdir()
    assert [start.name for start in starts_of(tmp_path)] == ["version_2", "version_9", "version_10"]
    assert next_start(tmp_path) == tmp_path / "version_11" and not (tmp_path / "version_11").exists()


def test_read_run_id_returns_what_was_written_and_refuses_anything_else(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "wandb_run_id"
    assert read_run_id(file) is None
    write_run_id(file, "a1-b2.c3")
    assert read_run_id(file) == "a1-b2.c3"
    for content in (b"", b"a b", b"../../x", b"a" * 300):
        file.write_bytes(content)
        with pytest.raises(UntrustedError, match="wandb_run_id"):
            read_run_id(file)
