"""The lock of a manifest: one process writes, and a dead holder is replaced."""

from __future__ import annotations

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

from walt_pl.runs import lock as lock_module
from walt_pl.runs.lock import Holder, LockedManifest
from walt_pl.runs.manifest import Manifest


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
    os.utime(lock, (time.time() - 5, time.time() - 5))
    with pytest.warns(RuntimeWarning, match="without a name"):
        Manifest.open(run_dir).start("vae", {})


def test_locked_manifest_of_a_dead_process_is_taken_over_by_one_only(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "LOCK_WAIT", 0.1)
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


WRITER = """
import sys, time, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from walt_pl.runs.lock import hold_lock
counter = Path(sys.argv[2]) / "counter"
for _ in range(25):
    with hold_lock(Path(sys.argv[2]) / "manifest.lock"):
        counter.write_text(str(int(counter.read_text()) + 1))
    time.sleep(0.01)
"""


def test_locked_manifest_admits_one_process_at_a_time(run_dir: Path) -> None:
    write_lock(run_dir, dead_process())
    (run_dir / "counter").write_text("0")
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parents[2]), str(run_dir)]
    writers = [subprocess.Popen(command) for _ in range(2)]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert (run_dir / "counter").read_text() == "50"
