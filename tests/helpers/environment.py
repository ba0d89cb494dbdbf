"""Types of the fixtures in conftest.py, and surroundings that tests put the program into."""

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parents[2]
"""Folder of the project."""


class Ended(NamedTuple):
    """Exit code and output of a start of the program."""

    code: int
    said: str


Walt = Callable[..., Ended]
SetDtype = Callable[["torch.dtype"], None]


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Every file of this process ends after so many bytes, as on a disk that is full: the system refuses more with an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def refuse_imports(modules: Sequence[str]) -> str:
    """Return a program's first lines: from then on these modules are as if they were not installed."""
    return f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {tuple(modules)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
