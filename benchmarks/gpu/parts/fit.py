"""`fit` of 100 steps of ucf101/base_l on one device, 32 videos a step, on synthetic cached latents, beside `plan` and the bare step.

`ms` of the training is from speed/clips_per_second, the median of its values after the first 30 steps, and `peak_gb` is
speed/gpu_memory_gb. The bare step is loss, backward pass and optimiser of the same batch alone, self-conditioning included. `over_bare`
is the training's `ms` over the bare step's.
"""

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.bare_step import time_bare_step
from benchmarks.gpu.bench import Bench, Figure, require
from benchmarks.gpu.cached_latents import write_inputs
from walt_pl.plain_text import split_lines
from walt_pl.untrusted import parse_json

EXPERIMENT = "ucf101/base_l"
BARE = "bare step"
VIDEOS, STEPS, WARM_UP, EVERY = 32, 100, 30, 10
QUICK_VIDEOS, QUICK_STEPS = 2, 2
QUICK_DENOISER: dict[str, object] = {"width": 64, "depth": 2, "num_heads": 1}
SPEED, MEMORY = "speed/clips_per_second", "speed/gpu_memory_gb"


def measure(bench: Bench) -> None:
    trained: list[float] = []

    def fit() -> dict[str, Figure]:
        seconds, figures = _fit(bench)
        trained.append(seconds)
        return figures

    def bare() -> dict[str, Figure]:
        seconds = time_bare_step(bench, EXPERIMENT, _changes(bench), QUICK_VIDEOS if bench.quick else VIDEOS)
        return {"ms": 1e3 * seconds, **({"over_bare": trained[0] / seconds} if trained else {})}

    bench.attempt(EXPERIMENT, fit)
    bench.attempt(BARE, bare)


def _changes(bench: Bench) -> dict[str, object]:
    return QUICK_DENOISER if bench.quick else {}


def _fit(bench: Bench) -> tuple[float, dict[str, Figure]]:
    """Return the seconds of a step, and the figures of the training."""
    require("tensorboard")
    videos, steps, every = (QUICK_VIDEOS, QUICK_STEPS, 1) if bench.quick else (VIDEOS, STEPS, EVERY)
    changes = {f"model.denoiser.{key}": value for key, value in _changes(bench).items()}
    options = ["--config", f"experiments/{EXPERIMENT}.yaml", *_words(changes)]
    options += write_inputs(bench.folder, videos, bench.device)
    chosen: dict[str, object] = {"trainer.devices": 1, "trainer.max_steps": steps, "trainer.log_every_n_steps": every}
    chosen |= {"throughput.every_n_steps": every, "model.warmup_steps": 1, "run": bench.folder / "run"}
    if bench.device.type != "cuda":
        chosen |= {"trainer.accelerator": "cpu", "data.num_workers": 0}
    planned = None if bench.quick else _planned_gb(options)  # it takes 10 s, and tests/cli/test_plan.py plans
    _walt("fit", [*options, *_words(chosen)])
    seen = _read_curves(bench.folder / "run")
    values = [value for step, value in seen[SPEED] if bench.quick or step > WARM_UP]
    seconds = videos / statistics.median(values)
    figures: dict[str, Figure] = {"ms": 1e3 * seconds}
    if planned is not None:
        figures["plan_gb"] = planned
    if bench.device.type == "cuda":
        peak = max(value for _, value in seen[MEMORY])
        figures |= {"peak_gb": peak} | ({} if planned is None else {"memory_over_plan": peak / planned})
    return seconds, {**figures, "videos": videos, "steps": steps}


def _words(chosen: dict[str, Any]) -> list[str]:
    return [word for key, value in chosen.items() for word in (f"--{key}", str(value))]


def _walt(command: str, options: list[str]) -> str:
    """Run a command of the program, and return its output.

    Raises:
        RuntimeError: it ended with an error; the message has its last lines.
    """
    done = subprocess.run([sys.executable, "-m", "walt_pl", command, *options], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {' / '.join(split_lines(done.stderr)[-6:])}")
    return done.stdout


def _planned_gb(options: list[str]) -> float:
    report = parse_json(_walt("plan", [*options, "--gpus", "1", "--json"]), "plan --json")
    way = "recomputed" if report["activation_checkpointing"] else "kept"
    return report["bytes_per_gpu"]["ddp"]["total"][way] / 1e9


def _read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values of each curve in TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(run.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            curves.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return curves
