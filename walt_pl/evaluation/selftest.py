"""Check an extractor and the Frechet distance of its rows on clips with known damage, and on sets of known distance."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.nn import functional

from walt_pl.metrics.extractor import ClipBatch, Extractor
from walt_pl.metrics.metric import Metric

FRAMES, SIDE = 16, 64
"""Frames and pixels of a synthetic clip. I3D wants at least 9 frames, C3D and VideoMAE 16; each extractor resizes."""
CLIPS = 16
"""Clean clips, of which half are damaged in each of 7 ways: 80 clips in all, about a minute for I3D on a CPU."""
NOISE = (8, 24, 72)
"""Standard deviations of the noise, in levels of 255."""
BLUR = (3, 7)
"""Sides of the box filters in pixels."""
OF_ITSELF = 1e-3
"""Largest distance of a set to itself, as a part of the distance of two halves. Rounding gives about 1e-6."""


class KnownFigure(Protocol):
    """A distance that a file is known to give (`walt_pl.metrics.extractors.known_files.GoldenNumber`)."""

    @property
    def description(self) -> str:
        """Name for the table."""

    @property
    def value(self) -> float:
        """Known distance."""

    @property
    def tolerance(self) -> float:
        """Largest deviation from it."""

    @property
    def clips(self) -> int:
        """Clips of each side."""

    @property
    def clip(self) -> Callable[[int, int], Tensor]:
        """Map from side (0 or 1) and position to a clip [t h w 3]; positions are asked for in order."""


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    name: str
    figure: float
    """Distance; nan if it was not computed."""
    wanted: str
    ok: bool | None
    """None for a figure that is reported only."""


def selftest(extractor: Extractor, fvd: type[Metric], known: Sequence[KnownFigure] = (), clips: int = CLIPS, batch: int = 8) -> list[Check]:
    """Run all checks.

    Args:
        extractor: gives the rows that `fvd` needs. Known figures hold for one way of resizing: that of their description.
        fvd: class of a Frechet distance.
        known: figures that are known for the file of the extractor. One of more than `clips` clips a side is left out.
        clips: clean clips, at least 16.
        batch: clips that the extractor gets at a time.

    Returns:
        One check a row, in order.

    Raises:
        ValueError: there are too few clips, or the extractor refuses them.
    """
    if clips < 16:
        raise ValueError(f"selftest: --clips must be at least 16, got {clips}: growth with few clips is measured on 2, 4 and 8 of them")
    half, sets = clips // 2, synthetic_sets(clips // 2)
    shown = track(sets.items(), "selftest", console=Console(stderr=True), transient=True)
    rows = {name: torch.cat(list(_rows(extractor, fvd.needs, iter(made), batch))) for name, made in shown}
    first, second = rows["clean"].split(half)
    halves = _distance(fvd, first, second)
    bound = OF_ITSELF * abs(halves)
    itself = _distance(fvd, first, rows["again"])  # extracted twice: dropout that is still on would show
    return [
        Check("a set against itself", itself, f"0 within {bound:.2g}", abs(itself) <= bound),
        Check("two halves of a set", halves, "above 0", halves > bound),
        *_damage_checks({name: _distance(fvd, first, rows[name]) for name in DAMAGES}, abs(itself)),
        *_growth_checks(fvd, first, second),
        *(_known_check(extractor, fvd, one, clips, batch) for one in known),
    ]


def synthetic_sets(half: int) -> dict[str, list[Tensor]]:
    """Return clips by name of their set: 2 * half clean ones, the first half of them again, and that half with each damage."""
    clean = [moving_shapes(number) for number in range(2 * half)]
    damaged = {name: [damage(clip, number) for number, clip in enumerate(clean[:half])] for name, damage in DAMAGES.items()}
    return {"clean": clean, "again": clean[:half], **damaged}


def render_checks(checks: Sequence[Check]) -> Table:
    """Return the checks as a table for the terminal."""
    table = Table("check", "distance", "wanted", "ok")
    for check in checks:
        figure = "" if math.isnan(check.figure) else f"{check.figure:.6g}"
        state = {True: Text("yes", "green"), False: Text("NO", "red"), None: Text("-")}[check.ok]
        table.add_row(Text(check.name), figure, Text(check.wanted), state)
    return table


def has_failed(checks: Sequence[Check]) -> bool:
    """Return whether a check failed; the command then exits with 1."""
    return any(check.ok is False for check in checks)


def moving_shapes(number: int) -> Tensor:
    """Return a clip of three discs that move over a gradient, uint8 [t h w 3]. Each number gives a clip of its own, always the same."""
    draw = np.random.RandomState(number)  # its stream is the same in every version of numpy
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    weight = (x if draw.rand() < 0.5 else y)[None, :, :, None]
    video = np.repeat(weight * draw.rand(3) + (1 - weight) * draw.rand(3), FRAMES, axis=0)
    for _ in range(3):
        colour, centre, speed, radius = draw.rand(3), draw.rand(2), draw.uniform(-0.04, 0.04, 2), draw.uniform(0.08, 0.2)
        for frame in range(FRAMES):
            row, column = (centre + speed * frame) % 1
            video[frame, (y - row) ** 2 + (x - column) ** 2 < radius**2] = colour
    return torch.from_numpy((255 * video).round().astype(np.uint8))


def add_noise(clip: Tensor, number: int, strength: float) -> Tensor:
    """Return a clip with normal noise of its own in every pixel."""
    noise = np.random.RandomState(number).normal(0, strength, clip.shape)
    return (clip + torch.from_numpy(noise)).round().clamp(0, 255).to(torch.uint8)


def blur(clip: Tensor, _: int, side: int) -> Tensor:
    """Return a clip whose frames are filtered by a box."""
    planes = functional.avg_pool2d(clip.permute(0, 3, 1, 2).float(), side, 1, side // 2, count_include_pad=False)
    return planes.permute(0, 2, 3, 1).round().to(torch.uint8)


def shuffle(clip: Tensor, number: int) -> Tensor:
    """Return a clip with its frames in another order."""
    return clip[torch.from_numpy(np.random.RandomState(number).permutation(len(clip)))]


DAMAGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    **{f"noise of {strength} levels": partial(add_noise, strength=strength) for strength in NOISE},
    **{f"blur over {side} pixels": partial(blur, side=side) for side in BLUR},
    "frozen frames": lambda clip, _: clip[:1].expand_as(clip),
    "shuffled frames": shuffle,
}
"""Damage by name. Frozen and shuffled frames are damage in time, which I3D hardly sees (arXiv 2404.12391)."""
_NOISES, _BLURS = list(DAMAGES)[: len(NOISE)], list(DAMAGES)[len(NOISE) : len(NOISE) + len(BLUR)]


def _damage_checks(distances: dict[str, float], itself: float) -> Iterator[Check]:
    """Yield the checks that noise and blur raise the distance, and the figures of damage in time."""
    for names in (_NOISES, _BLURS):
        for weaker, name in itertools.pairwise([None, *names]):
            least = itself if weaker is None else distances[weaker]
            yield Check(str(name), distances[str(name)], f"above {least:.6g}", distances[str(name)] > least)
    spatial = distances[_BLURS[-1]]
    for name, distance in distances.items():
        if name not in (*_NOISES, *_BLURS):
            ratio = distance / spatial if spatial else math.nan
            yield Check(name, distance, f"reported: {ratio:.2g} of the {_BLURS[-1]}", None)


def _growth_checks(fvd: type[Metric], first: Tensor, second: Tensor) -> Iterator[Check]:
    """Yield the distances of ever fewer clips of one distribution: the mean over disjoint parts. They must grow."""
    half, before = len(first), -math.inf
    for count in (half, half // 2, half // 4):
        parts = [_distance(fvd, first[i : i + count], second[i : i + count]) for i in range(0, half - count + 1, count)]
        mean = sum(parts) / len(parts)
        wanted = "the smallest" if before == -math.inf else f"above {before:.6g}"
        yield Check(f"{count} clips against {count}", mean, wanted, mean > before)
        before = mean


def _known_check(extractor: Extractor, fvd: type[Metric], known: KnownFigure, clips: int, batch: int) -> Check:
    if known.clips > clips:
        return Check(known.description, math.nan, f"{known.value:g}; computed with --clips {known.clips}", None)
    sides = [
        torch.cat(list(_rows(extractor, fvd.needs, (known.clip(side, number) for number in range(known.clips)), batch))) for side in (0, 1)
    ]
    found = _distance(fvd, *sides)
    return Check(known.description, found, f"{known.value:g} ± {known.tolerance:g}", abs(found - known.value) <= known.tolerance)


def _rows(extractor: Extractor, name: str, clips: Iterator[Tensor], batch: int) -> Iterator[Tensor]:
    """Yield the rows of clips, [b d], batch by batch."""
    while part := list(itertools.islice(clips, batch)):
        yield extractor(ClipBatch(part))[name]


def _distance(fvd: type[Metric], real: Tensor, generated: Tensor) -> float:
    metric = fvd()
    metric.update(real, real=True)
    metric.update(generated, real=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns of few clips, which are meant here
        return metric.compute()
