"""Measure samples and reconstructions of a run: sources, extractors, metrics and results put together for `walt evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.joint import JointData
from walt_pl.cli.console import print_table
from walt_pl.cli.evaluate_options import DEFAULT_CLIPS, EvaluateOptions, sample_protocol, trained_stride
from walt_pl.data.index import Index
from walt_pl.evaluation.conditions import choose_conditions
from walt_pl.evaluation.draws import draw_generated, draw_real
from walt_pl.evaluation.given_frames import check_context
from walt_pl.evaluation.image_array import KeptImages, write_npz
from walt_pl.evaluation.measuring import measure
from walt_pl.evaluation.program import describe_program
from walt_pl.evaluation.ranks import Ranks, local_device
from walt_pl.evaluation.reconstruction_source import ReconstructionSource
from walt_pl.evaluation.results import record_results
from walt_pl.evaluation.rows import MeasureOptions
from walt_pl.evaluation.run_source import RunSource, artifact_facts, compute_facts
from walt_pl.evaluation.source import ClipSource, Drawn
from walt_pl.evaluation.sources import open_source
from walt_pl.files import file_sha256, write_whole
from walt_pl.metrics.catalog import choose_metrics, find_metrics
from walt_pl.metrics.extractors.choice import ExtractorOptions, choose_extractors, find_extractors
from walt_pl.metrics.extractors.known_files import KNOWN_FILES
from walt_pl.metrics.metric import Metric
from walt_pl.metrics.protocol import EvaluationProtocol, resolve_protocol
from walt_pl.sampling.cascade import Cascade, SamplingConfig
from walt_pl.shapes.score_cards import PREFIX, make_cards, sampling_facts

__all__ = ["is_first_process", "local_device", "measure_reconstructions", "measure_samples", "record_scores"]

ROWS, IMAGES = Path("cache", "metrics"), Path("cache", "samples")
"""Folders of a run: rows of clips, and images that --npz has not written yet."""
OWN_ROWS = "video_features", "image_features"
"""Rows that one file is for where nobody says for which kind: those of the distances, of videos and of images."""


def is_first_process() -> bool:
    """Return whether this process of torchrun, or the only one, prints and writes results."""
    return Ranks.from_environment().is_first


def measure_samples(options: EvaluateOptions, cascade: Cascade, data: JointData, sampling: SamplingConfig) -> None:
    """Compare samples of a cascade's last stage with real clips, and record the figures.

    Raises:
        ValueError: the protocol does not fit the run or the data, or a file of an extractor is missing or another one.
    """
    ranks = Ranks.from_environment()
    if options.npz is not None and cascade.clip_frames > 1:
        raise ValueError(f"evaluate: --npz holds images, and {options.run} makes clips of {cascade.clip_frames} frames: leave it out")
    stride = 1 if options.preset or options.stride or cascade.clip_frames == 1 else trained_stride(_videos(data), data.clip_transform)
    preset, protocol = resolve_protocol(options.preset, **options.protocol_changes(sample_protocol(cascade, stride)))
    check_context(cascade, protocol.context_frames)
    real = open_source(data.index, protocol.split)
    if not options.preset and options.clips is None and protocol.real_clips is not None:
        found = len(draw_real(real, replace(protocol, real_clips=None, folds=1)).draws)
        count = max(1, min(DEFAULT_CLIPS, found // protocol.folds))
        protocol = replace(protocol, clips=count, real_clips=count)
    real_draws = draw_real(real, protocol)
    conditions = choose_conditions(cascade, real, real_draws, protocol)
    count = protocol.clips * protocol.folds
    source = RunSource(str(options.run), cascade, sampling, conditions, count, options.seed)
    source.check_frames(protocol.frames)
    stage = cascade.stages[-1]
    kept = KeptImages(source, options.run / IMAGES) if options.npz is not None else None
    made = kept or source
    _measure(options, stage, real, real_draws, made, draw_generated(made, protocol), protocol, preset, str(cascade.device), ranks)
    if kept is not None and options.npz is not None:
        _write_images(options.npz, kept, protocol, options.batch, ranks)


def measure_reconstructions(options: EvaluateOptions, cascade: Cascade, stage: str, data: JointData) -> None:
    """Compare reconstructions of an autoencoder with their originals, and record the figures.

    Without a preset, every held-out clip is measured once, from its first frame, at the length and size of the training.

    Raises:
        ValueError: as `measure_samples`.
    """
    clip_transform = data.clip_transform
    size = clip_transform.shape(clip_transform.size)
    stride = 1 if options.preset or options.stride else _reconstructed_stride(data)
    derived = {"frames": clip_transform.frames, "stride": stride, "size": size, "start": "first", "paired": True}
    derived |= {"real_clips": options.clips, "clips": options.clips or 1}
    _, protocol = resolve_protocol(options.preset, **options.protocol_changes(derived))
    real = open_source(data.index, protocol.split)
    draws = draw_real(real, protocol)
    # A published protocol is one of samples: its name does not count for reconstructions.
    protocol = replace(protocol, clips=len(draws.draws) // protocol.folds, paired=True)
    source = ReconstructionSource(str(options.run), cascade, real, size, stage, protocol.stride)
    _measure(options, stage, real, draws, source, draws, protocol, None, str(cascade.device), Ranks.from_environment())


def record_scores(
    options: EvaluateOptions,
    cascade: Cascade,
    index: Path,
    summary: Mapping[str, Any],
    sampling: SamplingConfig | None,
    seconds: float,
) -> None:
    """Record the figures of the embedded set's table as cards of their stages. Figures of other metrics are left to those.

    Args:
        options: of the command.
        cascade: stages that were scored.
        index: of the embedded set.
        summary: figures by stage, see `walt_pl.shapes.evaluation`.
        sampling: settings of the samples; None for an autoencoder alone, of which the figures of shapes are recorded.
        seconds: wall time.
    """
    run = str(options.run)
    generated = {"kind": "reconstructions", "run": run, "artifacts": artifact_facts(cascade), **compute_facts(cascade)}
    if sampling is not None:
        generated = sampling_facts(run, cascade, sampling, options.seed)
    described = {"path": str(index), "sha256": file_sha256(index)}
    for stage, figures in summary["scores"].items():
        named = {name: value for name, value in figures.items() if sampling is not None or name.startswith(PREFIX)}
        program = describe_program(str(cascade.device), 1)
        cards = make_cards(named, described, generated, program, round(seconds, 3))
        if cards:
            record_results(options.run, stage, cards, "shapes")


def _reconstructed_stride(data: JointData) -> int:
    """Return the stride of the training, or 1, told in a line, where the files have no common rate: a reconstruction has no speed."""
    try:
        return trained_stride(_videos(data), data.clip_transform)
    except ValueError:
        if is_first_process():
            print("evaluate: the files have different frame rates, so consecutive frames are reconstructed; --stride N takes every Nth")
        return 1


def _videos(data: JointData) -> Any:
    index = Index(data.index, "val") if "val" in Index(data.index, "train").splits else Index(data.index, "train")
    return index.videos


def _measure(
    options: EvaluateOptions,
    stage: str,
    real: ClipSource,
    real_draws: Drawn,
    made: ClipSource,
    made_draws: Drawn,
    protocol: EvaluationProtocol,
    preset: str | None,
    device: str,
    ranks: Ranks,
) -> None:
    """Choose metrics, measure, print the table and record the figures."""
    typed = ExtractorOptions(options.extractor, options.extractor_kind, options.extractor_sha256)
    of_images = protocol.frames == 1
    metrics = choose_metrics(options.metric) if options.metric else _default_metrics(typed, of_images, protocol.paired)
    if ranks.is_first and not options.metric:
        print_table(_describe_missing(metrics, of_images, protocol.paired))
    if not metrics:
        return
    extractors = choose_extractors(metrics, typed, protocol, of_images, device)
    rows = options.run / ROWS
    settings = MeasureOptions(rows, rows, options.batch, ranks, device)
    cards = measure(metrics, real, made, real_draws, made_draws, protocol, preset, extractors, settings)
    if ranks.is_first:
        print_table(record_results(options.run, stage, cards, preset or "own"))


def _default_metrics(typed: ExtractorOptions, of_images: bool, paired: bool) -> list[type[Metric]]:
    """Return the metrics of the given files, and those of pairs that need no file."""
    usable = set()
    for kind, extractor in find_extractors().items():
        if extractor.of_images not in (None, of_images) or (extractor.of_pairs and not paired):
            continue
        given = kind in typed.files if isinstance(typed.files, dict) else kind == typed.kind and typed.files is not None
        if given or not extractor.takes_file:
            usable |= set(extractor.gives)
    if isinstance(typed.files, str) and typed.kind is None:
        usable.add(OWN_ROWS[of_images])
    return [metric for metric in find_metrics().values() if metric.needs in usable]


def _describe_missing(metrics: Sequence[type[Metric]], of_images: bool, paired: bool) -> str:
    """Return a sentence with the further metrics and the files that they need."""
    chosen = {metric.name for metric in metrics}
    parts = []
    for kind, extractor in find_extractors().items():
        if not extractor.takes_file or not extractor.is_default or extractor.of_images not in (None, of_images):
            continue
        names = [metric.name for metric in find_metrics().values() if metric.needs in extractor.gives and metric.name not in chosen]
        if names and (paired or not extractor.of_pairs):
            parts.append(f"{', '.join(names)} with {kind}={KNOWN_FILES[kind].name}")
    if not parts:
        return ""
    lead = "more metrics" if metrics else "no metric was chosen; there are"
    return f'{lead}: {"; ".join(parts)} (--extractor \'{{"KIND": "FILE"}}\', docs/EVALUATION.md)'


def _write_images(path: Path, kept: KeptImages, protocol: EvaluationProtocol, batch: int, ranks: Ranks) -> None:
    """Make the images that are not there yet, each process its own blocks, and write the array."""
    draws = draw_generated(kept, protocol).draws
    blocks = [draws[block * batch : (block + 1) * batch] for block in ranks.share(range(-(-len(draws) // batch)))]
    for _ in kept.read_blocks(blocks, 1, 1, protocol.size):
        pass  # each is on disk now
    ranks.barrier()
    if ranks.is_first:
        write_npz(path, kept, draws, batch, protocol.size)
        kept.remove()
        write_whole(path.with_name(f"{path.name}.json"), f"{json.dumps({'images': len(draws), **kept.facts()}, indent=2)}\n".encode())
        print(f"{len(draws):,} images: {path}, and {path.name}.json beside it: how they were made")
    ranks.barrier()
