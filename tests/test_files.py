"""Files are written whole or not at all, and hashes follow the bytes."""

import errno
import hashlib
import os
import secrets
import stat
import time
from pathlib import Path

import pytest

from walt_pl.files import file_sha256, is_temporary_of, remove_left_overs, rename_whole, replace_folder, whole_file, write_whole
from walt_pl.lock import hold_lock


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
        synced = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        events.append(f"sync {'temporary' if is_temporary_of(synced, 'a.bin') else synced}")
        fsync(handle)

    def recorded_replace(source: Path, target: Path) -> None:
        events.append(f"rename {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_whole(tmp_path / "a.bin", b"new")
    assert events == ["sync temporary", "rename a.bin", f"sync {tmp_path.name}"]


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


def test_file_sha256_follows_a_file_whose_time_was_set_back(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    past = time.time_ns() - 10**10
    for content in (b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, ns=(past, past))
        assert file_sha256(path) == hashlib.sha256(content).hexdigest()


def test_file_sha256_follows_bytes_under_a_clock_that_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)  # in 2001; the file's time lies ahead
    for content in (b"one", b"two"):
        path.write_bytes(content)
        assert file_sha256(path) == hashlib.sha256(content).hexdigest()


def test_whole_file_has_a_name_of_its_own_and_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with whole_file(tmp_path / "a.bin") as first, whole_file(tmp_path / "a.bin") as second:  # as in two containers with one process id
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert (tmp_path / "a.bin").read_bytes() == b"first" and names(tmp_path) == ["a.bin"]
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0" * 8)
    (tmp_path / "mine.txt").write_text("mine")
    with whole_file(tmp_path / "b.bin") as temporary:
        pass
    temporary.symlink_to(tmp_path / "mine.txt")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "b.bin", b"bytes")
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_whole_file_names_the_file_where_the_system_does_not(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a.bin"
    write_whole(path, b"old")
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match=r"a\.bin"):
        write_whole(path, b"new")
    with pytest.raises(OSError, match=r"a\.bin"), whole_file(path):
        failing()
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_write_whole_works_where_folders_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write_whole(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"new"


def test_write_whole_needs_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "link")
    write_whole(tmp_path / "a.bin", b"new")
    with hold_lock(tmp_path / "a.lock"):
        assert names(tmp_path) == ["a.bin", "a.lock"]


def test_remove_left_overs_leaves_living_writers_links_and_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with whole_file(path) as living:
        os.utime(living, (0, 0))
        dead = living.with_name(living.name.replace(living.name[-12:-4], "0" * 8))
        stranger = living.with_name(".a.bin.1." + "f" * 16 + ".tmp")
        old_stranger = living.with_name(".a.bin.1.tmp")
        other = tmp_path / ".b.bin.1.tmp"
        for file in (dead, stranger, old_stranger, other):
            file.touch()
        link = tmp_path / ".a.bin.2.tmp"
        link.symlink_to(other)
        remove_left_overs(path)
        assert dead.exists()  # it may be new, and not locked yet
        for file in (dead, old_stranger, other):
            os.utime(file, (0, 0))
        remove_left_overs(path)
        assert names(tmp_path) == sorted(file.name for file in (living, stranger, link, other))
