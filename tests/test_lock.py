"""The lock of a manifest: one process writes, and a dead holder is replaced."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from walt_pl import lock as lock_module
from walt_pl.lock import Holder, LockHeld, hold_lock
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.stage_names import LockedManifest


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Folder of a run that does not exist yet."""
    return tmp_path / "runs" / "shapes"


def dead_process() -> Holder:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return Holder(platform.node(), ended.pid, 1, "2025-01-01T00:00:00+00:00")


def write_lock(run_dir: Path, holder: Holder) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "manifest.lock").write_text(json.dumps(vars(holder)))
    return run_dir / "manifest.lock"


def test_locked_manifest_names_the_living_process(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "LOCK_WAIT", 0.1)
    lock = write_lock(run_dir, Holder.here())
    with pytest.raises(LockedManifest, match=f"manifest.lock is held by process {os.getpid()} on {platform.node()}"):
        Manifest.open(run_dir).start("vae", {})
    assert lock.exists()


def test_locked_manifest_of_another_host_is_never_taken_over(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "LOCK_WAIT", 0.1)
    write_lock(run_dir, Holder("elsewhere", 1, None, "2025-01-01T00:00:00+00:00"))
    with pytest.raises(LockedManifest, match="process 1 on elsewhere"):
        Manifest.open(run_dir).start("vae", {})


def test_locked_manifest_of_a_dead_process_is_taken_over_with_a_warning(run_dir: Path) -> None:
    holder = dead_process()
    lock = write_lock(run_dir, holder)
    with pytest.warns(RuntimeWarning, match=f"held by process {holder.pid} .*taken over"):
        Manifest.open(run_dir).start("vae", {})
    assert not lock.exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are told apart by /proc")
def test_locked_manifest_of_a_reused_process_id_is_taken_over(run_dir: Path) -> None:
    here = Holder.here()
    write_lock(run_dir, Holder(here.host, here.pid, 1, here.time))
    with pytest.warns(RuntimeWarning, match="taken over"):
        Manifest.open(run_dir).start("vae", {})


def test_locked_manifest_without_a_holder_is_taken_over_once_it_is_old(run_dir: Path) -> None:
    run_dir.mkdir(parents=True)
    lock = run_dir / "manifest.lock"
    lock.touch()
    with pytest.warns(RuntimeWarning, match="without a name"):
        Manifest.open(run_dir).start("vae", {})


def test_locked_manifest_of_a_dead_process_is_taken_over_by_one_only(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "LOCK_WAIT", 3)
    lock = write_lock(run_dir, dead_process())
    with ThreadPoolExecutor(1) as pool, lock.open("r+") as first:
        fcntl.flock(first, fcntl.LOCK_EX)  # the first has read the name of the dead, and not yet written its own
        second = pool.submit(Manifest.open(run_dir).start, "vae", {})
        time.sleep(0.3)
        assert not second.done()
        first.truncate()
        first.write(json.dumps(vars(Holder.here())))
        first.close()
        with pytest.raises(LockedManifest, match=f"process {os.getpid()}"):
            second.result(timeout=30)


def test_hold_lock_says_what_to_type_for_a_lock_of_another_host(tmp_path: Path) -> None:
    lock = tmp_path / "a b.lock"
    lock.write_text(json.dumps(vars(Holder("elsewhere", 1, None, "2025-01-01T00:00:00+00:00"))))
    with pytest.raises(LockHeld, match=rf"held by process 1 on elsewhere .*type: rm '{lock}'"), hold_lock(lock, wait=0.1):
        pass
    assert "elsewhere" in lock.read_text()


def test_hold_lock_of_another_host_is_taken_over_after_a_silence_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "SILENCE", 0.4)
    lock = tmp_path / "a.lock"
    lock.write_text(json.dumps(vars(Holder("elsewhere", 1, None, "2025-01-01T00:00:00+00:00"))))
    ahead = time.time() + 86_400  # the clock of the other machine is a day ahead
    os.utime(lock, (ahead, ahead))
    began = time.monotonic()
    with pytest.warns(RuntimeWarning, match="process 1 on elsewhere .*taken over"), hold_lock(lock, work="index x"):
        assert time.monotonic() - began > 0.4
    assert not lock.exists()


def test_hold_lock_gives_signs_that_keep_it_from_being_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "SIGN", 0.05)
    with hold_lock(tmp_path / "a.lock", work="index x"):
        first = (tmp_path / "a.lock").stat().st_mtime_ns
        end = time.monotonic() + 30
        while (tmp_path / "a.lock").stat().st_mtime_ns == first:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_hold_lock_admits_no_second_one_though_its_process_id_looks_dead(tmp_path: Path) -> None:
    """Containers of one machine share its name and files, and do not see each other's processes."""
    lock = tmp_path / "a.lock"
    with hold_lock(lock):
        lock.write_text(json.dumps(vars(dead_process())))
        with pytest.raises(LockHeld, match="is held by"), hold_lock(lock, wait=0.1):
            pass


def test_hold_lock_of_older_versions_without_a_lock_of_the_system_counts(tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_text(json.dumps(vars(Holder.here())))
    with pytest.raises(LockHeld, match=f"process {os.getpid()}"), hold_lock(tmp_path / "a.lock", wait=0.1):
        pass


def test_hold_lock_works_where_the_file_system_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    refused = pytest.raises(LockHeld, match=f"process {os.getpid()}")
    with hold_lock(tmp_path / "a.lock"), refused, hold_lock(tmp_path / "a.lock", wait=0.1):
        pass
    (tmp_path / "a.lock").write_text(json.dumps(vars(dead_process())))
    with pytest.warns(RuntimeWarning, match="taken over"), hold_lock(tmp_path / "a.lock"):
        pass
    assert not list(tmp_path.iterdir())


def test_hold_lock_with_work_waits_with_a_line_that_names_the_holder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "a.lock"
    with ThreadPoolExecutor(1) as pool:
        with hold_lock(lock):
            second = pool.submit(lambda: hold_lock(lock, work="index a.parquet").__enter__())
            told, end = "", time.monotonic() + 30
            while not told:
                assert time.monotonic() < end
                time.sleep(0.1)
                told = capsys.readouterr().err
            assert not second.done()
        second.result(timeout=30)
    told += capsys.readouterr().err
    assert told.startswith(f"index a.parquet: waiting for process {os.getpid()} on ") and told.endswith(f"type: rm {lock}\n")
    assert told.count("\n") == 1


def test_hold_lock_never_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "a.lock").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(LockHeld, match="cannot be opened as a lock"), hold_lock(tmp_path / "a.lock"):
        pass
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_hold_lock_that_cannot_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(OSError, match="no space"), hold_lock(tmp_path / "a.lock"):
        pass
    assert not list(tmp_path.iterdir())


WRITER = """
import sys, time, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from walt_pl.lock import hold_lock
counter = Path(sys.argv[2]) / "counter"
for _ in range(25):
    with hold_lock(Path(sys.argv[2]) / "manifest.lock"):
        counter.write_text(str(int(counter.read_text()) + 1))
    time.sleep(0.01)
"""


def test_locked_manifest_admits_one_process_at_a_time(run_dir: Path) -> None:
    write_lock(run_dir, dead_process())
    (run_dir / "counter").write_text("0")
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parents[1]), str(run_dir)]
    writers = [subprocess.Popen(command) for _ in range(2)]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert (run_dir / "counter").read_text() == "50"
