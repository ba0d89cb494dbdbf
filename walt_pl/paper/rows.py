"""Table of the rows of docs/RESULTS.md."""

from __future__ import annotations

from dataclasses import replace

from walt_pl.paper.row import Row, Training, find_row

DEFAULT = "default"
"""Row that the ablations are compared with."""
BUDGET = "ablations/budget.yaml"
"""Steps of all ablations."""


# ---- Tasks -------------------------------------------------------------------------------------------------------------

GUIDANCE = "guidance"
"""Row whose base super-resolution and finetuning take over."""


def _task(
    name: str,
    text: str,
    training: Training,
    measure: str,
    *,
    paper: str,
    about: str,
    adopts: tuple[tuple[str, str], ...] = (),
    wide: bool = False,
) -> Row:
    """Return the row of a task, see `Row`. It has one seed: a task takes minutes, and the intervals of its figures come from its cases."""
    return Row(name, "tasks", text, (training,), measure, seeds=(0,), paper=paper, about=about, adopts=adopts, wide=wide)


TASKS: tuple[Row, ...] = (
    _task(
        "class_video",
        "A clip from a class",
        Training("base_class_video"),
        "class_video",
        paper="UCF-101, FVD 46 (L) and 36 (XL)",
        about=(
            "A class is a shape and a colour; pair is both. Motion distance is that to equally many of all motions. It is 0.83 for one "
            "motion alone, and 0.04 on average for 600 uniform draws."
        ),
    ),
    _task(
        "class_images",
        "An image from a class",
        Training("base_class_images"),
        "class_images",
        paper="ImageNet, FID 2.56",
        about="A class is a shape and a colour; pair is both.",
    ),
    _task(
        "frame_prediction",
        "12 frames from 5",
        Training("base_frame_prediction"),
        "frame_prediction",
        paper="Kinetics-600, FVD 3.3",
        about=(
            "Figures are those of the new frames. Position error is the distance from the true clip's path. Position error still is that "
            "of an object that stays where it is."
        ),
    ),
    _task(
        "image_to_video",
        "A clip from its first frame and a caption",
        Training("base_image_to_video"),
        "image_to_video",
        paper="samples, without a figure",
        about="First frame psnr compares the first frame with the given one. That of the autoencoder is its reconstruction's.",
    ),
    _task(
        "long_video",
        "Videos of 2 and 4 segments",
        Training("base_long_video"),
        "long_video",
        paper="samples, without a figure",
        about=(
            "Seam N is the distance of the object's centre, in the first new frame, from the line of the 5 frames before. Seam size N is "
            "that of its radius. Inside is the distance where there is no seam. Numbers from 29 are frames of the video, and motion 2 is "
            "that of the second segment."
        ),
    ),
    _task(
        GUIDANCE,
        "Guidance of five scales",
        Training("base"),
        "guidance",
        paper="guidance is used for all samples",
        about="Spread is 1 where the samples of a prompt are as various as real clips, and 0 where they are alike.",
    ),
    _task(
        "super_resolution",
        "Super-resolution of the base's own samples",
        Training("sr1"),
        "super_resolution",
        adopts=((GUIDANCE, "base"),),
        paper="no figure of one stage",
        about="It enlarges samples of the base of the guidance row, whose overlap is iou base. The other figures are at 64 pixels.",
    ),
    _task(
        "super_resolution_no_noise_aug",
        "Super-resolution without noise augmentation",
        Training("sr1", ("no_noise_augmentation.yaml",)),
        "super_resolution",
        adopts=((GUIDANCE, "base"),),
        paper="no comparison",
        about="It enlarges the samples of the row before.",
    ),
    _task(
        "aspect",
        "Another aspect ratio, finetuned",
        Training("base_9x16", init="base"),
        "aspect_finetuned",
        adopts=((GUIDANCE, "base"),),
        wide=True,
        paper="finetuned to 128 x 224, without a figure",
        about="The square base is trained further on clips of 32 rows x 56 columns.",
    ),
    _task(
        "aspect_scratch",
        "Another aspect ratio, from random weights",
        Training("base_9x16_scratch"),
        "aspect_scratch",
        wide=True,
        paper="no comparison",
        about="It has as many steps as the finetuning of the row before.",
    ),
)


# ---- Ablations: Table 3 of the paper ------------------------------------------------------------------------------------


COMPARED = ("all", "unseen_pairs", "iou", "loss")
SAMPLES = ("all", "unseen_pairs", "iou")
"""Figures of rows whose loss has another meaning: other latents, another schedule, or a first pass without an estimate."""


