"""Memory whose content is garbage, so that a result which reads what nobody wrote cannot come out right."""

import contextlib
import ctypes
from collections.abc import Iterator

import torch

_M_PERTURB = -6
"""glibc's mallopt: fill every block that is handed out with the complement of a byte."""


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory holds -2.7e38 in bfloat16 and in float32, as far as tensors are concerned."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_PERTURB, 0x01)
    try:
        garbage = torch.empty(64, 1024, dtype=torch.bfloat16)
        assert bool((garbage.float() < -1e38).all()), "the memory of this test is not poisoned"
        yield
    finally:
        libc.mallopt(_M_PERTURB, 0)
