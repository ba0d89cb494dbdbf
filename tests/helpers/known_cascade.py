"""A cascade whose samples are known clips, and clips of known captions and paths."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from walt_pl.media.types import Frames
from walt_pl.sampling.cascade import SampleRequest, SamplingConfig
from walt_pl.shapes.dataset import Scene, paint, parse_caption, sample_scene


class KnownCascade:
    """Stand in for a cascade: the sample of a seed is the clip at this place. Its latents are pixels.

    Args:
        clips: pixels [b 3 t h w] by stage, the base first.
    """

    overlap = 5
    clip_frames = 17

    def __init__(self, clips: Mapping[str, Tensor]) -> None:
        self.clips = dict(clips)
        self.stages = list(clips)
        self.base = self.stages[0]
        self.requests: list[SampleRequest] = []
        self.sampling: list[SamplingConfig] = []

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Let measures open this cascade, where they ask for its stages."""

        def open_known(run: Path, stages: Sequence[str], device: str) -> KnownCascade:
            assert list(stages) == self.stages
            return self

        patch.setattr("walt_pl.paper.measures.common.Cascade.open", open_known)

    def pixels(self, stage: str) -> tuple[int, int]:
        return self.clips[stage].shape[3], self.clips[stage].shape[4]

    def encode(self, clips: Tensor) -> Tensor:
        return clips

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def sample_stage(
        self, stage: str, request: SampleRequest, sampling: SamplingConfig, low_res: Tensor | None = None, number: int = 0
    ) -> Tensor:
        assert number == self.stages.index(stage)
        assert (low_res is None) == (number == 0)
        self.requests.append(request)
        self.sampling.append(sampling)
        return self.clips[stage][list(request.seeds)]

    def video(self, request: SampleRequest, sampling: SamplingConfig, frames: int) -> Tensor:
        return self.sample_stage(self.base, request, sampling)[:, :, :frames]


def pixels(frames: Frames) -> Tensor:
    """[t h w 3] to [3 t h w] in -1..1."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1


def scene_of(rng: np.random.Generator, caption: str, aspect: float = 1.0) -> Scene:
    """Draw a scene with the words of a caption."""
    words = parse_caption(caption)
    while True:
        scene = sample_scene(rng, still=words.motion is None, pairs=((words.shape, words.colour),), aspect=aspect)
        if scene.caption == caption:
            return scene


def painted_clips(captions: Sequence[str], size: int = 32, aspect: float = 1.0, seed: int = 0) -> Tensor:
    """Clips [b 3 t h w] of captions; those of two sizes show equal scenes."""
    rng = np.random.default_rng(seed)
    scenes = [scene_of(rng, caption, aspect) for caption in captions]
    return torch.stack([pixels(paint(scene, 1 if scene.motion is None else 17, size, aspect)) for scene in scenes])


def paint_path(caption: str, centres: ArrayLike, radii: ArrayLike, size: int = 32) -> Tensor:
    """A clip [3 t h w] of an object with these centres [t 2] and radii [t], in sides of the frame."""
    words = parse_caption(caption)
    still = Scene(words.shape, words.colour, words.motion, words.texture, (0, 0), (0, 0), (0, 0), 40)
    frames = [
        paint(replace(still, start=(x, y), end=(x, y), radius=(radius, radius)), 1, size)
        for (x, y), radius in zip(np.asarray(centres), np.asarray(radii), strict=True)
    ]
    return pixels(np.concatenate(frames))
