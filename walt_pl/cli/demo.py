"""``make demo``: the complete pipeline on the embedded set, from data to a picture and a table."""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from walt_pl.blocks.compute import compute_dtype
from walt_pl.cli.clock import Clock
from walt_pl.cli.config_files import stages_of
from walt_pl.cli.console import print_table
from walt_pl.cli.function_command import call
from walt_pl.cli.report import REPORT, describe_report
from walt_pl.cli.run_fit import run_fit, run_fits
from walt_pl.cli.sample import make_clips
from walt_pl.data.frame_rate import DEFAULT_FPS
from walt_pl.data.index import Index
from walt_pl.evaluation.program import machine
from walt_pl.media.contact_sheet import captioned_grid, contact_sheet
from walt_pl.media.writing import write_gif, write_image
from walt_pl.runs.experiment_files import find_experiment
from walt_pl.runs.stage_names import kind_of
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig
from walt_pl.shapes.dataset import write_set
from walt_pl.shapes.evaluation import default_steps, evaluate_run, render_summary, write_summary
from walt_pl.terminal_text import printable

SHOWN_SEEN, SHOWN_UNSEEN = 12, 4
SEED = 1


def demo(run: str = "runs/shapes", experiment: str = "experiments/shapes", data: str = "data/shapes") -> None:
    """Run the complete pipeline on the embedded set: paint it, train four stages, sample 16 prompts, score, and show one picture.

    An interrupted command resumes with the stage and step where it stopped.

    Args:
        run: folder of the run.
        experiment: folder with vae.yaml, base.yaml, and sr1.yaml, sr2.yaml, ...
        data: folder of the embedded set.
    """
    found = find_experiment(Path(experiment))
    if not stages_of(found):
        raise ValueError(f"demo: --experiment {experiment} has no vae.yaml; name a folder of experiments, such as experiments/shapes")
    run_demo(Path(run), found, Path(data))


def run_demo(run: Path, experiment: Path, data: Path) -> None:
    """Paint, train, sample and score; parts that are done already are skipped.

    The results are ``demo/samples.png``, ``demo/samples.gif``, ``demo/summary.json`` and ``report.html`` in the folder of the run.
    """
    out = run / "demo"
    out.mkdir(parents=True, exist_ok=True)
    if (out / "summary.json").exists():
        (out / "seconds.json").unlink(missing_ok=True)  # the last demo has finished, so the times start anew
    load = os.getloadavg()[0]  # before our own work, to record the load of other programs
    clock = Clock(out / "seconds.json")
    # With this handler a terminated demo counts its time as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("demo: terminated; the same command goes on from there"))
    dtype = compute_dtype(torch.device("cpu"))
    print(f"demo: {machine()}, computing in {str(dtype).removeprefix('torch.')}")
    print("demo: about 12 minutes on 2 cores with AMX when nothing else runs; processors without it take longer", flush=True)
    with clock.counts("data"):
        index = write_set(data)
    stages = stages_of(experiment)
    for group in _groups(stages):
        with clock.counts("+".join(group)):
            _train(run, {stage: experiment / f"{stage}.yaml" for stage in group})
    with clock.counts("samples"):
        count = _show(run, stages, index, out)
    with clock.counts("scores"):
        figures = evaluate_run(run, index, prompts=256, unseen=64, seed=SEED)
    summary = {"minutes": clock.minutes, **figures, "load": load, "samples": count, "seconds": clock.seconds}
    write_summary(out / "summary.json", summary)
    print_table(render_summary(summary))
    print(f"{summary['minutes']:.1f} minutes in all; figures: {out / 'summary.json'}")
    print(f"look at: {out / 'samples.png'}")
    print(_report(run))


def _report(run: Path) -> str:
    """Write the report of the run, and return a sentence with its time, or with the reason why there is none."""
    began = time.monotonic()
    try:
        told = describe_report(run, run / REPORT)
    except Exception as error:  # the stages are trained and scored: a page about them must not make the demo fail
        return printable(f"report: not written ({error}); try again with: walt report {run}")
    return f"{told}, in {time.monotonic() - began:.0f} s"


def _groups(stages: Sequence[str]) -> list[list[str]]:
    """Return the stages in the order of their training; those of super-resolution are one group, since they need the same parents."""
    upper = [stage for stage in stages if kind_of(stage) == "super_resolution"]
    return [*([stage] for stage in stages if stage not in upper), *([upper] if upper else [])]


def _train(run: Path, configs: Mapping[str, Path]) -> None:
    """Train stages as a user would, side by side, each in its own process."""
    commands = {stage: ["--config", str(config), "--run", str(run)] for stage, config in configs.items()}
    for words in commands.values():
        print(f"demo: -m walt_pl fit {' '.join(words)}", flush=True)
    if len(commands) == 1:
        run_fit(next(iter(commands.values())), f"demo: the stage of {next(iter(configs.values()))}")
    else:
        run_fits(commands, "demo: stage")


def _show(run: Path, stages: Sequence[str], index: Path, out: Path) -> int:
    """Sample prompts with the complete cascade into one picture, and return their number.

    Some prompts have a pair of shape and colour that no training video shows.
    """
    seen = [entry.caption for entry in Index(index, "val").videos[:SHOWN_SEEN]]
    unseen = [entry.caption for entry in Index(index, "unseen").videos[:SHOWN_UNSEEN]]
    prompts = seen + unseen
    cascade = Cascade.open(run, [stage for stage in stages if kind_of(stage) != "vae"])
    request = SampleRequest(prompts=prompts, seeds=[SEED + i for i in range(len(prompts))])
    clips = torch.cat(list(make_clips(cascade, request, SamplingConfig(default_steps(cascade)), batch=16)))
    captions = seen + [f"{caption} (pair never seen in videos)" for caption in unseen]
    write_image(out / "samples.png", contact_sheet(clips, captions))
    write_gif(out / "samples.gif", captioned_grid(clips, captions), cascade.fps or DEFAULT_FPS, captions)
    return len(prompts)


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt demo`."""
    call(demo, words)
