"""Score the stages of a run: ``python -m walt_pl evaluate``."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from datamodules.joint import JointData
from walt_pl.cli.console import print_table
from walt_pl.cli.evaluate_options import EvaluateOptions
from walt_pl.cli.function_command import call
from walt_pl.data.frame_rate import DEFAULT_FPS, trained_rate
from walt_pl.data.index import Index
from walt_pl.data.transforms import PixelDataset
from walt_pl.files import file_sha256
from walt_pl.media.contact_sheet import captioned_grid, contact_sheet
from walt_pl.media.writing import write_gif, write_image
from walt_pl.metrics.protocol import Resize
from walt_pl.runs.card import TRAIN, read_card
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.stage_names import kind_of
from walt_pl.runs.stored_config import clip_arguments, stored_index
from walt_pl.sampling.cascade import Cascade, SamplingConfig
from walt_pl.sampling.defaults import stage_guidance
from walt_pl.shapes.evaluation import RECONSTRUCTED, choose_steps, evaluate_autoencoder, is_of_shapes, render_summary, score_cascade
from walt_pl.untrusted import MAX_YAML_BYTES, read_bytes

SHOWN = 8
"""Number of clips in the picture of an autoencoder's reconstructions."""


def evaluate(
    run: str,
    stages: str | None = None,
    metric: str | None = None,
    preset: str | None = None,
    extractor: str | dict[str, str] | None = None,
    extractor_kind: str | None = None,
    extractor_sha256: str | dict[str, str] | None = None,
    index: str | None = None,
    split: str | None = None,
    clips: int | None = None,
    frames: int | None = None,
    stride: int | None = None,
    folds: int | None = None,
    resize: Resize | None = None,
    seed: int = 0,
    steps: int | dict[str, int] | None = None,
    guidance: float | dict[str, float] | None = None,
    prompts: int = 256,
    unseen: int = 64,
    batch: int = 16,
    device: str | None = None,
    dtype: str | None = None,
    npz: str | None = None,
    allow_stale: bool = False,
    verify: bool = False,
) -> None:
    """Score the stages of a run on the data of its training, and print tables.

    An autoencoder alone is scored by its reconstructions of held-out clips: PSNR and SSIM, and LPIPS and FVD where their files are given.
    The first clips are shown beside their reconstructions in reconstructions.png and .gif in the run's folder. Samples of the last stage
    are compared with held-out clips by the metrics whose files are given. Where no option of a metric is given, a run with frame
    prediction is compared with the true continuation of held-out videos, beside two baselines: a table, prediction.png and
    prediction.json. A run on the embedded set is scored by its analytic scorer, too. A command that was stopped goes on where it was.
    Figures lie in RUN/metrics (those of frame prediction in RUN/prediction.json), in TensorBoard and in the card of the artifact.

    Args:
        run: folder of the run.
        stages: stages to score, e.g. base; all finished ones when not given.
        metric: metrics, e.g. fvd,kvd; when not given those that the given files allow.
        preset: published protocol, e.g. magvit_ucf (docs/EVALUATION.md); frames, size and stride of the run when not given.
        extractor: file of the extractor, or files by kind, e.g. '{"i3d": "i3d_torchscript.pt", "lpips": "vgg16-397923af.pth"}'.
        extractor_kind: kind of video extractor, e.g. videomae in place of i3d.
        extractor_sha256: hash of a file that is not the known one, or hashes by kind.
        index: index of the real clips; that of the run's training when not given.
        split: split of the real clips; val without a preset.
        clips: clips of each fold and side; without a preset as many as the split has, at most 2048. Of frame prediction
            the most held-out videos, 256 when not given.
        frames: frames of a clip.
        stride: distance between frames of a real clip, in frames of the file.
        folds: folds, each with other clips.
        resize: resize to the input of the video extractor.
        seed: seed of the first sample's noise; each further sample adds 1.
        steps: sampling steps, for every stage or by stage; 50 when not given, and those of the demo for the embedded set's table.
        guidance: scale of classifier-free guidance, for every stage or by stage; that of the artifact when not given.
        prompts: embedded set: number of validation captions to score the base model on.
        unseen: embedded set: number of captions with a shape and colour that no training video has together.
        batch: number of clips sampled at a time.
        device: device to run on; a GPU if there is one when not given.
        dtype: float32, bfloat16 or float16, for the networks' arithmetic; the fastest of the device when not given.
        npz: file for the samples of an image model, as ADM's evaluator reads them.
        allow_stale: score even if a parent was trained again.
        verify: also read weights of more than 1 GB to compare their hash; smaller ones are always compared.
    """
    if prompts < 1 or unseen < 1:
        raise ValueError(f"evaluate: --prompts and --unseen must be at least 1, got {prompts} and {unseen}")
    options = EvaluateOptions(
        Path(run), metric, preset, extractor, extractor_kind, extractor_sha256, split, clips, frames, stride, folds, resize, seed, batch,
        Path(npz) if npz else None,
    )  # fmt: skip
    arithmetic = _read_dtype(dtype)
    wanted = stages.split(",") if stages else None
    scored = wanted or [name for name, stage in Manifest.open(run).stages().items() if stage.artifact is not None]
    if scored and all(kind_of(stage) == "vae" for stage in scored):
        for option, value in (("npz", npz), ("steps", steps), ("guidance", guidance)):
            if value is not None:
                raise ValueError(f"evaluate: --{option} is of samples, and {run} has an autoencoder alone: leave it out")
        _evaluate_autoencoder(options, scored[0], index, allow_stale, verify, device, arithmetic)
        return
    # Imported here: help, and messages about a run, need none of the libraries of the metrics.
    from walt_pl.cli.evaluate_prediction import measure_prediction
    from walt_pl.cli.evaluate_run import local_device, measure_samples

    cascade = Cascade.open(run, wanted, allow_stale, local_device(device), arithmetic, verify=verify)
    for name, given in (("guidance", guidance), ("steps", steps)):
        if isinstance(given, dict) and (unknown := set(given) - set(cascade.stages)):
            raise ValueError(f"{name} names {sorted(unknown)}, but the stages that run are {cascade.stages}")
    data = _trained_on(cascade.artifacts[cascade.stages[-1]].path / TRAIN, index)
    guides = stage_guidance(cascade, guidance, None, None)
    tabled = metric is None and npz is None and _is_of_shapes(cascade, data)
    protocol = (preset, extractor_kind, extractor_sha256, split, clips, frames, stride, folds, resize)
    if tabled and extractor is None and any(value is not None for value in protocol):
        raise ValueError(
            "evaluate: a preset, a kind or hash of an extractor, and --split, --clips, --frames, --stride, --folds and --resize are of "
            "metrics, not of the embedded set's table: add --metric shapes, or --extractor FILE, or leave them out"
        )
    if tabled:
        _score_shapes(options, cascade, data, prompts, unseen, SamplingConfig(choose_steps(cascade, steps), guidance=guides))
    of_metrics = (metric, npz, preset, extractor, extractor_kind, extractor_sha256, frames, stride, folds, resize)
    if not tabled and _measures_prediction(cascade, of_metrics):
        measure_prediction(options, cascade, data, SamplingConfig(50 if steps is None else steps, guidance=guides))
    elif not tabled or extractor is not None:
        measure_samples(options, cascade, data, SamplingConfig(50 if steps is None else steps, guidance=guides))


