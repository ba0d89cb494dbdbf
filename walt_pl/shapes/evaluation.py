"""Scores of a run: on the embedded set what the analytic scorer reads from each stage's pictures; of an autoencoder on any data PSNR."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from walt_pl.data.batch import DataError, Draw
from walt_pl.data.index import Entry, Index
from walt_pl.data.transforms import PixelDataset, to_square
from walt_pl.media.reading import read_video
from walt_pl.metrics.frames import high_frequency_energy, psnr
from walt_pl.runs.artifact import write_whole
from walt_pl.sampling.cascade import Cascade, Request, Sampling
from walt_pl.shapes.dataset import parse_caption
from walt_pl.shapes.scorer import score

SIZES = {"base": 32, "sr1": 64, "sr2": 128}
"""Side in pixels that each stage of the embedded set makes."""
RECONSTRUCTED = 64
"""Validation clips that the autoencoder is scored on."""
UPSCALED = 64
"""Validation clips that each super-resolution stage is scored on."""
CONTINUED = 120
"""Validation clips whose beginning the base model goes on from, where it was trained with frame prediction."""
STEPS = {"base": 10, "sr1": 2, "sr2": 2}
"""Sampling steps by stage. Few for super-resolution, whose answer is determined: sr2 had 30.4 dB with 1 or 2 steps and 29.6 dB with 4."""


def evaluate_run(
    run: Path,
    index: Path,
    prompts: int,
    unseen: int,
    steps: int | Mapping[str, int],
    seed: int,
    stages: Sequence[str] | None = None,
    allow_stale: bool = False,
) -> dict[str, Any]:
    """Score the finished stages of a run, or those named, each with the guidance of its artifact.

    Returns:
        what summary.json holds beside times: shares right as 0..1, PSNR in dB.
    """
    cascade = Cascade.open(run, stages, allow_stale)
    steps = steps if isinstance(steps, int) else {**STEPS, **steps}
    sampling = Sampling(steps)
    clips = Index(index, "val").videos
    summary: dict[str, Any] = {"vae": score_autoencoder(cascade, clips[:RECONSTRUCTED])}
    summary["base"] = score_base(cascade, [entry.caption for entry in clips[:prompts]], sampling, seed)
    pairs = [entry.caption for entry in Index(index, "unseen").videos[:unseen]]
    summary["base"]["unseen_pairs"] = score_base(cascade, pairs, sampling, seed + prompts)["pair"]
    counts = {"vae": RECONSTRUCTED, "base": prompts, "unseen_pairs": unseen, "sr": UPSCALED}
    if "frame_prediction" in cascade.artifacts["base"].config:
        summary["base"] |= score_continuation(cascade, clips[:CONTINUED], sampling, seed)
        counts["continued"] = len(clips[:CONTINUED])
    for stage in cascade.stages[1:]:
        summary[stage] = score_upscaling(cascade, stage, clips[:UPSCALED], sampling, seed)
    summary |= {
        "seed": seed,
        "steps": steps,
        "guidance": {stage: asdict(cascade.guidance(stage)) for stage in cascade.stages},
        "counts": counts,
        "machine": machine(),
    }
    return summary


def evaluate_autoencoder(folder: Path, source: PixelDataset, positions: Sequence[int]) -> tuple[dict[str, Any], Tensor, list[str]]:
    """Score an autoencoder alone by reconstructing clips, whatever they show.

    Args:
        folder: Its artifact.
        source: Reads whole pictures.
        positions: Places of the clips in the source's list of videos, at least one.

    Returns:
        Figures as `evaluate_run`'s, PSNR in dB, with those of `score_autoencoder` where the source is the embedded set; clips
        [2b 3 t h w], each original before its reconstruction; and a line for each of them.

    Raises:
        DataError: A clip cannot be read.
    """
    cascade = Cascade({"vae": folder}, "cuda" if torch.cuda.is_available() else "cpu")
    shown: list[Tensor] = []
    lines: list[str] = []
    figures: list[float] = []
    for position in positions:
        sample = source[Draw("video", int(position), pass_number=0, slot=0)]
        if sample.failure:
            raise DataError(sample.failure)
        clip = sample.content[None]
        rebuilt = cascade.decode(cascade.encode(clip))
        figures.append(float(psnr(rebuilt, clip)))
        shown += [clip, rebuilt]
        lines += [": ".join(filter(None, (Path(sample.path).name, sample.caption))), f"reconstruction, {figures[-1]:.1f} dB"]
    scores = {"psnr": sum(figures) / len(figures), "psnr_lowest": min(figures), "psnr_highest": max(figures)}
    scores["high_frequency"] = high_frequency_share(torch.cat(shown[1::2]), torch.cat(shown[::2]))
    entries = source.videos[:RECONSTRUCTED]
    if all(is_of_shapes(entry.caption) for entry in entries):
        scores |= {f"shapes_{name}": value for name, value in score_autoencoder(cascade, entries).items()}
    return {"vae": scores, "counts": {"vae": len(figures)}, "machine": machine()}, torch.cat(shown), lines


def is_of_shapes(caption: str) -> bool:
    """Say whether a caption is one of the embedded set's."""
    try:
        parse_caption(caption)
    except ValueError:
        return False
    return True


