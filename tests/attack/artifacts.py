"""Hostile cards, manifests, configurations and weights: each ends at once with our error, unless `MAY_BE_READ` lists it."""

import hashlib
import json
import os
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from tests.attack.hostile_files import CARDS, CONFIGS, MANIFESTS, PROGRESS, TRAINS, WEIGHTS
from tests.attack.outcome import Outcome, count_of
from tests.helpers.tiny_stages import write_stages
from walt_pl.cli.train_longer import FinishedTraining
from walt_pl.runs.artifact import load
from walt_pl.runs.card import card_text
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.status import render_status, status_rows, verify_run
from walt_pl.runs.stored_config import clip_arguments, in_bfloat16, statistics_batches, stored_index
from walt_pl.sampling.cascade import Cascade
from walt_pl.sampling.known_conditions import known_classes
from walt_pl.terminal_text import CONTROL

SECONDS = 2.0
"""Most seconds of a processor that an attack may take, and a tenth of the longest time."""
MEMORY = 512 << 20
"""Most bytes that an attack may add to the memory of the process."""
SECRET = b"the words of another person\n"
IGNORED = "nothing of the file is used"
"""Answer of a reader that gave what it gives without the file."""
MAY_BE_READ = frozenset(
    [
        "manifest.json: format = True",  # equal to 1
        "model.yaml: base: diffusion/context_frames = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ",  # long, and each value is sound
        "progress.json: total = 9007199254740992",  # these are told as they are, and nothing is opened for them
        "progress.json: steps_per_second = 1e-300",
        f"progress.json: checkpoints = '{'x' * 39}",
        "progress.json: checkpoints = '/proc/1/root'",
        "progress.json: checkpoints = '~root'",
    ]
)
"""Attacks whose values a reader may use without a word: they are absurd, but allowed."""

Case: TypeAlias = tuple[str, Any]


class TooLong(BaseException):
    """The time of an attack is over."""


def attack(random: Random, share: float, folder: Path) -> Iterator[Outcome]:
    """Read every hostile file, or a share of each kind."""
    run = write_run(folder / "run")
    (folder / "words.txt").write_bytes(SECRET)
    kinds: dict[str, tuple[list[Case], Callable[[Path, Any], None], Callable[[Path], str]]] = {
        "card.json": (CARDS, spoil_card, read_artifact),
        "manifest.json": (MANIFESTS, spoil_manifest, read_run),
        "model.yaml": (CONFIGS, spoil_config, read_cascade),
        "train.yaml": (TRAINS, spoil_train, read_train),
        "model.safetensors": (WEIGHTS, spoil_weights, read_artifact),
        "progress.json": (PROGRESS, spoil_progress, read_progress),
    }
    read_cascade(run)  # the first reading also imports modules, which is not the time of an attack
    for kind, (cases, spoil, read) in kinds.items():
        for name, content in random.sample(cases, count_of(len(cases), share)):
            work = folder / "hostile"
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(run, work)
            spoil(work, content)
            yield judge(f"{kind}: {name}", lambda read=read, work=work: read(work), folder)


def write_run(run: Path) -> Path:
    """Write a finished run of an autoencoder and a base."""
    manifest = Manifest.open(run)
    run.mkdir()
    for stage, artifact in write_stages(run, upscalers=0).items():
        manifest.finish(stage, artifact)
    return run


def judge(attack: str, read: Callable[[], str], folder: Path) -> Outcome:
    """Run a reader under a limit of time, and judge the message that it gives."""

    def stop(*_: object) -> None:
        raise TooLong

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timers = ((signal.ITIMER_PROF, signal.SIGPROF), (signal.ITIMER_REAL, signal.SIGALRM))
    before_timers = [(timer, number, signal.signal(number, stop)) for timer, number in timers]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
    try:
        said, refused = read(), False
    except TooLong:
        return Outcome(attack, "wrong", f"no end in {SECONDS:g} s")
    except Exception as error:
        if not is_ours(error):
            return Outcome(attack, "wrong", f"{type(error).__name__}: {error}")
        said, refused = str(error), True
    finally:
        for timer, number, handler in before_timers:
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if more > MEMORY:
        return Outcome(attack, "wrong", f"{more:,} bytes of memory more")
    if hashlib.sha256(SECRET).hexdigest() in said or any(CONTROL.search(line) for line in said.splitlines()):
        return Outcome(attack, "wrong", f"told a secret, or control characters: {said[:200]!a}")
    if len(said) > 3000 or len(said.splitlines()) > 5:
        return Outcome(attack, "wrong", f"{len(said)} characters in {len(said.splitlines())} lines")
    if (folder / "marker").exists():
        return Outcome(attack, "wrong", "code ran")
    if not said and attack not in MAY_BE_READ:
        return Outcome(attack, "wrong", "read without a word")
    return Outcome(attack, "refused" if refused else "named" if said not in ("", IGNORED) else "unharmed", said)


