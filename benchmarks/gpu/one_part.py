"""The process of one part."""

import gc
import importlib
import logging
import os
import warnings
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench


def measure(name: str, rows: Path, folder: Path, quick: bool) -> None:
    """Measure a part in this process, which is its own session; all that it says goes into the file `said` in `folder`."""
    os.setsid()
    with (folder / "said").open("wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    gc.freeze()  # else each collection between two rows goes through all imported modules, half a second
    if quick:
        torch.set_num_threads(1)
    importlib.import_module(f"benchmarks.gpu.parts.{name}").measure(Bench(rows, folder, quick))
