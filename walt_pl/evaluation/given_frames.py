"""Given frames of a model of frame prediction, and of a protocol."""

from __future__ import annotations

from walt_pl.sampling.cascade import Cascade


def context_frames(cascade: Cascade) -> int:
    """Return the pixel frames that a model of pure frame prediction is given: the most that it was trained with; 0 for other models."""
    sampler = cascade.samplers[cascade.base]
    if sampler.denoiser.config.frame_prediction < 1:
        return 0
    return cascade.overlap if 2 in sampler.config.context_frames else 1


def check_context(cascade: Cascade, frames: int) -> None:
    """Check that a model can be given as many frames as a protocol wants.

    Raises:
        ValueError: the model takes another number.
    """
    trained = context_frames(cascade)
    stage = cascade.base
    if trained and not frames:
        raise ValueError(
            f'evaluate: stage "{stage}" got context frames in every step of its training, and the protocol gives none: leave out the '
            "preset, or take --preset k600"
        )
    if frames not in (0, 1, cascade.overlap):
        raise ValueError(f'evaluate: stage "{stage}" is given 1 or {cascade.overlap} frames, and the protocol gives {frames}: take another')
    if frames and not cascade.samplers[stage].denoiser.config.frame_prediction:
        raise ValueError(f'evaluate: stage "{stage}" was trained without frame prediction, and the protocol gives {frames} frames')