def is_ours(error: Exception) -> bool:
    """Return whether the program raised an error itself: one that it prints as one message."""
    if type(error).__module__.startswith("walt_pl."):
        return isinstance(error, ValueError)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return type(error) is ValueError and "/walt_pl/" in last.filename and str(last.line).startswith("raise ")


# ---- Readers: they return the problems that they name ------------------------------------------------------------------


def read_artifact(run: Path) -> str:
    load(run / "vae", verify=True)
    return ""


def read_run(run: Path) -> str:
    render_status(run, status_rows(run))
    problems = verify_run(run)
    Manifest.open(run).state("base")
    return "\n".join(problems)


def read_progress(run: Path) -> str:
    """Read a run, and compare its status with that without the progress file."""
    problems, told = read_run(run), status_rows(run)
    (run / "training" / "base" / "progress.json").unlink()
    return problems or (IGNORED if status_rows(run) == told else "")


def read_cascade(run: Path) -> str:
    manifest = Manifest.open(run)
    cascade = Cascade({stage: manifest.folder(stage) for stage in ("vae", "base")})
    assert cascade.fps is None or 0 < cascade.fps < 1e4
    known_classes(cascade)
    return ""


def read_train(run: Path) -> str:
    FinishedTraining.read(run / "vae")
    text, where = (run / "vae" / "train.yaml").read_text(encoding="utf-8", errors="replace"), "train.yaml"
    clip_arguments(text, where)
    stored_index(text, where)
    statistics_batches(text, where)
    in_bfloat16(text, where)
    return ""


# ---- Writers of the hostile files --------------------------------------------------------------------------------------


def changed(plain: Any, path: str, value: Any) -> Any:
    """Return plain values with another value at a path such as "files/model.yaml/bytes"; REMOVED removes it."""
    key, _, rest = path.partition("/")
    return {**plain, key: changed(plain[key], rest, value) if rest else value}


def spoil_card(run: Path, content: Any) -> None:
    path = run / "vae" / "card.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    card = json.loads(path.read_text())
    del card["checksum"]
    path.write_text(card_text(changed(card, *content)))


def spoil_manifest(run: Path, content: Any) -> None:
    path = run / "manifest.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    plain = json.loads(path.read_text())
    holder = {"host": "elsewhere", "pid": 4, "born": 1, "time": "2026-01-31T12:00:00+00:00"}
    plain["stages"]["base"]["training"] = {"holder": holder, "parents": {}, "stop": {"step": 1, "max_steps": 2}}
    path.write_text(json.dumps(changed(plain, *content)))


def spoil_file(run: Path, stage: str, name: str, data: bytes) -> None:
    """Replace a file and its records, as a stranger who makes an artifact does."""
    folder = run / stage
    (folder / name).write_bytes(data)
    card = json.loads((folder / "card.json").read_text())
    del card["checksum"]
    record = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    card = changed(card, f"files/{name}", record)
    card = {**card, "sha256": record["sha256"]} if name == "model.safetensors" else card
    (folder / "card.json").write_text(card_text(card))


def spoil_config(run: Path, content: tuple[str, Any]) -> None:
    stage, text = content
    if isinstance(text, tuple):
        import yaml

        path, value = text
        text = yaml.safe_dump(changed(yaml.safe_load((run / stage / "model.yaml").read_text()), path, value)).encode()
    spoil_file(run, stage, "model.yaml", text.replace(b"MARKER", os.fsencode(run.parent / "marker")))


def spoil_train(run: Path, content: bytes) -> None:
    spoil_file(run, "vae", "train.yaml", content.replace(b"MARKER", os.fsencode(run.parent / "marker")))


def spoil_weights(run: Path, content: Callable[[bytes], bytes]) -> None:
    spoil_file(run, "vae", "model.safetensors", content((run / "vae" / "model.safetensors").read_bytes()))


def spoil_progress(run: Path, content: Any) -> None:
    folder = run / "training" / "base"
    folder.mkdir(parents=True)
    spoil_manifest(run, ("stages/base/training/stop", None))
    (folder / "progress.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
