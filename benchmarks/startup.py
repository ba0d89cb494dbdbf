"""CPU seconds that a command takes before it works, beside those of `import lightning.pytorch.cli` in the same run.

python -m benchmarks.startup [--repeats 3]

A command's figure is user plus system time of its process, the median of the repeats. All commands take turns, so that a machine that
slows down slows all of them. Walls: 1.0 s for help, status, verify and index; 1.3 times the bare import for plan and fit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.tiny_stages import write_stages
from walt_pl.evaluation.program import machine
from walt_pl.runs.manifest import Manifest

CONFIG = ("--config", "experiments/shapes/base.yaml")
BARE = "import lightning.pytorch.cli"
COMMANDS = {
    BARE: ("-c", BARE),
    "--help": ("-m", "walt_pl", "--help"),
    "status": ("-m", "walt_pl", "status", "--run", "{run}"),
    "verify": ("-m", "walt_pl", "verify", "--run", "{run}"),
    "index --help": ("-m", "walt_pl", "index", "--help"),
    "plan": ("-m", "walt_pl", "plan", *CONFIG),
    "fit --print_config": ("-m", "walt_pl", "fit", *CONFIG, "--print_config"),
    "sample --help": ("-m", "walt_pl", "sample", "--help"),
    "validate --help": ("-m", "walt_pl", "validate", "--help"),
}


def write_run(root: Path) -> Path:
    """Write a finished run of tiny stages, for the commands that show a run."""
    manifest = Manifest.open(root)
    for stage, artifact in write_stages(root).items():
        manifest.finish(stage, artifact)
    return root


def cpu_seconds(arguments: tuple[str, ...]) -> float:
    """Return user plus system time of a Python process."""
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {child.returncode}; run it in the checkout to see why")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print the medians and their ratios to the bare import, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    cpu_seconds(COMMANDS["fit --print_config"])  # the disk's cache
    seconds = {name: list[float]() for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "tiny")
        for _ in range(repeats):
            for name, arguments in COMMANDS.items():
                seconds[name].append(cpu_seconds(tuple(word.format(run=run) for word in arguments)))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    rows = {name: {"cpu_seconds": round(found, 2), "of_bare_import": round(found / medians[BARE], 2)} for name, found in medians.items()}
    print(json.dumps({"machine": machine(), "repeats": repeats, "commands": rows}, indent=2))


if __name__ == "__main__":
    main()
