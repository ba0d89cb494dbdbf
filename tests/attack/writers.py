"""Attack the files that several processes write: two writers at once, kills of a writer of the manifest, and faults of the file system."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from tests.attack.outcome import Outcome, Verdict, count_of
from tests.helpers.starts import fork_server

ROOT = Path(__file__).parents[2]
KILLS, FAULTS = 60, 20
TRIES = 4
"""Number of times that two of each writer start at once."""


def attack(random: Random, share: float, folder: Path) -> Iterator[Outcome]:
    """Attack writers of files; nothing may be lost, and every reader must see a whole answer."""
    for number in range(count_of(TRIES, share)):
        for name, write in WRITERS.items():
            yield two_at_once(name, write, _empty(folder, f"two-{name}-{number}"))
    yield from kill_manifest_writers(random, count_of(KILLS, share), _empty(folder, "kills"))
    faults = [(name, fault) for name in FAULTY for fault in FAULT_NUMBERS]
    for name, fault in random.sample(faults, min(len(faults), count_of(len(faults), share))):
        yield fail_at_each_call(name, fault, _empty(folder, f"{name}-{fault}"))


def _empty(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    return folder / name


# ---- Writers: each returns what is wrong afterwards, "" if nothing is ----------------------------------------------------


def _bytes(folder: Path, number: int) -> None:
    from walt_pl.files import write_whole

    for turn in range(50):
        write_whole(folder / "file.bin", bytes([number]) * (10_000 + turn))


def _bytes_are_whole(folder: Path) -> str:
    data = (folder / "file.bin").read_bytes()
    return "" if len(set(data)) == 1 and len(data) >= 10_000 else "the file is a mixture"


def _index(folder: Path, number: int) -> None:
    from walt_pl.cli.main import main

    main(["index", str(folder / f"source{number}"), "--out", str(folder / "index.parquet"), "--workers", "1"])


def _prepare_index(folder: Path) -> None:
    import numpy as np

    from walt_pl.media.writing import write_image

    for number in range(2):
        for picture in range(3):
            write_image(folder / f"source{number}" / f"{picture}.png", np.full((8, 8, 3), 40 * picture + number, np.uint8))


def _index_has_all(folder: Path) -> str:
    from walt_pl.data.index_table import read_table

    rows = sorted(read_table(folder / "index.parquet")["path"].to_pylist())
    return "" if len(rows) == 6 else f"{len(rows)} of 6 rows: {rows}"


def _artifact(folder: Path, number: int) -> None:
    _make_artifact(folder, [float(number)] * 2)


def _make_artifact(folder: Path, mean: list[float]) -> None:
    from tests.helpers.tiny_artifact import save

    for _ in range(3):
        save(folder / "vae", card={"latents": {"mean": mean, "std": [1.0] * len(mean)}})


def _artifact_is_whole(folder: Path) -> str:
    from walt_pl.runs.card import verify_artifact

    left = sorted(path.name for path in folder.iterdir() if path.name.startswith(".v"))
    return "; ".join(verify_artifact(folder / "vae")) or ("" if not left else f"left: {left}")


def _sample(folder: Path, number: int) -> None:
    import torch

    from walt_pl.cli.sample_files import write_clips

    def sample_slowly() -> Iterator[torch.Tensor]:
        yield torch.zeros(1, 3, 2, 16, 16)

    for out in (f"{folder}/", str(folder / "mine.mp4")):
        write_clips(out, sample_slowly(), ["a"], 8, overwrite=False)


def _sample_has_all(folder: Path) -> str:
    names = {path.name for path in folder.iterdir()}
    wanted = {f"{stem}{ending}" for stem in ("clip", "clip-2", "mine", "mine-2") for ending in (".mp4", ".gif", ".png")}
    return "" if names == wanted else f"found {sorted(names)}"


def _manifest(folder: Path, number: int) -> None:
    from walt_pl.runs.manifest import Manifest
    from walt_pl.runs.stop_record import StopRecord

    stage = f"vae_{number}"
    manifest = Manifest.open(folder)
    manifest.start(stage, {})
    for step in range(20):
        manifest.stop(stage, StopRecord(step, 100))


def _manifest_has_all(folder: Path) -> str:
    from walt_pl.runs.manifest import Manifest

    stops = {name: record.training.stop for name, record in Manifest.open(folder).stages().items() if record.training}
    found = {name: stop.step for name, stop in stops.items() if stop}
    return "" if found == {"vae_0": 19, "vae_1": 19} else f"found {found}"


def _training(folder: Path, number: int) -> None:
    """Train one stage: the second one is refused, or comes after the first."""
    from walt_pl.runs.manifest import Manifest
    from walt_pl.runs.stage_names import LockedManifest

    manifest = Manifest.open(folder)
    try:
        manifest.start("vae", {})
    except LockedManifest as error:
        (folder / f"refused-{number}").write_text(str(error))
        return
    end = time.monotonic() + 60
    while not (folder / f"refused-{1 - number}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    (folder / f"trained-{number}").touch()


def _one_was_refused(folder: Path) -> str:
    names = sorted(path.name[:7] for path in folder.glob("[rt]*-*"))
    return "" if names == ["refused", "trained"] else f"found {names}"


def _cache(folder: Path, number: int) -> None:
    import torch

    from walt_pl.data.batch import Sample, SampleRef
    from walt_pl.data.cache import LatentCache

    class Numbers:
        def __getitem__(self, draw: SampleRef) -> Sample:
            return Sample(draw, torch.full((1, 1, 1, 1), float(draw.item)), None, "", 0, str(draw.item), "", "pixels")

        def replace_failed(self, draw: SampleRef, reason: str) -> Sample:
            raise AssertionError(reason)

    cache = LatentCache(folder / "cache", {"vae": "a"}, count=600)
    cache.build(Numbers(), "video", lambda: lambda pixels: pixels, batch_size=64)


def _cache_is_whole(folder: Path) -> str:
    from walt_pl.data.cache import LatentCache

    cache = LatentCache(folder / "cache", {"vae": "a"}, count=600)
    cache.open()
    wrong = [item for item in range(600) if cache.read(item, 0)[0].item() != item]
    left = sorted(path.name for path in (folder / "cache").iterdir() if path.name.startswith("."))
    return f"{len(wrong)} wrong latents" if wrong else ("" if not left else f"left: {left}")


Writer = tuple[Callable[[Path, int], None], Callable[[Path], str], Callable[[Path], None] | None]
WRITERS: Mapping[str, Writer] = {
    "write_whole": (_bytes, _bytes_are_whole, None),
    "index": (_index, _index_has_all, _prepare_index),
    "cache": (_cache, _cache_is_whole, None),
    "save_artifact": (_artifact, _artifact_is_whole, None),
    "sample": (_sample, _sample_has_all, None),
    "manifest": (_manifest, _manifest_has_all, None),
    "fit of one stage": (_training, _one_was_refused, None),
}


def _run(name: str, folder: Path, number: int, start: Any) -> None:
    log = os.open(folder.with_suffix(f".{number}.log"), os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    start.wait()
    WRITERS[name][0](folder, number)


def two_at_once(name: str, writer: Writer, folder: Path) -> Outcome:
    """Start two processes of a writer at once, and compare the outcome with what both were to write."""
    _, check, prepare = writer
    if prepare is not None:
        prepare(folder)
    context = fork_server()
    start = context.Barrier(2)
    processes = [context.Process(target=_run, args=(name, folder, number, start)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        if process.is_alive():
            process.kill()
            return Outcome(f"two of {name}", "wrong", "no end within 240 seconds")
    codes = [process.exitcode for process in processes]
    said = "".join(folder.with_suffix(f".{number}.log").read_text(errors="replace")[-300:] for number in range(2) if codes[number])
    wrong = f"exit codes {codes}: {said}" if any(codes) else check(folder)
    return Outcome(f"two of {name}", "wrong" if wrong else "unharmed", wrong)


# ---- Kills -------------------------------------------------------------------------------------------------------------

EDITOR = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
from pathlib import Path
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.stop_record import StopRecord
manifest = Manifest.open(Path(sys.argv[2]))
manifest.start("vae", {})
print("ready", flush=True)
for step in range(10**9):
    manifest.stop("vae", StopRecord(step, None))
"""


