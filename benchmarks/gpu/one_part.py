"""The process of one part: python -m benchmarks.gpu.one_part NAME ROWS FOLDER [quick]."""

import importlib
import logging
import sys
import warnings
from pathlib import Path

from benchmarks.gpu.bench import Bench


def main() -> None:
    name, rows, folder = sys.argv[1:4]
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    part = importlib.import_module(f"benchmarks.gpu.parts.{name}")
    part.measure(Bench(Path(rows), Path(folder), quick="quick" in sys.argv[4:]))


if __name__ == "__main__":
    main()
