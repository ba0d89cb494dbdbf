"""Broken files: a whole run, from index to artifact, on a set that has every kind of them; and mutated ones through index and loader."""

import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from tests.helpers.clips import B_FRAMES, OPEN, VP9, counting_clip, encode, textured_clip
from walt_pl.data.batch import JointBatch
from walt_pl.data.index import Index, IndexEntry
from walt_pl.data.loader import JointLoader
from walt_pl.data.quarantine import FINDINGS
from walt_pl.data.sampler import JointSampler
from walt_pl.data.transforms import ClipTransform, PixelDataset
from walt_pl.indexing.build_index import IndexOptions, build_index
from walt_pl.indexing.dataset_layouts import list_source
from walt_pl.indexing.doctor import diagnose
from walt_pl.media.reading import read_clip
from walt_pl.media.spans import FrameRange
from walt_pl.media.types import MediaError

FRAMES, SIDE, BATCH = 17, 64, 12
ROOT = Path(__file__).parents[1]

# ---- One clip in a hundred is broken ---------------------------------------------------------------------------------


class Witness(L.Callback):
    """Writes down what was trained on, and once kills a worker while it reads, as a decoder does.

    Args:
        file: A line for each sample: [name, weight].
        kill_at: Batch before which it kills.
    """

    def __init__(self, file: str, kill_at: int) -> None:
        self.file, self.kill_at = Path(file), kill_at

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: JointBatch, batch_idx: int) -> None:
        with self.file.open("a") as lines:
            for path, weight in zip(batch.paths, batch.weight.tolist(), strict=True):
                lines.write(json.dumps([Path(path).name, weight]) + "\n")
        if batch_idx == self.kill_at:
            pid = multiprocessing.active_children()[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGSEGV)


def numbered(clip: bytes, number: int) -> bytes:
    """Return the mp4 with other bytes: a box that every reader skips."""
    return clip + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")


