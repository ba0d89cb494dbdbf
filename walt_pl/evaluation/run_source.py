"""Samples of a run as clips that are measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from walt_pl.evaluation.clip_reading import cover_and_crop
from walt_pl.evaluation.conditions import SampleCondition, SampleConditions, choose_conditions
from walt_pl.evaluation.given_frames import check_context
from walt_pl.evaluation.source import ClipDraw, ClipSource, Drawn, ReadClips
from walt_pl.media.contact_sheet import to_uint8
from walt_pl.media.types import Size
from walt_pl.metrics.protocol import EvaluationProtocol
from walt_pl.sampling.cascade import VAE_STAGE, Cascade, SampleRequest, SamplingConfig
from walt_pl.sampling.overlapped_decoding import sample_videos


@dataclass(frozen=True)
class _Block:
    """Conditions of a block's clips, whose sample is not there yet."""

    draws: Sequence[ClipDraw]
    """The clips."""
    told: Sequence[SampleCondition]
    """Condition of each."""
    failures: dict[int, str]
    """Reason for each clip that cannot be made, by position."""

    @property
    def usable(self) -> list[int]:
        """Positions of the clips that can be made."""
        return [i for i in range(len(self.draws)) if i not in self.failures]

    def join(self, made: Iterable[Tensor], frames: int, stride: int, size: Size | None) -> ReadClips:
        """Return the block with the samples of its usable clips, uint8 [t h w 3], cut and scaled as `ClipSource.read` says."""
        clips: list[Tensor | None] = [None] * len(self.draws)
        for i, clip in zip(self.usable, made, strict=True):
            clips[i] = cover_and_crop(clip[self.draws[i].start :: stride][:frames].numpy(), size)
        continued = any(one.context is not None for one in self.told)
        originals = [one.original for one in self.told] if continued else None
        return ReadClips(clips, [one.caption for one in self.told], [one.label for one in self.told], originals, self.failures)


