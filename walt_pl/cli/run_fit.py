"""Run `fit` in processes of its own, for the commands that train several stages."""

import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from threading import Thread
from typing import IO, Any

from walt_pl.processes import exit_reason

FIT = ("-m", "walt_pl", "fit")


def run_fit(words: Sequence[str], name: str) -> None:
    """Train one stage as a user would.

    A terminal sends Ctrl-C to `fit` as well, which writes a checkpoint. This process waits for that. A second Ctrl-C ends both at once.

    Args:
        words: words of the command line after `fit`.
        name: command and stage, for the beginning of the error.

    Raises:
        SystemExit: `fit` ended with an error, or was interrupted.
    """
    _wait({name: subprocess.Popen([sys.executable, *FIT, *words])})


def run_fits(trainings: Mapping[str, Sequence[str]], name: str) -> None:
    """Train several stages side by side, each with its share of the cores, see `run_fit`.

    Two processes with a core each finish earlier than one after the other with two: a small network does not keep two cores busy.
    Each line that they print begins with their stage. A training that fails does not end the others.

    Args:
        trainings: words of the command line after `fit`, by stage.
        name: command and words before the stage, for the beginning of the error.

    Raises:
        SystemExit: one of them ended with an error, or they were interrupted.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(trainings)))}
    output: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    children, relays = {}, []
    for stage, words in trainings.items():
        child = subprocess.Popen([sys.executable, *FIT, *words], env=environment, **output)
        children[f"{name} {stage}"] = child
        relays.append(Thread(target=_relay, args=(child.stdout, stage), daemon=True))
        relays[-1].start()
    _wait(children, relays)


def _relay(lines: IO[str], stage: str) -> None:
    """Print the lines of a process, each behind the name of its stage."""
    for line in lines:
        print(f"{stage}: {line}", end="", flush=True)


def _wait(children: Mapping[str, subprocess.Popen[Any]], relays: Collection[Thread] = ()) -> None:
    """Wait for processes through the first Ctrl-C, and for their last lines.

    Raises:
        SystemExit: a process ended with an error, or there was a Ctrl-C.
    """
    names = " and ".join(children)
    interrupted = False
    try:
        try:
            _join(children.values())
        except KeyboardInterrupt:  # subprocess.run would kill `fit` a quarter of a second after it, before its checkpoint
            interrupted = True
            _join(children.values())
    except KeyboardInterrupt:
        for child in children.values():
            child.kill()
        _join(children.values())
        raise SystemExit(f"{names} was ended at once; the same command goes on from its last checkpoint") from None
    except BaseException:  # the handler of SIGTERM raises SystemExit
        for child in children.values():
            child.terminate()
        _join(children.values())
        raise
    for relay in relays:
        relay.join()
    if interrupted:
        raise SystemExit(f"{names} was interrupted; the same command goes on from there")
    failed = [f"{name} stopped ({exit_reason(child.returncode)})" for name, child in children.items() if child.returncode]
    if failed:
        raise SystemExit(f"{'; '.join(failed)}; the same command goes on from there")


def _join(children: Collection[subprocess.Popen[Any]]) -> None:
    for child in children:
        child.wait()