def _ablation(
    name: str, text: str, paper: str, expected: int, first: tuple[Training, ...] = (), figures: tuple[str, ...] = COMPARED
) -> Row:
    """Return the row of an overlay of experiments/EXP/ablations, laid over the base.

    Args:
        name: name of the overlay and of the row.
        text: short description.
        paper: figures of the paper, FVD on UCF-101 unless stated; that of the default comes first.
        expected: see `Row`.
        first: trainings before the base.
        figures: see `Row`.
    """
    base = Training("base", (BUDGET, f"ablations/{name}.yaml"))
    return Row(name, "ablations", text, (*first, base), "prompts", paper=paper, expected=expected, against=DEFAULT, figures=figures)


# The base differs by seed; one autoencoder serves them all, as the autoencoder of the command serves the other rows.
_FOUR_CHANNELS = Training("vae", ("ablations/vae_latent_channels_4.yaml",), shared=True)

ABLATIONS = (
    Row(
        DEFAULT,
        "ablations",
        "patch 2, windows of the whole clip, LoRA 2, 8 channels, images and videos",
        (Training("base", (BUDGET,)),),
        "prompts",
    ),
    _ablation("patch_1", "patch 1", "patch 2: 134.4, patch 1: 60.7", 1),
    _ablation("window_2x2", "STW of 5 x 2 x 2 tokens", "full 59.9, a 16th of it 56.9", 0),
    _ablation("self_conditioning", "self-conditioning with p = 0.9", "p 0: 109.9, p 0.9: 61.4", 1, figures=SAMPLES),
    _ablation("separate_adaln", "AdaLN of each layer's own", "LoRA 2: 60.7, LoRA 256: 52.5", 1),
    _ablation("no_qk_norm", "no qk-norm", "60.7, without 59.0", 0),
    _ablation("no_latent_normalisation", "latents not normalised", "60.7, without 67.9", -1, figures=SAMPLES),
    _ablation("no_zero_snr", "no zero terminal SNR", "60.7, without 91.0", -1, figures=SAMPLES),
    _ablation("latent_channels_4", "4 latent channels", "8: 75.4, 4: 86.4", -1, (_FOUR_CHANNELS,), SAMPLES),
    _ablation("video_only", "videos alone", "zero-shot UCF-101: joint 344.5, video alone 598.8", -1),
)


# ---- Equal time ---------------------------------------------------------------------------------------------------------


def _in_equal_time(row: Row) -> Row:
    """Return the row of an ablation whose training takes the time of the default's, instead of its steps."""
    (base,) = row.trainings
    training = Training("base", base.overlays, time_of=DEFAULT, pace_of=row.name)
    return replace(row, name=f"{row.name}_equal_time", table="equal time", trainings=(training,))


EQUAL_TIME = tuple(_in_equal_time(row) for row in ABLATIONS if row.name in ("patch_1", "window_2x2"))


# ---- Causes -------------------------------------------------------------------------------------------------------------


def _cause(name: str, text: str, trainings: tuple[Training, ...] = (), adopts: tuple[tuple[str, str], ...] = ()) -> Row:
    """Return a row that looks for the cause of a surprising ablation: a training with one seed, or the base of a row above."""
    return Row(f"cause_{name}", "causes", text, trainings, "text_use", seeds=(0,), adopts=adopts)


def _overlays(name: str) -> tuple[str, ...]:
    """Return the overlays of an ablation."""
    return find_row(name, ABLATIONS).trainings[-1].overlays


LONGER = 800
"""Steps of the longer trainings, twice those of `BUDGET`."""
# The longest training comes first: it runs beside all others.
CAUSES = (
    *(
        _cause(f"{name}_longer", f"{text}, {LONGER} steps", (Training("base", _overlays(name), steps=LONGER),))
        for name, text in (("patch_1", "patch 1"), ("no_qk_norm", "no qk-norm"))
    ),
    # That training has no other difference from the default.
    _cause(f"{DEFAULT}_longer", f"the default, {LONGER} steps", adopts=((GUIDANCE, "base"),)),
    *(
        _cause(f"{name}_adamw", f"{text}, 400 steps of AdamW", (Training("base", (*_overlays(name), "causes/adamw.yaml")),))
        for name, text in (
            (DEFAULT, "the default"),
            ("self_conditioning", "self-conditioning"),
            ("separate_adaln", "AdaLN of each layer's own"),
        )
    ),
    *(
        _cause(name, f"{text}, 400 steps", adopts=((name, "base"),))
        for name, text in (
            (DEFAULT, "the default"),
            ("patch_1", "patch 1"),
            ("no_qk_norm", "no qk-norm"),
            ("self_conditioning", "self-conditioning"),
            ("separate_adaln", "AdaLN of each layer's own"),
        )
    ),
)

ROWS: tuple[Row, ...] = (*TASKS, *ABLATIONS, *EQUAL_TIME, *CAUSES)
