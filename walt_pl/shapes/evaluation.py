"""Scores of a run: on the embedded set, the analytic scorer's readings of each stage; on any data, PSNR of an autoencoder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from walt_pl.data.batch import DataError, SampleRef
from walt_pl.data.index import Index, IndexEntry
from walt_pl.data.transforms import PixelDataset, to_square
from walt_pl.evaluation.program import machine
from walt_pl.files import write_whole
from walt_pl.media.reading import read_video
from walt_pl.metrics.frames import high_frequency_energy, psnr
from walt_pl.runs.stage_names import kind_of
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig
from walt_pl.shapes.clip_mean import ClipMean
from walt_pl.shapes.dataset import SIZE, parse_caption
from walt_pl.shapes.outline import measure_outlines
from walt_pl.shapes.score_cards import PREFIX
from walt_pl.shapes.scorer import score

RECONSTRUCTED = 64
"""Validation clips that the autoencoder is scored on."""
UPSCALED = 64
"""Validation clips that each super-resolution stage is scored on."""
OUTLINED = 64
"""Validation captions whose samples have their outlines fitted, at the size of every stage."""
CONTINUED = 120
"""Validation clips that the base model continues, where it was trained with frame prediction."""
BATCH = 32
"""Clips that are sampled at once."""
FORMATS = {"psnr": "{:.2f} dB", "iou": "{:.3f}", "steadiness": "{:.2f} px"}
"""Format of a figure, by the first word of its name after "shapes_". Others are shares, printed in percent."""
STEPS = {"base": 10, "super_resolution": 2}
"""Sampling steps by kind of stage. Super-resolution needs few: its answer is determined. sr2 had 30.4 dB with 1 or 2, 29.6 dB with 4."""


def evaluate_run(
    run: Path,
    index: Path,
    prompts: int,
    unseen: int,
    seed: int,
    steps: int | Mapping[str, int] | None = None,
    stages: Sequence[str] | None = None,
    allow_stale: bool = False,
    verify: bool = False,
) -> dict[str, Any]:
    """Score stages of a run, each with the guidance of its artifact.

    Args:
        run: folder of the run.
        index: of the embedded set.
        prompts: number of validation captions that the base model is scored on.
        unseen: number of captions with a pair of shape and colour that no training video has.
        seed: of the noise.
        steps: sampling steps, of every stage or by stage; `default_steps` for the others.
        stages: to score; all finished ones when None.
        allow_stale: score although a parent was trained again.
        verify: compare the hash of large weights, too, see `walt_pl.load`.

    Returns:
        Content of the demo's summary.json, without its times. "scores" has the figures of each stage: correct shares 0..1, PSNR in dB.

    Raises:
        ValueError: the base model was trained without captions.
    """
    cascade = Cascade.open(run, stages, allow_stale, verify=verify)
    return score_cascade(cascade, run, index, prompts, unseen, seed, SamplingConfig(choose_steps(cascade, steps)))


def score_cascade(
    cascade: Cascade, run: Path, index: Path, prompts: int, unseen: int, seed: int, sampling: SamplingConfig
) -> dict[str, Any]:
    """Score the stages of a cascade that is loaded, see `evaluate_run`.

    Raises:
        ValueError: the base model was trained without captions.
    """
    if not cascade.samplers[cascade.base].denoiser.config.text_width:
        raise ValueError(
            f'evaluate: the scorer reads the words of captions, and stage "{cascade.base}" of {run} was trained without captions; '
            "score its autoencoder alone: --stages vae"
        )
    clips = Index(index, "val").videos
    sizes = sorted({SIZE, *(min(cascade.pixels(stage)) for stage in cascade.stages)})
    scores: dict[str, dict[str, float]] = {"vae": score_autoencoder(cascade, clips[:RECONSTRUCTED], sizes)}
    captions = [entry.caption for entry in clips[:prompts]]
    latents = sample_latents(cascade, cascade.base, request_captions(captions, seed), sampling)
    base: dict[str, float] = {**score_words(cascade.decode(latents), captions)}
    pairs = [entry.caption for entry in Index(index, "unseen").videos[:unseen]]
    of_pairs = cascade.decode(sample_latents(cascade, cascade.base, request_captions(pairs, seed + prompts), sampling))
    base["unseen_pairs"] = score_words(of_pairs, pairs)["pair"]
    counts = {"vae": RECONSTRUCTED, cascade.base: prompts, "unseen_pairs": unseen, **dict.fromkeys(cascade.stages[1:], UPSCALED)}
    if cascade.samplers[cascade.base].denoiser.config.frame_prediction:
        base |= score_continuation(cascade, clips[:CONTINUED], sampling, seed)
        counts["continued"] = len(clips[:CONTINUED])
    scores[cascade.base] = base
    for stage in cascade.stages[1:]:
        scores[stage] = score_upscaling(cascade, stage, clips[:UPSCALED], sampling, seed)
    outlines = score_outlines(cascade, captions[:OUTLINED], latents[:OUTLINED], sampling, seed)
    for stage, figures in outlines.items():
        scores[stage] |= figures
    counts["outlines"] = min(OUTLINED, prompts)
    return {
        "scores": scores,
        "seed": seed,
        "steps": {stage: sampling.steps_of(stage) for stage in cascade.stages},
        "guidance": {stage: asdict(cascade.guidance(stage, sampling)) for stage in cascade.stages},
        "counts": counts,
        "machine": machine(),
    }


def choose_steps(cascade: Cascade, steps: int | Mapping[str, int] | None) -> int | dict[str, int]:
    """Return the typed sampling steps, with `default_steps` for the stages that are not named."""
    return steps if isinstance(steps, int) else {**default_steps(cascade), **(steps or {})}


def default_steps(cascade: Cascade) -> dict[str, int]:
    """Return the default number of sampling steps of each stage in an evaluation."""
    return {stage: STEPS[kind_of(stage)] for stage in cascade.stages}


def evaluate_autoencoder(
    cascade: Cascade, stage: str, source: PixelDataset, positions: Sequence[int]
) -> tuple[dict[str, Any], Tensor, list[str]]:
    """Score an autoencoder alone by reconstructions of clips of any data.

    Args:
        cascade: with the autoencoder.
        stage: its name, such as vae_gan.
        source: dataset that reads whole pictures.
        positions: indices of the clips in the source's list of videos, at least one.

    Returns:
        Three values. First, figures as from `evaluate_run`, PSNR in dB; where the source is the embedded set, also those of
        `score_autoencoder`. Second, clips [2b 3 t h w], each original before its reconstruction. Third, a line of text for each clip.

    Raises:
        DataError: a clip cannot be read.
    """
    shown: list[Tensor] = []
    lines: list[str] = []
    figures: list[float] = []
    for position in positions:
        sample = source[SampleRef("video", int(position), epoch=0, global_batch_index=0)]
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
        sizes = sorted({SIZE, *source.clip_transform.all_sizes})
        scores |= {f"shapes_{name}": value for name, value in score_autoencoder(cascade, entries, sizes).items()}
    return {"scores": {stage: scores}, "counts": {stage: len(figures)}, "machine": machine()}, torch.cat(shown), lines


def is_of_shapes(caption: str) -> bool:
    """Return whether a caption is one of the embedded set."""
    try:
        parse_caption(caption)
    except ValueError:
        return False
    return True


def read_clips(entries: Sequence[IndexEntry], size: int) -> Tensor:
    """Read clips of an index as pixels [b 3 t h w] in -1..1, with `size` rows and columns."""
    return torch.stack([to_square(read_video(entry.path, entry.frames), size) for entry in entries])


def score_autoencoder(cascade: Cascade, entries: Sequence[IndexEntry], sizes: Sequence[int]) -> dict[str, float]:
    """Score reconstructions of clips at several sizes.

    Args:
        cascade: with the autoencoder.
        entries: clips of the embedded set.
        sizes: rows and columns in pixels, ascending.

    Returns:
        Correct shares of colour, motion and shape at the smallest size, and of texture at the largest. PSNR in dB, overlap with the ideal
        shape (`iou`), steadiness in pixels and the share of high-frequency energy at each size.
    """
    captions = [entry.caption for entry in entries]
    words: dict[int, Mapping[str, float]] = {}
    figures: dict[str, float] = {}
    for size in sizes:
        clips = read_clips(entries, size)
        rebuilt = cascade.decode(cascade.encode(clips))
        words[size] = score(rebuilt, captions)
        figures[f"psnr_{size}"] = ClipMean(psnr(rebuilt, clips))
        figures |= {f"{name}_{size}": value for name, value in measure_outlines(rebuilt).items()}
        figures[f"high_frequency_{size}"] = high_frequency_share(rebuilt, clips)
    coarse = {word: words[sizes[0]][word] for word in ("colour", "motion", "shape")}
    return {**coarse, "texture": words[sizes[-1]]["texture"], **figures}


def high_frequency_share(rebuilt: Tensor, clips: Tensor) -> float:
    """Return the high-frequency energy of reconstructions divided by that of their originals, [b 3 t h w] each.

    Below 1, the reconstructions are too smooth.
    """
    return float(high_frequency_energy(rebuilt).sum() / high_frequency_energy(clips).sum())


def score_words(clips: Tensor, captions: Sequence[str]) -> dict[str, ClipMean]:
    """Return the correct shares of colour, motion, shape, all three (`all`), and shape with colour (`pair`).

    Args:
        clips: samples of the base model, pixels [b 3 t h w] in -1..1.
        captions: one for each clip.
    """
    shares = score(clips, captions)
    return {word: shares[word] for word in ("colour", "motion", "shape", "all", "pair")}


def request_captions(captions: Sequence[str], seed: int, context_latents: Mapping[str, Tensor] | None = None) -> SampleRequest:
    """Return a request for a clip of each caption; the seed of each further clip adds 1."""
    return SampleRequest(prompts=captions, seeds=[seed + i for i in range(len(captions))], context_latents=context_latents or {})


def sample_latents(cascade: Cascade, stage: str, request: SampleRequest, sampling: SamplingConfig, low_res: Tensor | None = None) -> Tensor:
    """Sample the raw latents of a stage, `BATCH` clips at once, [b c t h w].

    Args:
        cascade: with the stage.
        stage: its name.
        request: conditions, seeds and context frames.
        sampling: settings.
        low_res: raw latents of half the size, for a super-resolution stage.
    """
    number = cascade.stages.index(stage)
    made = []
    for start in range(0, len(request), BATCH):
        part = None if low_res is None else low_res[start : start + BATCH]
        made.append(cascade.sample_stage(stage, request.part(start, BATCH), sampling, part, number=number))
    return torch.cat(made)


def score_outlines(
    cascade: Cascade, captions: Sequence[str], latents: Tensor, sampling: SamplingConfig, seed: int
) -> dict[str, dict[str, ClipMean]]:
    """Measure the outlines of samples at the size of every stage, each stage fed with the samples of the one before.

    Args:
        cascade: whole.
        captions: one for each sample.
        latents: samples of the base model, raw latents [b c t h w].
        sampling: settings.
        seed: of the first sample's noise; each further sample adds 1.

    Returns:
        By stage, overlap with the ideal shape (`iou`, 0..1) and `steadiness` in pixels of that size.
    """
    found = {cascade.base: measure_outlines(cascade.decode(latents))}
    for stage in cascade.stages[1:]:
        latents = sample_latents(cascade, stage, request_captions(captions, seed), sampling, latents)
        found[stage] = measure_outlines(cascade.decode(latents))
    return found


def score_continuation(cascade: Cascade, entries: Sequence[IndexEntry], sampling: SamplingConfig, seed: int) -> dict[str, float]:
    """Score the motion of clips that the base model continues from two context frames (latents), without a caption.

    The context is the first 5 of 17 true frames; the motion is read from the 12 others. Chance is 1/6.

    Args:
        cascade: with the base model.
        entries: clips of the embedded set.
        sampling: settings.
        seed: of the first sample's noise; each further sample adds 1.

    Returns:
        Correct shares of the motion with context frames (`motion_continued`) and without (`motion_without_context`).
    """
    captions = [entry.caption for entry in entries]
    given = cascade.encode(read_clips(entries, min(cascade.pixels(cascade.base)))[:, :, : cascade.overlap])
    contexts: dict[str, dict[str, Tensor]] = {"motion_continued": {cascade.base: given}, "motion_without_context": {}}
    shares: dict[str, float] = {}
    for figure, context_latents in contexts.items():
        request = request_captions([""] * len(captions), seed, context_latents)
        made = cascade.decode(sample_latents(cascade, cascade.base, request, sampling))
        shares[figure] = score(made[:, :, cascade.overlap :], captions)["motion"]
    return shares


def score_upscaling(cascade: Cascade, stage: str, entries: Sequence[IndexEntry], sampling: SamplingConfig, seed: int) -> dict[str, float]:
    """Score a super-resolution stage on latents of true clips at the size of the stage before it.

    Beside it stands bicubic upscaling of these latents, decoded.

    Args:
        cascade: with the stage.
        stage: its name.
        entries: clips of the embedded set.
        sampling: settings.
        seed: of the first sample's noise; each further sample adds 1.

    Returns:
        Correct share of textures and PSNR in dB, of the stage and of bicubic upscaling.
    """
    below = cascade.stages[cascade.stages.index(stage) - 1]
    size, low_size = (min(cascade.pixels(name)) for name in (stage, below))
    captions = [entry.caption for entry in entries]
    clips = read_clips(entries, size)
    low_res = cascade.encode(read_clips(entries, low_size))
    sharp = cascade.decode(sample_latents(cascade, stage, request_captions(captions, seed), sampling, low_res))
    plain = bicubic(cascade.decode(low_res), size)
    return {
        "texture": score(sharp, captions)["texture"],
        "texture_bicubic": score(plain, captions)["texture"],
        "psnr": ClipMean(psnr(sharp, clips)),
        "psnr_bicubic": ClipMean(psnr(plain, clips)),
    }


def bicubic(clips: Tensor, size: int) -> Tensor:
    """Resize clips [b 3 t h w] to `size` rows and columns, frame by frame, with bicubic interpolation."""
    frames = clips.transpose(1, 2).flatten(0, 1)
    larger = F.interpolate(frames, size=(size, size), mode="bicubic").clamp(-1, 1)
    return larger.unflatten(0, (len(clips), -1)).transpose(1, 2)


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(summary, indent=2) + "\n").encode())


def render_summary(summary: Mapping[str, Any]) -> Table:
    """Return the scores of a summary as a table."""
    table = Table("stage", "figure", "value")
    for stage, figures in summary["scores"].items():
        for figure, value in figures.items():
            table.add_row(stage, figure, FORMATS.get(figure.removeprefix(PREFIX).split("_")[0], "{:.1%}").format(value))
    return table