def kill_manifest_writers(random: Random, count: int, folder: Path) -> Iterator[Outcome]:
    """Kill processes that edit a manifest, at random moments. The manifest stays whole, and its lock is taken over."""
    from walt_pl.runs.manifest import Manifest

    for number in range(count):
        editor = subprocess.Popen([sys.executable, "-c", EDITOR, str(ROOT), str(folder)], stdout=subprocess.PIPE)
        assert editor.stdout is not None
        editor.stdout.readline()
        time.sleep(random.random() * 0.05)
        editor.send_signal(signal.SIGKILL)
        editor.wait()
        editor.stdout.close()
        verdict, detail = _edit_after_kill(Manifest.open(folder), f"vae_{number}")
        yield Outcome(f"kill {number} of an editor of the manifest", verdict, detail)
    yield _remove_what_kills_left(folder)


def _remove_what_kills_left(folder: Path) -> Outcome:
    """Let the program remove the temporary files. A file of the last two seconds may have a living writer, so the times are set back."""
    from walt_pl.files import remove_left_overs

    found = sorted(path for path in folder.iterdir() if path.name != "manifest.json")
    for path in found:
        os.utime(path, (time.time() - 60,) * 2)
    remove_left_overs(folder / "manifest.json")
    left = sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
    return Outcome("files left by the kills", "wrong" if left else "unharmed", f"left: {left}" if left else f"{len(found)} files removed")


