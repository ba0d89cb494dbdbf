"""Table of the rows of docs/RESULTS.md."""

from __future__ import annotations

from walt_pl.paper.row import Row, Training

DEFAULT = "default"
"""Row that the ablations are compared with."""
BUDGET = "ablations/budget.yaml"
"""Steps of all ablations."""


# ---- Tasks -------------------------------------------------------------------------------------------------------------

TASKS: tuple[Row, ...] = ()


# ---- Ablations: Table 3 of the paper ------------------------------------------------------------------------------------


def _ablation(name: str, text: str, paper: str, expected: int, first: tuple[Training, ...] = ()) -> Row:
    """Return the row of an overlay of experiments/EXP/ablations, laid over the base.

    Args:
        name: name of the overlay and of the row.
        text: short description.
        paper: figures of the paper, FVD on UCF-101 unless stated; that of the default comes first.
        expected: see `Row`.
        first: trainings before the base.
    """
    base = Training("base", (BUDGET, f"ablations/{name}.yaml"))
    return Row(name, "ablations", text, (*first, base), "prompts", paper=paper, expected=expected, against=DEFAULT)


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
    _ablation("self_conditioning", "self-conditioning with p = 0.9", "p 0: 109.9, p 0.9: 61.4", 1),
    _ablation("separate_adaln", "AdaLN of each layer's own", "LoRA 2: 60.7, LoRA 256: 52.5", 1),
    _ablation("no_qk_norm", "no qk-norm", "60.7, without 59.0", 0),
    _ablation("no_latent_normalisation", "latents not normalised", "60.7, without 67.9", -1),
    _ablation("no_zero_snr", "no zero terminal SNR", "60.7, without 91.0", -1),
    _ablation("latent_channels_4", "4 latent channels", "8: 75.4, 4: 86.4", -1, (_FOUR_CHANNELS,)),
    _ablation("video_only", "videos alone", "zero-shot UCF-101: joint 344.5, video alone 598.8", -1),
)


# ---- Equal time ---------------------------------------------------------------------------------------------------------


def _in_equal_time(row: Row) -> Row:
    """Return the row of an ablation whose training takes the time of the default's, instead of its steps."""
    (base,) = row.trainings
    training = Training("base", base.overlays, time_of=DEFAULT, pace_of=row.name)
    return Row(
        f"{row.name}_equal_time", "equal time", row.text, (training,), row.measure, paper=row.paper, expected=row.expected, against=DEFAULT
    )


EQUAL_TIME = tuple(_in_equal_time(row) for row in ABLATIONS if row.name in ("patch_1", "window_2x2"))

ROWS: tuple[Row, ...] = (*TASKS, *ABLATIONS, *EQUAL_TIME)
