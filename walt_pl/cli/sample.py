"""Sample videos with a run: ``python -m walt_pl sample``."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from walt_pl.cli.function_command import call
from walt_pl.cli.sample_files import check_out, write_clips
from walt_pl.cli.sample_layout import LayoutName, PlannedClip, check_layout, layout_settings, plan_clips, write_layout
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.reading import read_image, read_last_frames
from walt_pl.plain_text import clean_caption
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig
from walt_pl.sampling.defaults import GuidanceName, frame_count, sampling_fps, stage_guidance
from walt_pl.sampling.known_background import trained_background
from walt_pl.sampling.known_conditions import class_number, class_title, warn_of_unseen_words
from walt_pl.sampling.overlapped_decoding import sample_videos
from walt_pl.text.prompt_file import prompt_lines
from walt_pl.untrusted import UntrustedError

DtypeName = Literal["float32", "bfloat16", "float16"]


def sample(
    run: str = "runs/shapes",
    prompt: str | None = None,
    prompts: str | None = None,
    label: int | str | None = None,
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
    out: str = ".",
    layout: LayoutName = "plain",
    overwrite: bool = False,
    fps: float | None = None,
    batch: int = 8,
    device: str | None = None,
    dtype: DtypeName | None = None,
    chunk: int | None = None,
    tile: int | None = None,
    allow_stale: bool = False,
    text_encoder: str | None = None,
    verify: bool = False,
) -> None:
    """Sample videos: an mp4 for each prompt, a GIF beside it, and a contact sheet of all.

    Args:
        run: folder of the run.
        prompt: text of the clip.
        prompts: file with a prompt a line, for many clips; their files are numbered clip_000.mp4, clip_001.mp4, ... Lines that begin with
            # are left out.
        label: class, for class-conditional models: its number, or its name in the training data.
        image: first picture of the clip, for models trained with frame prediction; a prompt may be left out. The background of the
            training (data.background) shows through where it is transparent.
        continue_: clip whose last frames begin the new clip (5 frames if the autoencoder's temporal factor is 4). They are read at the
            frame rate of the model's training.
        crop: crop the centre of an image or clip of another aspect.
        seconds: length in seconds, at the rate of the files. Beyond one clip, each further segment continues from the end of the one
            before. One clip when not given.
        negative_prompt: text that guidance leads away from; the unconditional prediction takes its place when empty.
        seed: seed of the noise; each further prompt of a file uses the next seed.
        steps: sampling steps, for every stage or by stage, e.g. '{"base": 50, "sr1": 8}'.
        eta: 0 is deterministic DDIM, 1 ancestral sampling.
        guidance: scale of classifier-free guidance, for every stage or by stage, e.g. '{"base": 3, "sr1": 1}'. If the scale, the shape or
            the rescale is not given, each stage uses that of its artifact (model.diffusion.guidance in its training).
        guidance_shape: constant, or power-cosine (none at pure noise).
        guidance_rescale: phi, the share of the prediction's spread that is restored.
        stages: stages to run, e.g. base or base,sr1; all finished ones when not given.
        out: path of the mp4, which must not exist yet; or a folder, in which the first free one of clip.mp4, clip-2.mp4, ... is written.
            The GIF and the contact sheet have the same name. End the name of a new folder with /.
        layout: plain, or vbench: the folder `out` gets five clips of each prompt of a file, named as VBench reads them (docs/VBENCH.md),
            without GIF and contact sheet. Clips that exist already are not made again.
        overwrite: replace the files that `out` names.
        fps: frames per second of the files, in which --seconds counts; the frame rate of the model's training when not given.
        batch: number of clips sampled at a time.
        device: device to run on; a GPU if there is one when not given.
        dtype: dtype of the networks' arithmetic; the fastest of the device when not given.
        chunk: number of latent frames decoded at a time.
        tile: side of the tiles decoded at a time, in latent cells.
        allow_stale: sample even if a parent was trained again.
        text_encoder: path of the run's pretrained text encoder on this machine, if it differs from that in training.
        verify: also read weights of more than 1 GB to compare their hash; smaller ones are always compared.
    """
    _check_sample(image, continue_, seconds, fps)
    texts, labels = _read_prompts(prompt, prompts, label, optional=image is not None or continue_ is not None)
    if layout == "vbench":
        others = (("--prompt", prompt), ("--label", label), ("--image", image), ("--continue", continue_))
        check_layout(out, [name for name, value in others if value is not None])
    else:
        check_out(out, overwrite)
    _check_compute(device, batch)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wanted = stages.split(",") if isinstance(stages, str) else stages
    arithmetic = getattr(torch, dtype) if dtype else None
    cascade = Cascade.open(run, wanted, allow_stale, device, arithmetic, text_encoder, verify)
    for name, given in (("guidance", guidance), ("steps", steps)):
        if isinstance(given, dict) and (unknown := set(given) - set(cascade.stages)):
            raise ValueError(f"{name} names {sorted(unknown)}, but the stages that run are {cascade.stages}")
    negative_prompt = clean_caption(negative_prompt)
    sampling = SamplingConfig(steps, eta, stage_guidance(cascade, guidance, guidance_shape, guidance_rescale), chunk, tile)
    numbers = [class_number(cascade, given) for given in labels]
    warn_of_unseen_words(cascade, [*texts, negative_prompt])
    fps = fps or sampling_fps(cascade)
    frames = cascade.clip_frames if seconds is None else frame_count(seconds, fps)
    if layout == "vbench" and prompts is not None:
        planned = plan_clips(Path(out), _prompt_lines(prompts), seed)
        settings = layout_settings(cascade, sampling, negative_prompt, frames, fps)

        def make(missing: Sequence[PlannedClip]) -> Iterator[torch.Tensor]:
            request = SampleRequest([clip.prompt for clip in missing], (), negative_prompt, [clip.seed for clip in missing])
            return make_clips(cascade, request, sampling, batch, frames)

        print(write_layout(planned, settings, overwrite, make))
        return
    seeds = [seed + i for i in range(max(len(texts), len(numbers)))]
    context_latents = {stage: z.expand(len(seeds), -1, -1, -1, -1) for stage, z in _encode_context(cascade, image, continue_, crop).items()}
    request = SampleRequest(texts, numbers, negative_prompt, seeds, context_latents)
    clips = make_clips(cascade, request, sampling, batch, frames)
    print(write_clips(out, clips, texts or [class_title(cascade, number) for number in numbers], fps, overwrite))


def _check_sample(image: str | None, clip: str | None, seconds: float | None, fps: float | None) -> None:
    """Check the options that need no loaded model.

    Raises:
        ValueError: an option is out of range, or two options exclude each other.
    """
    if image is not None and clip is not None:
        raise ValueError("sample: a clip begins with an image or with the end of another; give one of --image and --continue")
    for name, path in (("--image", image), ("--continue", clip)):
        if path is not None and not Path(path).is_file():
            raise ValueError(f"sample: {name} {path}: there is no such file")
    for name, value in (("--fps", fps), ("--seconds", seconds)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"sample: {name} must be above 0, got {value:g}")


def _check_compute(device: str | None, batch: int) -> None:
    """Check --device and --batch before a model is loaded.

    Raises:
        ValueError: torch knows no such device, this machine has none, or the batch is empty.
    """
    if batch < 1:
        raise ValueError(f"sample: --batch must be at least 1, got {batch}")
    try:
        kind = torch.device(device or "cpu").type
    except RuntimeError as error:
        raise ValueError(f"sample: --device {device}: wanted cpu, cuda, cuda:1 or mps") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"sample: --device {device}: found no GPU on this machine; leave the option out to use the CPU")


def _encode_context(cascade: Cascade, image: str | None, clip: str | None, crop: bool) -> dict[str, torch.Tensor]:
    """Return the latents of the context frames from --image or --continue, by stage [1 c 1|2 h w].

    Raises:
        ValueError: the clip has too few frames.
    """
    if image is not None:
        return cascade.encode_context(read_image(Path(image), DecodeOptions(background=trained_background(cascade))), image, crop)
    if clip is None:
        return {}
    pictures = read_last_frames(Path(clip), cascade.overlap, cascade.fps, trained_background(cascade))
    if len(pictures) < cascade.overlap:
        rate = "" if cascade.fps is None else f" at {cascade.fps:g} a second"
        raise ValueError(f"{clip}: found {len(pictures)} frames{rate}, wanted at least the {cascade.overlap} that a clip is continued from")
    return cascade.encode_context(pictures, clip, crop)


def _read_prompts(prompt: str | None, prompts: str | None, label: int | str | None, optional: bool) -> tuple[list[str], list[int | str]]:
    """Return prompts or labels; one empty prompt if both are absent and `optional` is true.

    Raises:
        ValueError: not exactly one of them is given, or the file of prompts is empty or not UTF-8.
    """
    given = [name for name, value in (("--prompt", prompt), ("--prompts", prompts), ("--label", label)) if value is not None]
    if not given and optional:
        return [""], []
    if len(given) != 1:
        raise ValueError(f"sample: give one of --prompt, --prompts and --label, got {' and '.join(given) or 'none'}")
    if label is not None:
        return [], [label]
    if prompts is None:
        return [clean_caption(prompt or "")], []
    return [clean_caption(line) for line in _prompt_lines(prompts)], []


def _prompt_lines(prompts: str) -> list[str]:
    """Return the prompts of a file, see `walt_pl.text.prompt_file.prompt_lines`.

    Raises:
        ValueError: there is none, or the file is not UTF-8.
    """
    try:
        return prompt_lines(Path(prompts).read_bytes())
    except UntrustedError as error:
        raise ValueError(f"sample: {prompts}: {error}") from error


def make_clips(
    cascade: Cascade, request: SampleRequest, sampling: SamplingConfig, batch: int, frames: int | None = None
) -> Iterator[torch.Tensor]:
    """Sample and decode a request in batches with a progress bar.

    Args:
        cascade: stages to run.
        request: prompts or labels, seeds and context of all clips.
        sampling: settings of the sampler.
        batch: number of clips sampled at a time.
        frames: length in frames; one clip when not given.

    Yields:
        Pixels [b 3 t h w] of the last stage, batch by batch.
    """
    frames = frames or cascade.clip_frames
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    parts = [request.part(start, batch) for start in range(0, len(request), batch)]
    with Progress(*columns) as progress:
        bar = progress.add_task("sampling", total=cascade.num_evaluations(sampling, frames) * len(parts))
        yield from sample_videos(cascade, parts, len(request), sampling, frames, lambda: progress.advance(bar))


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt sample`."""
    call(sample, words)
