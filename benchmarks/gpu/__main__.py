"""The command line; see the docstring of the package."""

import argparse
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import benchmarks.gpu
from benchmarks.gpu.report import describe_parts
from benchmarks.gpu.results import find_facts, go_on_with, write
from benchmarks.gpu.run_part import run_part
from walt_pl.plain_text import split_lines

ALL_SECONDS, PART_SECONDS, LEAST_SECONDS = 720.0, 120.0, 20.0
"""Limits of one call and of one part, and the least time to begin a part in."""
QUICK_AT_ONCE = 2
"""Parts of `--quick` that run side by side. On a GPU a part is alone."""


def main() -> None:
    """Measure the parts that are not done, and write the report after each."""
    parts = describe_parts()
    arguments = _parse(parts)
    if arguments.list:
        print("\n".join(f"{name:<18} {split_lines(purpose)[0]}" for name, purpose in parts.items()))
        return
    if arguments.quick:  # before a process starts: its libraries read this once
        os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    elif not torch.cuda.is_available():
        raise SystemExit(
            "python -m benchmarks.gpu: this machine has no CUDA device, and its parts would take hours on a CPU. Add --quick to run them "
            "with tiny sizes, or measure the autoencoder on this CPU with python -m benchmarks.autoencoder"
        )
    path, result = go_on_with(arguments.out, find_facts(arguments.quick))
    done = {name for name, part in result["parts"].items() if part["state"] == "done"}
    todo = [name for name in arguments.part or parts if arguments.again or name not in done]
    for name in [name for name in arguments.part or parts if name not in todo]:
        print(f"{name}: done before (--again measures it again)", flush=True)
    for name, part in _run_all(todo, arguments.quick):
        result["parts"][name] = part
        write(path, result)
        counts = ", ".join(f"{len(part[kind])} {kind}" for kind in ("rows", "skipped", "failed"))
        print(f"{name}: {part['state']}, {part['seconds']} s, {counts}", flush=True)
    left = [name for name in todo if name not in result["parts"]]
    print("\n".join([f"left for the next call: {', '.join(left)}"] * bool(left) + [str(path), str(path.with_suffix(".md"))]))


def _run_all(names: list[str], quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield parts as they end. None is begun when the call's time is nearly over."""
    began = time.perf_counter()

    def run(name: str) -> tuple[str, dict[str, Any] | None]:
        left = ALL_SECONDS - (time.perf_counter() - began)
        return name, None if left < LEAST_SECONDS else run_part(name, quick, min(PART_SECONDS, left))

    with ThreadPoolExecutor(QUICK_AT_ONCE if quick else 1) as pool:
        yield from ((name, part) for name, part in pool.map(run, names) if part is not None)


def _parse(parts: dict[str, str]) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=benchmarks.gpu.__doc__, formatter_class=form)
    parser.add_argument("--part", nargs="+", choices=list(parts), default=[], metavar="NAME", help=f"of {', '.join(parts)}; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR", help="folder of the results")
    parser.add_argument("--again", action="store_true", help="measure parts again that are done")
    parser.add_argument("--list", action="store_true", help="print the parts and end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