def _edit_after_kill(manifest: Any, stage: str) -> tuple[Verdict, str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            manifest.start(stage, {})
            stages = manifest.stages()
        except Exception as error:
            return "wrong", repr(error)
    taken = any("taken over" in str(warning.message) for warning in caught)
    if stage not in stages or "vae" not in stages:
        return "wrong", f"stages {sorted(stages)}"
    return ("fell back", "lock taken over") if taken else ("unharmed", "")


# ---- Faults of the file system -----------------------------------------------------------------------------------------

FAULT_NUMBERS = ("ENOSPC", "EIO", "EXDEV", "EINVAL", "no os.link")
_CALLS: Mapping[str, tuple[tuple[Any, str], ...]] = {
    "ENOSPC": ((Path, "write_bytes"), (os, "fsync")),
    "EIO": ((os, "fsync"),),
    "EXDEV": ((os, "replace"),),
    "EINVAL": ((os, "fsync"),),
    "no os.link": (),
}


def _write_manifest(folder: Path, number: int) -> None:
    from walt_pl.runs.manifest import Manifest
    from walt_pl.runs.stop_record import StopRecord

    manifest = Manifest.open(folder)
    if "vae" not in manifest.stages():
        manifest.start("vae", {})
    manifest.stop("vae", StopRecord(number, 100))


def _read_manifest(folder: Path) -> object:
    from walt_pl.runs.manifest import Manifest

    training = Manifest.open(folder).stages()["vae"].training
    return training.stop.step if training and training.stop else None


def _write_file(folder: Path, number: int) -> None:
    from walt_pl.files import write_whole

    write_whole(folder / "file.bin", b"%03d" % number * 1000)


def _read_file(folder: Path) -> object:
    data = (folder / "file.bin").read_bytes()
    return int(data[:3]) if data == data[:3] * 1000 else f"{len(data)} bytes, a mixture"


def _write_artifact(folder: Path, number: int) -> None:
    _make_artifact(folder, [float(number)] * 2)


def _read_artifact(folder: Path) -> object:
    from walt_pl.runs.card import verify_artifact

    return "; ".join(verify_artifact(folder / "vae")) or json.loads((folder / "vae" / "card.json").read_text())["latents"]["mean"][0]


def _write_index(folder: Path, number: int) -> None:
    from walt_pl.data.index import write_index

    entry = {"path": "b.mp4", "kind": "video", "frames": 9, "fps": 8.0, "width": 8, "height": 8, "caption": "", "label": number}
    write_index([{**entry, "split": "train", "bytes": 100}], folder / "index.parquet")


def _read_index(folder: Path) -> object:
    from walt_pl.data.index_table import read_table

    labels = read_table(folder / "index.parquet")["label"].to_pylist()
    return labels[0] if len(labels) == 1 else labels


FaultyWriter = tuple[Callable[[Path, int], None], Callable[[Path], object], tuple[str, ...]]
FAULTY: Mapping[str, FaultyWriter] = {
    "manifest": (_write_manifest, _read_manifest, ("manifest.json",)),
    "write_whole": (_write_file, _read_file, ("file.bin",)),
    "save_artifact": (_write_artifact, _read_artifact, ("vae/card.json", "vae/model.yaml", "vae/model.safetensors")),
    "index": (_write_index, _read_index, ("index.parquet",)),
}
"""Writer of the content of a number, reader of that number or of what is wrong, and files."""


def fail_at_each_call(name: str, fault: str, folder: Path, writer: FaultyWriter | None = None) -> Outcome:
    """Let the system fail at the first, second, ... call of a kind, each time while other content is written.

    The older content stays or the new one is there, whole, and the error names a file.
    """
    write, read, results = writer or FAULTY[name]
    write(folder, 0)
    attack, named, old = f"{fault} while {name} is written", 0, 0
    for new in range(1, FAULTS + 1):
        before, failed = [(folder / result).read_bytes() for result in results], False
        with _faults(fault, new - 1) as hits:
            try:
                write(folder, new)
            except OSError as error:
                named, failed = named + 1, True
                if str(folder) not in str(error):
                    return Outcome(attack, "wrong", f"the error names no file: {error!r}")
            except Exception as error:
                return Outcome(attack, "wrong", f"call {new}: {error!r}")
        lost = [result for result in results if not (folder / result).exists()]
        found = f"{lost} are lost" if lost else _found(read, folder)
        unchanged = not lost and [(folder / result).read_bytes() for result in results] == before
        if found != new and not (failed and unchanged and found == old):
            return Outcome(attack, "wrong", f"call {new}: wanted {f'{old} or ' if failed else ''}{new}, found {found}")
        old = new if found == new else old
        if not hits():
            break
    left = sorted(path.name for path in folder.rglob(".*.tmp"))
    if left:
        return Outcome(attack, "wrong", f"left: {left}")
    return Outcome(attack, "refused" if named else "unharmed", f"{named} errors")


def _found(read: Callable[[Path], object], folder: Path) -> object:
    try:
        return read(folder)
    except ValueError as error:
        return str(error)


@contextlib.contextmanager
def _faults(fault: str, call: int) -> Iterator[Callable[[], bool]]:
    """Let the call number `call` of the faulty functions fail. The result says whether it was reached."""
    calls, hit = 0, False
    originals = {(place, name): getattr(place, name) for place, name in _CALLS[fault]}
    link = os.link

    def failing(place: Any, name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls, hit
            calls += 1
            if calls - 1 == call:
                hit = True
                if name == "write_bytes":
                    args[0].open("wb").write(args[1][: len(args[1]) // 2])
                names = (args[0], None, args[1]) if name == "replace" else ()  # as the system names them
                raise OSError(getattr(errno, fault), os.strerror(getattr(errno, fault)), *names)
            return originals[place, name](*args, **kwargs)

        return run

    try:
        if fault == "no os.link":
            del os.link
        for place, name in _CALLS[fault]:
            setattr(place, name, failing(place, name))
        yield lambda: hit
    finally:
        os.link = link
        for (place, name), function in originals.items():
            setattr(place, name, function)
