"""Reconstructions of an autoencoder as clips that are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from walt_pl.evaluation.run_source import artifact_facts, compute_facts, to_pixels
from walt_pl.evaluation.source import ClipDraw, ClipSource, ReadClips
from walt_pl.sampling.cascade import VAE_STAGE, Cascade


class ReconstructionSource(ClipSource):
    """Real clips, encoded and decoded, each with its original.

    An autoencoder takes 1 + a multiple of f frames. A clip of another length is extended by its last frame, and the reconstruction cut.

    Args:
        run: folder of the run, for the card.
        cascade: with the autoencoder.
        real: the real clips.
        size: rows and columns of both clips where a protocol names none: those of the training.
        stage: name of the autoencoder, such as vae_gan.
        stride: distance between frames of a real clip, in frames of the file. Both clips have the frames that remain.
    """

    def __init__(
        self, run: str, cascade: Cascade, real: ClipSource, size: tuple[int, int], stage: str = VAE_STAGE, stride: int = 1
    ) -> None:
        self.run = run
        self.cascade = cascade
        self.real = real
        self.size = size
        self.stage = stage
        self.stride = stride

    def __len__(self) -> int:
        return len(self.real)

    def facts(self) -> dict[str, Any]:
        """Return everything that determines the reconstructions."""
        return {
            "kind": "reconstructions",
            "run": self.run,
            "artifacts": {self.stage: artifact_facts(self.cascade)[VAE_STAGE]},
            "latents": "mean of the posterior",
            "of": self.real.facts(),
            "stride": self.stride,
            "default_size": list(self.size),
            "extended_by": "the last frame",
            **compute_facts(self.cascade),
        }

    def lengths(self) -> Sequence[int]:
        """Return the frames of each real clip."""
        return self.real.lengths()

    def names(self) -> Sequence[str]:
        """Return the names of the real clips."""
        return self.real.names()

    def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: tuple[int, int] | None) -> ReadClips:
        """Read and reconstruct clips. A `stride` counts frames of the reconstructions.

        Raises:
            ValueError: the autoencoder does not take frames of this size.
        """
        size = size or self.size
        factors = self.cascade.vae.factors
        if size[0] % factors[1] or size[1] % factors[2]:
            raise ValueError(
                f"evaluate: the autoencoder of {self.run} takes sides that are multiples of {factors[1]} x {factors[2]}, and the protocol "
                f"wants {size[0]} x {size[1]} pixels; leave out the preset to measure at {self.size[0]} x {self.size[1]}"
            )
        read = self.real.read(draws, frames, self.stride * stride, size)
        clips = [None if clip is None else self._reconstruct(clip) for clip in read.clips]
        return ReadClips(clips, read.captions, read.labels, read.clips, read.failures)

    def _reconstruct(self, clip: Tensor) -> Tensor:
        """Return the reconstruction of a clip, uint8 [t h w 3]."""
        missing = -(len(clip) - 1) % self.cascade.vae.factors[0]
        pixels = torch.cat([clip, clip[-1:].expand(missing, -1, -1, -1)]).permute(3, 0, 1, 2)[None].float().div(127.5).sub(1)
        return to_pixels(self.cascade.decode(self.cascade.encode(pixels)))[0][: len(clip)]
