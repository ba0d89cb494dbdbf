"""``make ablate``: the switches of the paper's Table 3 on the embedded set, with one small base model (docs/METHOD.md, section 8).

Every run is an ordinary run in its own folder, ``RUN/ablations/NAME``. An interrupted run resumes, and its ``result.json`` marks it as
finished.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walt_pl.cli.function_command import call
from walt_pl.cli.run_fit import run_fit
from walt_pl.data.index import Index
from walt_pl.evaluation.program import machine
from walt_pl.files import read_start, whole_file, write_whole
from walt_pl.removal import describe_left, remove_own
from walt_pl.runs.card import read_card
from walt_pl.runs.experiment_files import find_experiment
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.run_files import RUN_FILES
from walt_pl.sampling.cascade import Cascade, SamplingConfig
from walt_pl.shapes.evaluation import STEPS, default_steps, score_base
from walt_pl.untrusted import read_json

PROMPTS, UNSEEN, SEED = 256, 64, 1
DEFAULT = "default"
TITLE = "# Ablations on the embedded set"


@dataclass(frozen=True)
class Change:
    """One row of the table."""

    name: str
    """Name of the overlay in experiments/EXP/ablations; the default row has none."""
    text: str
    paper: str
    """Figures of the paper, FVD on UCF-101 unless stated; the figure of the default comes first."""
    expected: int
    """Result of the paper: 1 if the change is better than our default, -1 if worse, 0 without a clear difference."""


CHANGES = (
    Change(DEFAULT, "patch 2, windows of the whole clip, LoRA 2, 8 channels, images and videos", "", 0),
    Change("patch_1", "patch 1", "patch 2: 134.4, patch 1: 60.7", 1),
    Change("window_2x2", "STW of 5 x 2 x 2 tokens", "full 59.9, a 16th of it 56.9", 0),
    Change("self_conditioning", "self-conditioning with p = 0.9", "p 0: 109.9, p 0.9: 61.4", 1),
    Change("separate_adaln", "AdaLN of each layer's own", "LoRA 2: 60.7, LoRA 256: 52.5", 1),
    Change("no_qk_norm", "no qk-norm", "60.7, without 59.0", 0),
    Change("no_latent_normalisation", "latents not normalised", "60.7, without 67.9", -1),
    Change("no_zero_snr", "no zero terminal SNR", "60.7, without 91.0", -1),
    Change("latent_channels_4", "4 latent channels", "8: 75.4, 4: 86.4", -1),
    Change("video_only", "videos alone", "zero-shot UCF-101: joint 344.5, video alone 598.8", -1),
)


def ablate(
    experiment: str = "experiments/shapes", run: str = "runs/shapes", index: str = "data/shapes/index.parquet", out: str = "docs"
) -> None:
    """Train the small base with each switch of the paper's Table 3 changed, and overwrite the table and the plot in docs.

    An interrupted command resumes with the run and step where it stopped.

    Args:
        experiment: folder with base.yaml, vae.yaml and ablations/.
        run: folder of the run whose autoencoder is used; the trainings are written to its ablations/.
        index: index of the embedded set.
        out: folder of ablations.md and ablations.png, which are overwritten.
    """
    found = find_experiment(Path(experiment))
    if not (found / "ablations").is_dir():
        raise ValueError(f"ablate: --experiment {experiment} has no folder ablations; name experiments/shapes, or a folder made like it")
    if not Path(index).is_file():
        raise ValueError(f"ablate: --index {index}: there is no such file; paint the embedded set: python -m walt_pl index shapes")
    run_ablations(found, Path(run), Path(index), Path(out))


def run_ablations(experiment: Path, run: Path, index: Path, out: Path) -> None:
    """Train and score the rows without a result, then write ``out/ablations.md`` and ``out/ablations.png``.

    Raises:
        ManifestError: the run has no autoencoder.
    """
    vae = Manifest.open(run).usable(["vae"])["vae"]
    _check_table(out / "ablations.md")
    results: dict[str, dict[str, Any]] = {}
    for change in CHANGES:
        folder = run / "ablations" / change.name
        done = folder / "result.json"
        if folder.exists() and read_card(vae)["sha256"] != _read_mark(folder / "parent.txt"):
            print(f"ablate: {folder} is of another autoencoder and trained anew: the rows of a table share theirs", flush=True)
            if left := remove_own(folder, [*RUN_FILES, r"parent\.txt", r"result\.json"]):
                raise ValueError(f"ablate: {describe_left(left)} is no file of a training: move it away, and type the command again")
        if not done.exists():
            print(f"ablate: {change.name} ({change.text})", flush=True)
            seconds = _train(experiment, folder, change.name, vae, index)
            write_whole(done, json.dumps({**_score(folder, index), "seconds": seconds}).encode())
        results[change.name] = read_json(done)
        _check_table(out / "ablations.md")
        write_whole(out / "ablations.md", render(results).encode())
    plot(results, out / "ablations.png")


def _check_table(path: Path) -> None:
    """Refuse to replace a page of another kind.

    Raises:
        ValueError: the file is no table of ablations.
    """
    if path.exists() and read_start(path, len(TITLE.encode())) != TITLE.encode():
        raise ValueError(f"ablate: {path} is no table of ablations, and is not replaced: name another folder (--out)")


def _train(experiment: Path, folder: Path, name: str, vae: Path, index: Path) -> float:
    """Train the base of one row, and also the autoencoder if the row changes it.

    Returns:
        Seconds of the base's training.
    """
    overlays = experiment / "ablations"
    own = overlays / f"vae_{name}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "parent.txt", read_card(vae)["sha256"].encode())
    manifest = Manifest.open(folder)
    data = ["--data.index", str(index)]
    if own.exists():
        _fit([experiment / "vae.yaml", own], folder, data)
    else:
        manifest.adopt("vae", vae)
    configs = [experiment / "base.yaml", overlays / "budget.yaml"]
    change = overlays / f"{name}.yaml"
    # Rows with the same autoencoder share its latents.
    shared = [] if own.exists() else ["--data.cache_dir", str(vae.parent / "cache")]
    began = time.monotonic()
    _fit([*configs, *([change] if name != DEFAULT else [])], folder, [*data, *shared])
    return time.monotonic() - began


def _read_mark(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _fit(configs: Sequence[Path], folder: Path, further: Sequence[str]) -> None:
    arguments = [word for config in configs for word in ("--config", str(config))]
    run_fit([*arguments, "--run", str(folder), *further], f"ablate: {configs[-1]}")


def _score(folder: Path, index: Path) -> dict[str, float]:
    cascade = Cascade.open(folder, ["base"])
    sampling = SamplingConfig(default_steps(cascade))
    shares = score_base(cascade, [entry.caption for entry in Index(index, "val").videos[:PROMPTS]], sampling, SEED)
    pairs = [entry.caption for entry in Index(index, "unseen").videos[:UNSEEN]]
    loss = read_card(folder / "base")["metrics"]["values"]["val/loss"]
    return {**shares, "unseen_pairs": score_base(cascade, pairs, sampling, SEED + PROMPTS)["pair"], "val_loss": loss}


# ---- Table and plot ----------------------------------------------------------------------------------------------------


def verdict(change: Change, result: Mapping[str, float], default: Mapping[str, float]) -> str:
    """Return whether a change has the effect that the paper reports.

    The figure is the share of prompts with the right colour, motion and shape. Two shares of ``PROMPTS`` prompts within two standard errors
    of each other count as equal.
    """
    a, b = result["all"], default["all"]
    error = math.sqrt((a * (1 - a) + b * (1 - b)) / PROMPTS)
    found = 0 if abs(a - b) <= 2 * error else (1 if a > b else -1)
    words = {1: "better", 0: "no difference", -1: "worse"}
    return f"{words[found]}: {'as the paper' if found == change.expected else f'the paper: {words[change.expected]}'}"


def render(results: Mapping[str, Mapping[str, float]]) -> str:
    """Render the table of the finished rows as Markdown."""
    counts = f"{PROMPTS} prompts ({UNSEEN} for unseen pairs)"
    lines = [
        TITLE,
        "",
        f"`make ablate EXP=shapes`, {machine()}. One seed a row, equal steps. Shares of {counts} that the",
        f"analytic scorer reads right; {STEPS['base']} sampling steps, guidance as in base.yaml. Shares within two standard errors",
        "are called no difference. One seed proves little: read a row as a lead. Losses of other latents or schedules do not compare.",
        "Minutes are by the clock, with pauses and whatever else the machine did; undisturbed, a row took about 5 on 2 cores.",
        "",
        "| change | colour | motion | shape | all | unseen pairs | val loss | minutes | paper (FVD) | here |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for change in CHANGES:
        if change.name in results:
            row = results[change.name]
            shares = [f"{row[figure]:.0%}" for figure in ("colour", "motion", "shape", "all", "unseen_pairs")]
            same = "" if change.name == DEFAULT else verdict(change, row, results[DEFAULT])
            cells = [change.text, *shares, f"{row['val_loss']:.3f}", f"{row['seconds'] / 60:.1f}", change.paper, same]
            lines.append(f"| {' | '.join(cells)} |")
    missing = [change.text for change in CHANGES if change.name not in results]
    if missing:
        lines += ["", f"Not run yet: {'; '.join(missing)}."]
    return "\n".join(lines) + "\n"


def plot(results: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Plot bars of the share with everything right, and of the share of unseen pairs."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [change for change in CHANGES if change.name in results]
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(rows) + 1.2), layout="constrained")
    place = list(range(len(rows)))
    for offset, name, label in ((-0.2, "all", "colour, motion and shape"), (0.2, "unseen_pairs", "pairs never seen in videos")):
        axes.barh([p + offset for p in place], [results[row.name][name] for row in rows], height=0.38, label=label)
    axes.set_yticks(place, [row.name.replace("_", " ") for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of prompts that are right")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt ablate`."""
    call(ablate, words)
