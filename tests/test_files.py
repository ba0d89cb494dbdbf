"""Files are written whole or not at all, and hashes follow the bytes."""

import errno
import hashlib
import os
import time
from pathlib import Path

import pytest

from walt_pl.files import file_sha256, is_temporary_of, rename_whole, replace_folder, whole_file, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_whole_replaces_the_old_bytes_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and names(tmp_path) == ["a.bin"]


def test_whole_file_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"old")
    with pytest.raises(RuntimeError, match="torn"), whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("torn")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_whole_file_on_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_whole_file_syncs_the_file_before_its_rename_and_the_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(handle: int) -> None:
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    def recorded_replace(source: Path, target: Path) -> None:
        events.append(f"rename {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_whole(tmp_path / "a.bin", b"new")
    assert events == [f"sync .a.bin.{os.getpid()}.tmp", "rename a.bin", f"sync {tmp_path.name}"]


def test_is_temporary_of_knows_temporaries_of_other_processes_only() -> None:
    assert is_temporary_of(".a.bin.123.tmp", "runs/a.bin")
    assert not any(is_temporary_of(name, "runs/a.bin") for name in ("a.bin", ".a.bin.tmp", ".b.bin.123.tmp", ".aXbin.123.tmp"))


@pytest.mark.parametrize("existing", [False, True])
def test_replace_folder_moves_the_new_folder_in_place(existing: bool, tmp_path: Path) -> None:
    new, folder, old = (tmp_path / name for name in ("new", "folder", "old"))
    new.mkdir()
    (new / "n").touch()
    if existing:
        folder.mkdir()
        (folder / "o").touch()
    replace_folder(new, folder, old)
    assert names(folder) == ["n"] and not new.exists()
    assert old.exists() == existing and (not existing or names(old) == ["o"])


def test_replace_folder_that_fails_puts_the_old_folder_back(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "o").touch()
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "lost", folder, tmp_path / "old")
    assert names(folder) == ["o"] and names(tmp_path) == ["folder"]


def test_rename_whole_moves_a_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "part", b"x")
    rename_whole(tmp_path / "part", tmp_path / "done")
    assert names(tmp_path) == ["done"]


def test_file_sha256_follows_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    assert file_sha256(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")  # of equal size, and within the resolution of the clock
    assert file_sha256(path) == hashlib.sha256(b"two").hexdigest()


def test_file_sha256_fresh_reads_a_file_whose_time_was_set_back(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    past = time.time_ns() - 10**10
    os.utime(path, ns=(past, past))
    first = file_sha256(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(past, past))
    assert file_sha256(path) == first
    assert file_sha256(path, fresh=True) == hashlib.sha256(b"two").hexdigest()