def _read_dtype(name: str | None) -> torch.dtype | None:
    """Return a dtype by its name.

    Raises:
        ValueError: it is not one of the three.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is not None and name not in known:
        raise ValueError(f"evaluate: --dtype {name}: wanted {', '.join(known)}")
    return known[name] if name else None


def _measures_prediction(cascade: Cascade, options: Sequence[Any]) -> bool:
    """Return whether a run is measured by its frame prediction: it has some, and no option of a metric or its protocol was typed."""
    return bool(cascade.samplers[cascade.base].denoiser.config.frame_prediction) and all(option is None for option in options)


def _is_of_shapes(cascade: Cascade, data: JointData) -> bool:
    """Return whether a model makes clips from captions of the embedded set."""
    if not cascade.samplers[cascade.base].denoiser.config.text_width:
        return False
    try:
        captions = [entry.caption for entry in Index(data.index, "val").videos[:RECONSTRUCTED]]
    except ValueError:  # no split of this name: the protocol may name another
        return False
    return bool(captions) and all(map(is_of_shapes, captions))


def _score_shapes(options: EvaluateOptions, cascade: Cascade, data: JointData, prompts: int, unseen: int, sampling: SamplingConfig) -> None:
    """Print the table of the embedded set, and record its figures. One process does it."""
    from walt_pl.cli.evaluate_run import is_first_process, record_scores

    if not is_first_process():
        return
    began = time.monotonic()
    summary = score_cascade(cascade, options.run, Path(data.index), prompts, unseen, options.seed, sampling)
    print_table(render_summary(summary))
    record_scores(options, cascade, Path(data.index), summary, sampling, time.monotonic() - began)


def _evaluate_autoencoder(
    options: EvaluateOptions,
    stage: str,
    index: str | None,
    allow_stale: bool,
    verify: bool,
    device: str | None,
    dtype: torch.dtype | None,
) -> None:
    """Write figures and pictures of an autoencoder on uncropped validation clips of its training, then measure its reconstructions."""
    from walt_pl.cli.evaluate_run import is_first_process, local_device, measure_reconstructions, record_scores

    began = time.monotonic()
    folder = Manifest.open(options.run).usable([stage], allow_stale)[stage]
    data = _trained_on(folder / TRAIN, index)
    cascade = Cascade({"vae": folder}, local_device(device), dtype, verify=verify)
    if options.metric is None and is_first_process():
        summary = _show_reconstructions(options.run, cascade, stage, folder, data)
        record_scores(options, cascade, Path(data.index), summary, None, time.monotonic() - began)
    measure_reconstructions(options, cascade, stage, data)


def _show_reconstructions(run: Path, cascade: Cascade, stage: str, folder: Path, data: JointData) -> dict[str, Any]:
    """Print the table of an autoencoder, write its pictures, and return its figures."""
    clip_transform = replace(data.clip_transform, crop=None, sizes=(), flip=False)
    videos = Index(data.index, "val").videos
    source = PixelDataset(videos, (), clip_transform)
    selected = data.selection("val").get("video")
    if selected is None:
        raise ValueError(f"{folder}: trained on images alone, and videos are scored")
    summary, clips, lines = evaluate_autoencoder(cascade, stage, source, list(selected.positions()))
    print_table(render_summary(summary))
    clips, lines = clips[: 2 * SHOWN], lines[: 2 * SHOWN]
    out = run / "reconstructions.png"
    write_image(out, contact_sheet(clips, lines))
    fps = trained_rate(videos, selected.positions(), clip_transform) or DEFAULT_FPS
    write_gif(out.with_suffix(".gif"), captioned_grid(clips, lines, columns=2), fps, lines)
    print(f"{summary['counts'][stage]} held-out clips; look at {out}, {out.with_suffix('.gif')}")
    return summary


def _trained_on(train_config: Path, index: str | None) -> JointData:
    """Return the data module of a training. Only numbers of its configuration are used, and its index unless another is named.

    Raises:
        ValueError: the index does not exist on this machine, or is not the one that the artifact's card names by its hash.
    """
    text, where = read_bytes(train_config, MAX_YAML_BYTES).decode(errors="replace"), str(train_config)
    found = Path(index or stored_index(text, where))
    if not found.is_file():
        raise ValueError(
            f"evaluate: there is no index {found}{'' if index else f', which {where} names'}; name it with --index FILE.parquet"
        )
    if index is None and file_sha256(found) != read_card(train_config.parent)["index"].get("sha256"):
        raise ValueError(
            f"evaluate: {found}, which {where} names, is not the index that the card names by its hash; if it is the right one, name it "
            f"with --index {found}"
        )
    return JointData(index=str(found), **clip_arguments(text, where))


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt evaluate`.

    Raises:
        ValueError: the run is named by the option of former versions, or an option is wrong.
    """
    if any(word.partition("=")[0] == "--run" for word in words):
        raise ValueError("evaluate: the run is typed without --run now, such as: walt evaluate runs/shapes")
    call(evaluate, words)