def read_clips(entries: Sequence[Entry], size: int) -> Tensor:
    """Clips of an index as pixels [b 3 t h w] in -1..1."""
    return torch.stack([to_square(read_video(entry.path, entry.frames), size) for entry in entries])


def score_autoencoder(cascade: Cascade, entries: Sequence[Entry]) -> dict[str, float]:
    """PSNR at 64 px; colour, motion and shape of reconstructions at 32 px, texture at 128 px; high-frequency energy at each size."""
    captions = [entry.caption for entry in entries]
    read = {}
    for size in SIZES.values():
        clips = read_clips(entries, size)
        rebuilt = cascade.decode(cascade.encode(clips))
        read[size] = {
            **score(rebuilt, captions),
            "psnr": float(psnr(rebuilt, clips).mean()),
            "high_frequency": high_frequency_share(rebuilt, clips),
        }
    coarse = {word: read[32][word] for word in ("colour", "motion", "shape")}
    return {
        "psnr": read[64]["psnr"],
        **coarse,
        "texture": read[128]["texture"],
        **{f"psnr_{size}": read[size]["psnr"] for size in (32, 128)},
        **{f"high_frequency_{size}": read[size]["high_frequency"] for size in SIZES.values()},
    }


def high_frequency_share(rebuilt: Tensor, clips: Tensor) -> float:
    """High-frequency energy of reconstructions over that of their originals, [b 3 t h w] each: below 1 they are too smooth."""
    return float(high_frequency_energy(rebuilt).sum() / high_frequency_energy(clips).sum())


def score_base(cascade: Cascade, captions: Sequence[str], sampling: Sampling, seed: int, batch: int = 32) -> dict[str, float]:
    """Colour, motion, shape, all three, and shape with colour (``pair``) of samples for these captions."""
    request = Request(prompts=captions, seeds=[seed + i for i in range(len(captions))])
    made = [cascade.decode(cascade.refine("base", request.part(start, batch), sampling)) for start in range(0, len(captions), batch)]
    shares = score(torch.cat(made), captions)
    return {word: shares[word] for word in ("colour", "motion", "shape", "all", "pair")}


def score_continuation(cascade: Cascade, entries: Sequence[Entry], sampling: Sampling, seed: int, batch: int = 32) -> dict[str, float]:
    """How often a clip goes on in its direction from two given latents and no caption, beside the same without them (chance: 1/6).

    The first 5 of 17 true frames are given; the motion is read from the 12 others.
    """
    captions = [entry.caption for entry in entries]
    given = cascade.encode(read_clips(entries, SIZES["base"])[:, :, : cascade.overlap])
    request = Request(prompts=[""] * len(captions), seeds=[seed + i for i in range(len(captions))])
    pasts: dict[str, dict[str, Tensor]] = {"motion_continued": {"base": given}, "motion_without_past": {}}
    shares = {}
    for figure, past in pasts.items():
        whole = replace(request, past=past)
        made = [cascade.decode(cascade.refine("base", whole.part(start, batch), sampling)) for start in range(0, len(captions), batch)]
        shares[figure] = score(torch.cat(made)[:, :, cascade.overlap :], captions)["motion"]
    return shares


def score_upscaling(
    cascade: Cascade, stage: str, entries: Sequence[Entry], sampling: Sampling, seed: int, batch: int = 16
) -> dict[str, float]:
    """One super-resolution stage from the true clip's latents one size below, beside bicubic upscaling of those latents decoded."""
    size = SIZES[stage]
    captions = [entry.caption for entry in entries]
    clips = read_clips(entries, size)
    low = cascade.encode(read_clips(entries, size // 2))
    request = Request(prompts=captions, seeds=[seed + i for i in range(len(captions))])
    made = []
    for start in range(0, len(captions), batch):
        latents = cascade.refine(
            stage, request.part(start, batch), sampling, low[start : start + batch], number=cascade.stages.index(stage)
        )
        made.append(cascade.decode(latents))
    sharp, plain = torch.cat(made), bicubic(cascade.decode(low), size)
    return {
        "texture": score(sharp, captions)["texture"],
        "texture_bicubic": score(plain, captions)["texture"],
        "psnr": float(psnr(sharp, clips).mean()),
        "psnr_bicubic": float(psnr(plain, clips).mean()),
    }


def bicubic(clips: Tensor, size: int) -> Tensor:
    """Clips [b 3 t h w] at another size, frame by frame."""
    frames = clips.transpose(1, 2).flatten(0, 1)
    larger = F.interpolate(frames, size=(size, size), mode="bicubic").clamp(-1, 1)
    return larger.unflatten(0, (len(clips), -1)).transpose(1, 2)


def machine() -> str:
    """Processor and cores, as figures should be read with."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(summary, indent=2) + "\n").encode())


def render_summary(summary: Mapping[str, Any]) -> Table:
    """The figures as a table."""
    table = Table("stage", "figure", "value")
    for stage in ("vae", *SIZES):
        for figure, value in summary.get(stage, {}).items():
            table.add_row(stage, figure, f"{value:.2f} dB" if "psnr" in figure else f"{value:.1%}")
    return table