def in_trouble(folder: Path) -> dict[str, str]:
    """Files of every kind of trouble, each with the word that the doctor has for it; "missing" is not there."""
    clip = textured_clip(40, SIDE, SIDE)
    encode(folder / "whole.mp4", clip, "libx264")
    encode(folder / "whole.mkv", clip, "libx264")
    encode(folder / "uneven.mp4", clip, "libx264", times=[125 * n + 600 * (n > 9) for n in range(40)])
    encode(folder / "short.mp4", clip[:5], "libx264")
    encode(folder / "wordless.mp4", clip[::-1], "libx264")
    for name, source in (("cut.mkv", "whole.mkv"), ("cut.mp4", "whole.mp4")):
        content = (folder / source).read_bytes()
        (folder / name).write_bytes(content[: len(content) * 6 // 10])
    (folder / "zeros.mp4").write_bytes(bytes((folder / "whole.mp4").stat().st_size))
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").write_bytes(b"")
    shutil.copy(folder / "uneven.mp4", folder / "z-copy.mp4")
    (folder / "whole.mp4").unlink()
    (folder / "whole.mkv").unlink()
    unreadable = {"missing.mp4": "missing", "cut.mkv": "truncated", "cut.mp4": "corrupt", "zeros.mp4": "corrupt"}
    unreadable |= {"text.mp4": "corrupt", "empty.mp4": "corrupt", "z-copy.mp4": "duplicate"}
    return {**unreadable, "short.mp4": "short", "uneven.mp4": "variable rate", "wordless.mp4": "no caption"}


USED_ALL_THE_SAME = {"uneven.mp4", "wordless.mp4"}
FAIL_LATER: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}
"""Fate of files between the index and the training."""

EXPERIMENT = """
model:
  class_path: stages.vae.VAEStage
  init_args:
    vae: {{width: 8, channel_multipliers: [1, 1, 2], strides: [[2, 2, 2], [2, 2, 2]], blocks: [0, 1, 1], middle_blocks: 1, norm: layer}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-3}}}}
    warmup: 1
    decay: constant
    adversarial_weight: 0.0
    statistics_batches: 1
data: {{index: {folder}/set.parquet, size: 32, crop: 16, videos_per_batch: {batch}, val_videos: 0, num_workers: 2}}
trainer:
  max_epochs: 1
  precision: 32-true
  callbacks: [{{class_path: benchmarks.damage.Witness, init_args: {{file: {folder}/seen.jsonl, kill_at: 5}}}}]
"""


def walt(*words: str) -> str:
    """Run the program and return its output."""
    done = subprocess.run([sys.executable, "-m", "walt_pl", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def broken(folder: Path) -> dict[str, object]:
    """`index --report`, then `fit`, as typed; what each of them names, and what was trained on."""
    clips = folder / "clips"
    clips.mkdir()
    troubles = in_trouble(clips)
    bad = len(troubles) - len(USED_ALL_THE_SAME) + len(FAIL_LATER)
    names = [f"{number:04}.mp4" for number in range(100 * bad - len(troubles))]
    for kind in range(20):
        encode(clips / f"{kind}.painted.mp4", np.roll(textured_clip(FRAMES, SIDE, SIDE), kind, axis=2), "libx264")
    for number, name in enumerate(names):
        (clips / name).write_bytes(numbered((clips / f"{number % 20}.painted.mp4").read_bytes(), number))
    with (folder / "set.csv").open("w", newline="") as file:
        words = {name: "" if name == "wordless.mp4" else f"clip {name}" for name in [*names, *troubles]}
        csv.writer(file).writerows([("path", "caption"), *((f"clips/{name}", caption) for name, caption in words.items())])
    (folder / "run").mkdir()
    config = folder / "run" / "vae.yaml"
    config.write_text(EXPERIMENT.format(folder=folder, batch=BATCH))

    out = folder / "set.parquet"
    said = walt("index", str(folder / "set.csv"), "--out", str(out), "--report", "--config", str(config))
    rows = list(csv.DictReader(out.with_suffix(".report.csv").open()))
    found = {Path(row["path"]).name: row["finding"] for row in reversed(rows)}  # the gravest comes first
    later = dict(zip(names[100::100], FAIL_LATER, strict=False))
    for name, way in later.items():
        FAIL_LATER[way](clips / name)
    trained = walt("fit", "--config", str(config), "--run", str(folder / "out"))

    weights: dict[str, list[float]] = {}
    for line in (folder / "seen.jsonl").read_text().splitlines():
        name, weight = json.loads(line)
        weights.setdefault(name, []).append(weight)
    sound = {*names, *USED_ALL_THE_SAME} - set(later)
    return {
        "files": len(names) + len(troubles),
        "broken": bad,
        "what index said of the experiment": [line for line in said.splitlines() if line.startswith("train: ")],
        "what fit said at its start": [line for line in trained.splitlines() if line.startswith("train: ")],
        "index reports each of them, rightly, and nothing else": found == troubles,
        "what is used fails by name at run time, and nothing else": {
            way: bool(re.search(rf"^  .*{name}: ", trained, re.MULTILINE)) for name, way in later.items()
        },
        "a worker was killed and replaced": "killed by SIGSEGV" in trained,
        "nothing else was warned of": sorted(set(re.findall(r"clips/(\S+): ", trained)) - set(later)),
        "all others trained on": all(all(weights.get(name, [0.0])) for name in sound),
        "times that a clip came in the pass": sorted(Counter(len(weights[name]) for name in sound if name in weights).items()),
        "trained on, though broken": sorted(name for name in weights if name not in sound and any(weights[name])),
    }


# ---- Mutated files ---------------------------------------------------------------------------------------------------


def mutation(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a file with bytes flipped, a piece cut out of it or off its end, or two pieces swapped."""
    data = bytearray(content)
    kind = rng.integers(4)
    if kind == 0:
        for place in rng.integers(len(data), size=2 ** int(rng.integers(9))):
            data[place] ^= int(rng.integers(1, 256))
    elif kind == 1:
        del data[int(rng.integers(len(data))) :]
    elif kind == 2:
        start = int(rng.integers(len(data)))
        del data[start : start + int(rng.integers(1, len(data) // 4))]
    else:
        length = int(rng.integers(1, len(data) // 4))
        first, second = sorted(int(place) for place in rng.integers(len(data) - length, size=2))
        data[first : first + length], data[second : second + length] = data[second : second + length], data[first : first + length]
    return bytes(data)


def originals(folder: Path) -> list[Path]:
    """Sound clips of 40 frames, of five kinds."""
    clip = counting_clip(40)
    encode(folder / "a.mp4", clip, "libx264", **B_FRAMES)
    encode(folder / "b.mkv", clip, "libx264", **OPEN)
    encode(folder / "c.avi", clip, "mpeg4", g="12")
    encode(folder / "d.webm", clip, "libvpx-vp9", **VP9)
    encode(folder / "e.mpg", clip, "mpeg2video", rate=25, g="12", bf="2")
    return sorted(folder.iterdir())


def mutated(folder: Path, count: int) -> dict[str, Any]:
    """Files that are indexed, then damaged: what becomes of them in a training that goes on, in the doctor, and in training after it."""
    rng = np.random.default_rng(count)
    (folder / "whole").mkdir()
    sources = originals(folder / "whole")
    wholes = {folder / "clips" / f"{n:03}{source.suffix}": source for n, source in enumerate(sources * -(-count // len(sources)))}
    wholes = dict(list(wholes.items())[:count])
    (folder / "clips").mkdir()
    for path, source in wholes.items():
        shutil.copy(source, path)
    out, options = folder / "set.parquet", IndexOptions(workers=2, seconds=20)
    before = build_index(list_source(str(folder / "clips")), out, options)
    assert (before.rows, before.quarantined) == (count, 0), before
    for path, source in wholes.items():
        content = source.read_bytes()
        while (damaged := mutation(content, rng)) == content:
            continue
        path.write_bytes(damaged)
    entries = list(Index(out, "train").videos)
    failed, killed = one_pass(entries)
    built = build_index(None, out, IndexOptions(again=True, workers=2, seconds=20))
    findings = diagnose(out, options, built.changed)
    named = {Path(finding.place.path).name: finding.finding for finding in reversed(findings) if finding.finding in (*FINDINGS, "changed")}
    usable = {path.name for path in wholes if named.get(path.name) == "changed"}
    later, killed_later = one_pass([entry for entry in Index(out, "train").videos if entry.path.name in usable])
    return {
        "files": count,
        "a training that goes on: failed by name": len(failed),
        "each by its own name": all(reason.startswith(f"{path}") for path, reason in failed.items()),
        "workers that crashed or hung": killed + killed_later,
        "the doctor": dict(Counter(named.values())),
        "each one named": set(named) == {path.name for path in wholes},
        "training after it: failed": len(later),
        "changed, decodes, and gives the frames it gave before": sum(same(folder / "clips" / name, wholes) for name in usable),
    }


def one_pass(entries: list[IndexEntry]) -> tuple[dict[str, str], int]:
    """Each file once, in two workers: the reasons of those that failed by path, and how many workers had to be replaced."""
    source = PixelDataset(entries, (), ClipTransform(32, FRAMES))
    loader = JointLoader(source, JointSampler(len(entries), 0, BATCH, 0), num_workers=2, timeout=20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = {path for batch in loader for path in batch.paths}
    loader.close()
    assert read == {str(entry.path) for entry in entries}
    return loader.failures, sum("a new worker tries it once more" in str(warning.message) for warning in caught)


def same(path: Path, wholes: dict[Path, Path]) -> bool:
    def frames(file: Path) -> Any:
        entry = IndexEntry(file, "video", 40, 8.0, 96, 64, "", -1, "train", 0)
        return read_clip(entry, FrameRange(40))

    try:
        return bool(np.array_equal(frames(path), frames(wholes[path])))
    except MediaError:
        return False
