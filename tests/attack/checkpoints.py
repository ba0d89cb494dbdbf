"""Attack checkpoints and artifacts: hostile pickles, flipped bits, files cut short, and files exchanged while they are read."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from random import Random
from typing import BinaryIO

import pytest
import torch

from tests.attack.checkpoint_pickles import files, in_zip, streams
from tests.attack.outcome import Outcome, count_of
from tests.helpers.checkpoint_files import describe_again, flip_bit, without_hashes
from tests.helpers.engine_training import start
from tests.helpers.guarded_training import Guarded, run
from walt_pl.cli.export import export_checkpoint
from walt_pl.runs import checkpoint as reading
from walt_pl.runs.artifact import load
from walt_pl.runs.card import ArtifactError
from walt_pl.runs.card_entries import MODEL_CARD
from walt_pl.runs.checkpoint import STATE, TAG, Checkpoint, CheckpointError
from walt_pl.runs.whole_weights import weights

FLIPS, ARTIFACT_FLIPS = 200, 100
SHARD_NAMES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt")


def attack(random: Random, share: float, folder: Path) -> Iterator[Outcome]:
    """Make two real checkpoints of a small stage on one device and under ZeRO 2, and attack copies of them."""
    start(folder, 1, Guarded("single", policy="off"), run=run)
    start(folder, 2, Guarded("zero2", "zero2", policy="off"), run=run)
    whole = {name: folder / name / "checkpoints" for name in ("single", "zero2")}
    yield from _damage(random, count_of(FLIPS, share), whole)
    yield from _damage_artifact(random, count_of(ARTIFACT_FLIPS, share), whole["single"], folder / "artifact")
    yield from _hostile(random, share, whole, folder)
    for name, checkpoints in whole.items():
        yield from _exchange(checkpoints, name, folder / "exchanged")


# ---- Damage ----------------------------------------------------------------------------------------------------------


def _damage(random: Random, count: int, whole: dict[str, Path]) -> Iterator[Outcome]:
    """Damage the newest checkpoint: the program must fall back to the one before, and refuse the damaged one where it is named."""
    for number in range(count):
        checkpoints = random.choice([*whole.values()])
        older, newest = (checkpoint.path for checkpoint in Checkpoint.all(checkpoints)[-2:])
        path = random.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
        before = path.read_bytes()
        try:
            what = _cut(path, random) if number % 4 == 0 else flip_bit(path, random)
            yield _outcome_of_damage(f"{checkpoints.parent.name} {what}", older, newest)
        finally:
            path.write_bytes(before)


def _cut(path: Path, random: Random) -> str:
    size = path.stat().st_size
    left = random.randrange(size)
    os.truncate(path, left)
    return f"{path.name}: cut to {left:,} of {size:,} bytes"


def _outcome_of_damage(what: str, older: Path, newest: Path) -> Outcome:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = Checkpoint.newest(newest.parent, hashed=True)
    said = "; ".join(str(warning.message) for warning in told)
    if found is None or found.path != older:
        return Outcome(what, "wrong", f"took {found and found.path.name}, wanted {older.name} ({said})")
    if newest.name not in said:
        return Outcome(what, "wrong", f"the damaged one was not named: {said}")
    named = refusal(lambda: export_checkpoint(newest, newest.parents[2] / "out"), CheckpointError)
    return Outcome(what, "fell back" if named.verdict == "refused" else "wrong", named.detail)


def _damage_artifact(random: Random, count: int, checkpoints: Path, out: Path) -> Iterator[Outcome]:
    """Damage any file of an artifact but its model card, which people write, too: loading it must be refused."""
    export_checkpoint(checkpoints, out)
    parts = sorted(path for path in out.iterdir() if path.name != MODEL_CARD)
    for number in range(count):
        path = random.choice(parts)
        before = path.read_bytes()
        try:
            what = _cut(path, random) if number % 4 == 0 else flip_bit(path, random)
            done = refusal(lambda: load(out), ArtifactError)
            yield Outcome(f"artifact {what}", done.verdict, done.detail)
        finally:
            path.write_bytes(before)


def refusal(read: Callable[[], object], *expected: type[Exception]) -> Outcome:
    """Run a reader that must refuse with one of our errors in one to five lines."""
    try:
        with warnings.catch_warnings(action="ignore"):
            read()
    except expected as error:
        short = 1 <= len(str(error).splitlines()) <= 5
        return Outcome("", "refused" if short else "wrong", str(error))
    except Exception as error:  # any other error is a finding
        return Outcome("", "wrong", f"{type(error).__name__}: {error}")
    return Outcome("", "wrong", "it was read")


# ---- Code ------------------------------------------------------------------------------------------------------------


def _hostile(random: Random, share: float, whole: dict[str, Path], folder: Path) -> Iterator[Outcome]:
    """Put hostile pickles in the place of files; with share 1 every stream in every kind of file, and each place once a stream."""
    mark, work = folder / "marker", folder / "hostile"
    work.mkdir()
    for name, stream in streams(mark, work):
        kinds = list(files(name, stream))
        for kind, data in kinds if share >= 1 else [kinds[0], random.choice(kinds[1:])]:
            places = [("single", STATE), *(("zero2", f"{STATE}/{TAG}/{shard}") for shard in SHARD_NAMES)]
            engine, place = random.choice(places)
            away = shutil.copytree(Checkpoint.all(whole[engine])[-1].path, work / "step=00000010")
            (away / place).write_bytes(data)
            # A stranger gives fitting hashes, or none.
            describe_again(away) if random.random() < 0.5 else without_hashes(_described(away))
            yield _outcome_of_code(f"{kind}, {engine} {Path(place).name}", away, mark)
            shutil.rmtree(away)


def _described(path: Path) -> Path:
    describe_again(path)
    return path


def _outcome_of_code(what: str, path: Path, mark: Path) -> Outcome:
    """Read a hostile checkpoint in every way."""
    checkpoint = Checkpoint.at(path)
    outcomes = [
        refusal(read, CheckpointError) for read in (lambda: weights(checkpoint), lambda: export_checkpoint(path, path.parent / "out"))
    ]
    outcome = next((one for one in outcomes if one.verdict == "wrong"), outcomes[0])
    if mark.exists():
        mark.rmdir() if mark.is_dir() else mark.unlink()
        return Outcome(what, "wrong", "the code ran")
    return Outcome(what, outcome.verdict, outcome.detail)


# ---- Exchanged while it is read --------------------------------------------------------------------------------------


def _exchange(checkpoints: Path, engine: str, work: Path) -> Iterator[Outcome]:
    """Exchange a file after a scan of it, by rename or in place, for harmless and for hostile bytes.

    DeepSpeed's shards are scanned twice: all of them before DeepSpeed begins, then each as it is loaded.
    """
    work.mkdir(exist_ok=True)
    mark = work / "marker"
    hostile = in_zip(next(stream for _, stream in streams(mark, work)))
    source = Checkpoint.all(checkpoints)[-1].path
    wanted = weights(Checkpoint.at(source))
    places = [source / STATE] if engine == "single" else sorted((source / STATE / TAG).iterdir())
    damaged = {place: place.read_bytes()[:-100] + bytes(100) for place in places}
    for place, scan, how, kind in product(places, (1,) if engine == "single" else (1, 2), ("rename", "in place"), ("hostile", "damaged")):
        away = shutil.copytree(source, work / source.name)
        data = hostile if kind == "hostile" else damaged[place]
        with exchanged_after_scan(away / place.relative_to(source), data, how, scan):
            outcome = _outcome_of_exchange(away, wanted, mark)
        yield Outcome(f"{engine} {place.name} exchanged after scan {scan}, {how}, {kind}", outcome.verdict, outcome.detail)
        shutil.rmtree(away)


def _outcome_of_exchange(path: Path, wanted: dict[str, torch.Tensor], mark: Path) -> Outcome:
    try:
        found = weights(Checkpoint.at(path))
    except CheckpointError as error:
        outcome = Outcome("", "refused", str(error))
    else:
        same = found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
        outcome = Outcome("", "unharmed" if same else "wrong", "" if same else "other weights were read")
    return Outcome("", "wrong", "the code ran") if mark.exists() else outcome


@contextmanager
def exchanged_after_scan(path: Path, data: bytes, how: str, scan: int) -> Iterator[None]:
    """Exchange the bytes of a file as soon as its types were looked up so many times."""
    look, scans = reading._check_types, 0

    def look_and_exchange(looked_at: Path, file: BinaryIO) -> None:
        nonlocal scans
        look(looked_at, file)
        scans += looked_at == path
        if looked_at == path and scans == scan:
            target = path if how == "in place" else path.with_name("other")
            target.write_bytes(data)
            os.replace(target, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_check_types", look_and_exchange)
        yield
    assert scans >= scan, f"{path} was scanned {scans} times"
