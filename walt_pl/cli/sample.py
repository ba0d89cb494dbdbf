"""Make videos with a run: ``python -m walt_pl sample``."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from walt_pl.media.contact_sheet import captioned_grid, contact_sheet, to_uint8
from walt_pl.media.reading import read_image, read_last_frames
from walt_pl.media.writing import write_gif, write_image, write_video
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig
from walt_pl.sampling.defaults import GuidanceName, frame_count, sampling_fps, stage_guidance

DtypeName = Literal["float32", "bfloat16", "float16"]


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
            rescale is not given, each stage takes that of its artifact (model.diffusion.guidance in its training).
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
    sampling = SamplingConfig(steps, eta, stage_guidance(cascade, guidance, guidance_shape, guidance_rescale), chunk, tile)
    seeds = [seed + i for i in range(max(len(texts), len(labels)))]
    fps = fps or sampling_fps(cascade)
    frames = cascade.clip_frames if seconds is None else frame_count(seconds, fps)
    context_latents = {stage: z.expand(len(seeds), -1, -1, -1, -1) for stage, z in _past(cascade, image, continue_, crop).items()}
    request = SampleRequest(texts, labels, negative_prompt, seeds, context_latents)
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
        return cascade.encode_context(read_image(Path(image)), image, crop)
    if clip is None:
        return {}
    pictures = read_last_frames(Path(clip), cascade.overlap, cascade.fps)
    if len(pictures) < cascade.overlap:
        rate = "" if cascade.fps is None else f" at {cascade.fps:g} a second"
        raise ValueError(f"{clip}: found {len(pictures)} frames{rate}, wanted at least the {cascade.overlap} that a clip is continued from")
    return cascade.encode_context(pictures, clip, crop)


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


def make_clips(
    cascade: Cascade, request: SampleRequest, sampling: SamplingConfig, batch: int, frames: int | None = None
) -> Iterator[torch.Tensor]:
    """Sample and decode a request in batches with a progress bar: pixels [b 3 t h w] of the last stage, batch by batch.

    ``frames`` is the length; one clip when not given.
    """
    frames = frames or cascade.clip_frames
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    parts = [request.part(start, batch) for start in range(0, len(request), batch)]
    with Progress(*columns) as progress:
        bar = progress.add_task("sampling", total=cascade.num_evaluations(sampling, frames) * len(parts))
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
    write_image(out.with_suffix(".png"), contact_sheet(clips, captions))
    print(f"{names[0]}{f' .. {names[-1].name}' if len(names) > 1 else ''}, {out.with_suffix('.gif')}, {out.with_suffix('.png')}")
