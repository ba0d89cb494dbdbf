"""Conditions of the samples of a run: captions, labels and first frames of real clips, or classes in turn."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from walt_pl.evaluation.source import ClipSource, Drawn
from walt_pl.media.types import Size
from walt_pl.metrics.protocol import EvaluationProtocol
from walt_pl.sampling.cascade import Cascade
from walt_pl.sampling.known_conditions import known_classes


@dataclass(frozen=True)
class SampleCondition:
    """Everything that one sample is made from, beside its seed."""

    caption: str = ""
    label: int = -1
    """Class number, -1 where there is none."""
    context: Tensor | None = None
    """First frames of the real clip, uint8 [t h w 3], for frame prediction."""
    original: Tensor | None = None
    """The whole real clip, uint8 [t h w 3], where `context` is given."""
    failure: str = ""
    """Reason why there is no such condition. It names the file."""


class SampleConditions(ABC):
    """Conditions by number of the sample."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return where the conditions come from, for card and cache."""

    @abstractmethod
    def names(self, count: int) -> list[str]:
        """Return a name for each of the first `count` samples."""

    @abstractmethod
    def read(self, items: Sequence[int], frames: int, size: Size, sample_size: Size) -> list[SampleCondition]:
        """Return the conditions of samples.

        Args:
            items: numbers of the samples.
            frames: frames of the real clip that the sample is compared with.
            size: rows and columns at which it is compared.
            sample_size: rows and columns of the sample.
        """


@dataclass(frozen=True)
class RealConditions(SampleConditions):
    """Caption, label and first frames of real clips: sample i takes those of real draw i, from the first one again after the last.

    Args:
        source: of the real clips.
        drawn: its draws.
        stride: distance between frames of a real clip, in frames of the file.
        context_frames: pixel frames that the sample is given; 0 for none.
    """

    source: ClipSource
    drawn: Drawn
    stride: int = 1
    context_frames: int = 0

    def facts(self) -> dict[str, Any]:
        """Return the facts of the real clips, and the number of given frames with the origin of their pixels.

        The decoded pixels of the given frames are measured, not the true ones. MAGVIT's code does so, too: its `generate_step` puts the
        true pixels in only with `sampling.replace_condition_pixels`. The option is off, and no published configuration sets it
        (google-research/magvit, videogvt/trainers/maskgvt_trainer.py).
        """
        draws = hashlib.sha256(repr([tuple(draw) for draw in self.drawn.draws]).encode()).hexdigest()
        given = {"context_frames": self.context_frames, "context_pixels": "decoded"} if self.context_frames else {}
        return {"kind": "real clips", "of": self.source.facts(), "draws_sha256": draws, "stride": self.stride, **given}

    def names(self, count: int) -> list[str]:
        """Return the names of the real clips."""
        names, draws = self.source.names(), self.drawn.draws
        return [names[draws[item % len(draws)].item] for item in range(count)]

    def read(self, items: Sequence[int], frames: int, size: Size, sample_size: Size) -> list[SampleCondition]:
        """Read the real clips. Without context frames, one frame of each is decoded for its caption and label."""
        draws = [self.drawn.draws[item % len(self.drawn.draws)] for item in items]
        read = self.source.read(draws, frames if self.context_frames else 1, self.stride, size)
        contexts: Sequence[Tensor | None] = [None] * len(items)
        if self.context_frames:
            # Scaled once from the file, as in training, where the sample has another size than the measured clip.
            given = read if size == sample_size else self.source.read(draws, self.context_frames, self.stride, sample_size)
            contexts = [None if clip is None else clip[: self.context_frames] for clip in given.clips]
        return [
            SampleCondition(
                read.captions[i] if read.captions else "",
                read.labels[i] if read.labels else -1,
                contexts[i],
                read.clips[i] if self.context_frames else None,
                read.failures.get(i, "") or ("" if read.clips[i] is not None else "a real clip could not be read"),
            )
            for i in range(len(items))
        ]


@dataclass(frozen=True)
class ClassesInTurn(SampleConditions):
    """Every class as often as the others: sample i is of class i modulo their number.

    Args:
        classes: class numbers.
    """

    classes: Sequence[int]

    def facts(self) -> dict[str, Any]:
        """Return the rule and the number of classes."""
        return {"kind": "classes in turn", "classes": len(self.classes), "first": self.classes[0], "last": self.classes[-1]}

    def names(self, count: int) -> list[str]:
        """Return numbers as names."""
        return [f"sample {item}" for item in range(count)]

    def read(self, items: Sequence[int], frames: int, size: Size, sample_size: Size) -> list[SampleCondition]:
        """Return the class of each sample."""
        return [SampleCondition(label=self.classes[item % len(self.classes)]) for item in items]


def choose_conditions(cascade: Cascade, real: ClipSource | None, drawn: Drawn | None, protocol: EvaluationProtocol) -> SampleConditions:
    """Return captions, labels and given frames of the real clips, or every class in turn where these have no labels.

    Classes come in turn, too, where every real clip is used once: the first ones of a data set may be of one class.

    Raises:
        ValueError: there are no real clips, and the model needs their captions or frames.
    """
    classes = [count for sampler in cascade.samplers.values() if (count := sampler.denoiser.config.num_classes)]
    if classes and not protocol.context_frames:
        labels = real.read(drawn.draws[:1], 1, 1, None).labels if real is not None and drawn is not None else ()
        if protocol.real_clips is None or not labels or labels[0] < 0:
            return ClassesInTurn(sorted(known_classes(cascade) or range(min(classes))))
    if real is None or drawn is None:
        raise ValueError("samples take their captions and first frames from real clips: name these with --real")
    return RealConditions(real, drawn, protocol.stride, protocol.context_frames)