class RunSource(ClipSource):
    """Samples of the last stage of a cascade. Clip i is made with the seed `seed + i`.

    A clip depends on the facts and on its number. Clips that are made together share batches, so that a clip of another block may differ
    by rounding. Equal blocks give equal bits.

    Args:
        run: folder of the run, for the card.
        cascade: its stages.
        sampling: steps, guidance and decoding.
        conditions: captions, labels or first frames.
        count: number of samples.
        seed: of the first sample's noise.
        negative_prompt: text that guidance leads away from.
    """

    def __init__(
        self,
        run: str,
        cascade: Cascade,
        sampling: SamplingConfig,
        conditions: SampleConditions,
        count: int,
        seed: int = 0,
        negative_prompt: str = "",
    ) -> None:
        self.run = run
        self.cascade = cascade
        self.sampling = sampling
        self.conditions = conditions
        self.count = count
        self.seed = seed
        self.negative_prompt = negative_prompt

    def __len__(self) -> int:
        return self.count

    def facts(self) -> dict[str, Any]:
        """Return everything that determines the samples."""
        stages = self.cascade.stages
        return {
            "kind": "run",
            "run": self.run,
            "artifacts": artifact_facts(self.cascade),
            "solver": "ddim",
            "eta": self.sampling.eta,
            "steps": {stage: self.sampling.steps_of(stage) for stage in stages},
            "guidance": {stage: asdict(self.cascade.guidance(stage, self.sampling)) for stage in stages},
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "seeds": "seed + number of the sample",
            "conditions": self.conditions.facts(),
            "clip_frames": self.cascade.clip_frames,
            "clip_size": list(self._size),
            "decoding": {"chunk": self.sampling.chunk, "tile": self.sampling.tile},
            **compute_facts(self.cascade),
        }

    def lengths(self) -> Sequence[int]:
        """Return the frames of a sample for each."""
        return [self.cascade.clip_frames] * self.count

    def names(self) -> Sequence[str]:
        """Return the names of the real clips that the conditions are of, or numbers."""
        return self.conditions.names(self.count)

    def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: tuple[int, int] | None) -> ReadClips:
        """Sample clips as one batch, see `read_blocks`."""
        (read,) = self.read_blocks([draws], frames, stride, size)
        return read

    def read_blocks(
        self, blocks: Sequence[Sequence[ClipDraw]], frames: int, stride: int, size: tuple[int, int] | None
    ) -> Iterator[ReadClips]:
        """Sample the clips of each block as one batch, as `sample_videos` does, and take the frames that are asked for.

        Raises:
            ValueError: a sample has fewer frames, or the model lacks what the conditions want of it.
        """
        last = max((draw.start for draws in blocks for draw in draws), default=0)
        self.check_frames(last + 1 + (frames - 1) * stride)
        waiting: deque[_Block] = deque()

        def request_blocks() -> Iterator[SampleRequest]:
            for draws in blocks:
                told = self.conditions.read([draw.item for draw in draws], frames, size or self._size, self._size)
                block = _Block(draws, told, {i: why for i, one in enumerate(told) if (why := self._find_problem(one))})
                request = self._request(block) if block.usable else None
                waiting.append(block)
                if request is not None:
                    yield request

        for video in sample_videos(self.cascade, request_blocks(), self.count, self.sampling, self.cascade.clip_frames):
            while not waiting[0].usable:
                yield waiting.popleft().join([], frames, stride, size)
            yield waiting.popleft().join(to_pixels(video), frames, stride, size)
        while waiting:
            yield waiting.popleft().join([], frames, stride, size)

    def _request(self, block: _Block) -> SampleRequest:
        """Return the request for the usable clips of a block."""
        told = [block.told[i] for i in block.usable]
        of_classes = any(sampler.denoiser.config.num_classes for sampler in self.cascade.samplers.values())
        return SampleRequest(
            prompts=[one.caption for one in told],
            labels=[one.label for one in told] if of_classes else (),
            negative_prompt=self.negative_prompt,
            seeds=[self.seed + block.draws[i].item for i in block.usable],
            context_latents=self._encode_contexts(told),
        )

    def _encode_contexts(self, told: Sequence[SampleCondition]) -> dict[str, Tensor]:
        encoded = [self.cascade.encode_context(one.context.numpy(), "a real clip") for one in told if one.context is not None]
        return {stage: torch.cat([latents[stage] for latents in encoded]) for stage in encoded[0]} if encoded else {}

    def _find_problem(self, told: SampleCondition) -> str:
        """Return why no sample can be made from a condition, "" if one can."""
        classes = [count for sampler in self.cascade.samplers.values() if (count := sampler.denoiser.config.num_classes)]
        if told.failure or not classes or 0 <= told.label < min(classes):
            return told.failure
        return f"a real clip has the label {told.label}, and the model has the classes 0 to {min(classes) - 1}"

    def check_frames(self, frames: int) -> None:
        """Check that a sample has as many frames.

        Raises:
            ValueError: it has fewer.
        """
        made = self.cascade.clip_frames
        if frames > made:
            raise ValueError(f"evaluate: {self.run} makes clips of {made} frames, and the protocol wants {frames}: type --frames {made}")

    @property
    def _size(self) -> Size:
        return self.cascade.pixels(self.cascade.stages[-1])


def open_samples(run: str, real: ClipSource | None, drawn: Drawn | None, protocol: EvaluationProtocol, device: str) -> RunSource:
    """Open a run for the samples that a protocol wants, with the settings of its artifacts and 50 steps.

    Raises:
        ValueError: the run lacks a stage, or does not fit the protocol.
    """
    cascade = Cascade.open(run, device=device)
    check_context(cascade, protocol.context_frames)
    conditions = choose_conditions(cascade, real, drawn, protocol)
    source = RunSource(run, cascade, SamplingConfig(), conditions, protocol.clips * protocol.folds, protocol.seed)
    source.check_frames(protocol.frames)
    return source


def artifact_facts(cascade: Cascade) -> dict[str, dict[str, Any]]:
    """Return hash, training step and kind of weights of every stage of a cascade, the autoencoder first."""
    cards = {VAE_STAGE: cascade.card, **{stage: artifact.card for stage, artifact in cascade.artifacts.items()}}
    return {stage: {"sha256": cascade.sha256(stage), "step": card.get("steps"), "ema": _is_averaged(card)} for stage, card in cards.items()}


def _is_averaged(card: dict[str, Any]) -> bool | None:
    """Return whether the weights are averages, as the card says of its validation; None where it does not say."""
    protocol = (card.get("metrics") or {}).get("protocol")
    return None if protocol is None else "averaged weights" in str(protocol)


def compute_facts(cascade: Cascade) -> dict[str, str]:
    """Return dtype and kind of device, which determine the rounding."""
    return {"dtype": str(cascade.dtype).removeprefix("torch."), "device": cascade.device.type}


def to_pixels(clips: Tensor) -> Tensor:
    """Round clips [b 3 t h w] in -1..1 as `walt sample` does before its encoder: uint8 [b t h w 3]."""
    return torch.from_numpy(to_uint8(clips)).contiguous()
