"""Draw the clips that a protocol takes of a source: the same ones in every process and on every machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walt_pl.evaluation.source import ClipDraw, ClipSource, Drawn
from walt_pl.media.extensions import kind_of
from walt_pl.metrics.protocol import EvaluationProtocol

_Starts = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Position of each clip among the usable videos, and its first frame."""
_PERMUTED = 1 << 20
"""Windows up to which all are put in an order. Of more, only those are drawn that are wanted: a data set may have billions."""


def draw_real(source: ClipSource, protocol: EvaluationProtocol) -> Drawn:
    """Draw real clips in passes over the split. Each pass has an order and starts of its own, from (seed, number of the pass).

    The first clips do not depend on the number of clips that the protocol wants.

    Raises:
        ValueError: there are too few clips, and the protocol does not repeat them.
    """
    needed = 1 + (protocol.frames - 1) * protocol.stride
    usable, left_out = _select(source, protocol.frames, needed)
    spare = np.asarray(source.lengths(), np.int64)[usable] - needed
    found = int((spare + 1).sum()) if protocol.start == "window" else len(usable) * protocol.clips_per_video
    wanted = found if protocol.real_clips is None else protocol.real_clips * protocol.folds
    if not found or (found < wanted and not protocol.repeat):
        raise ValueError(_describe_lack(source, found, protocol.real_clips or 1, protocol.folds, left_out))
    parts = [
        _draw_pass(spare, protocol, min(found, wanted - drawn), np.random.Generator(np.random.PCG64([protocol.seed, number])))
        for number, drawn in enumerate(range(0, wanted, found))
    ]
    videos, starts = (np.concatenate(column) for column in zip(*parts, strict=True))
    if unused := len(usable) - len(np.unique(videos)):
        left_out[f"beyond the {wanted:,} clips that the protocol takes"] = unused
    return Drawn(list(map(ClipDraw, usable[videos].tolist(), starts.tolist())), left_out)


def draw_generated(source: ClipSource, protocol: EvaluationProtocol) -> Drawn:
    """Draw generated clips: each video once from frame 0, in the order of the source.

    Raises:
        ValueError: there are too few clips.
    """
    usable, left_out = _select(source, protocol.frames, protocol.frames)
    taken, left_out = _take(source, usable, protocol, left_out)
    return Drawn([ClipDraw(item, 0) for item in taken.tolist()], left_out)


def describe_pairs(protocol: EvaluationProtocol) -> EvaluationProtocol:
    """Return a protocol with the values by which `draw_pairs` takes real clips, for the card."""
    values: dict[str, Any] = {"start": "first", "order": "names", "clips_per_video": 1, "repeat": False, "real_clips": protocol.clips}
    return replace(protocol, paired=True, **values)


def draw_pairs(real_source: ClipSource, generated_source: ClipSource, protocol: EvaluationProtocol) -> tuple[Drawn, Drawn]:
    """Draw generated clips, and for each the real clip of its name (or of its place, where no name is on both sides), from frame 0.

    It is for sources that know no originals. A source that knows them gives them with its clips (`ReadClips.originals`).

    Raises:
        ValueError: a generated clip has no partner, or there are too few pairs.
    """
    partners = _find_partners(real_source, generated_source)
    real, left_out_real = _select(real_source, protocol.frames, 1 + (protocol.frames - 1) * protocol.stride)
    usable, left_out = _select(generated_source, protocol.frames, protocol.frames)
    whole = np.isin(partners[usable], real)
    if not whole.all():
        left_out["the real clip of the pair cannot be used"] = int((~whole).sum())
    taken, left_out = _take(generated_source, usable[whole], protocol, left_out)
    if unpaired := len(real) - len(taken):
        left_out_real["in no pair that is taken"] = unpaired
    pairs = ([ClipDraw(item, 0) for item in items.tolist()] for items in (partners[taken], taken))
    return Drawn(next(pairs), left_out_real), Drawn(next(pairs), left_out)


def _select(source: ClipSource, frames: int, needed: int) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Return the positions of the videos (or images) that are long enough, and the number of the others by reason.

    A protocol of one frame takes images. Where a source has none, it takes frames of videos.
    """
    kinds, lengths = np.asarray(source.kinds(), object), np.asarray(source.lengths(), np.int64)
    kind = "image" if frames == 1 and (kinds == "image").any() else "video"
    left_out = Counter(source.left_out())
    other = kinds != kind
    unreadable = ~other & (lengths == 0)
    short = ~other & ~unreadable & (lengths < needed)
    left_out[f"{'videos' if kind == 'image' else 'images'}, where the protocol wants {kind}s"] += int(other.sum())
    left_out["cannot be read"] += int(unreadable.sum())
    left_out[f"shorter than {needed} frames"] += int(short.sum())
    return np.flatnonzero(~(other | unreadable | short)), {reason: count for reason, count in left_out.items() if count}


def _draw_pass(spare: NDArray[np.int64], protocol: EvaluationProtocol, count: int, rng: np.random.Generator) -> _Starts:
    """Draw the first clips of one pass.

    Args:
        spare: frames of each usable video beyond those of a clip.
        protocol: says how.
        count: clips to draw, at most those of a pass.
        rng: generator of this pass.
    """
    if protocol.start == "window":
        ends = np.cumsum(spare + 1)
        windows = _draw_distinct(int(ends[-1]), count, rng)
        videos = np.searchsorted(ends, windows, side="right")
        return videos, windows - (ends - spare - 1)[videos]
    total, each = len(spare) * protocol.clips_per_video, protocol.clips_per_video
    order = (rng.permutation(total) if protocol.order == "shuffled" else np.arange(total))[:count]
    videos = order // each
    if protocol.start == "first":
        return videos, np.zeros(count, np.int64)
    if protocol.start == "random":
        return videos, rng.integers(spare[videos] + 1)
    # One clip lies in the middle, several reach from the first frame to the last one.
    share = (order % each) / (each - 1) if each > 1 else np.full(count, 0.5)
    return videos, np.rint(spare[videos] * share).astype(np.int64)


def _draw_distinct(total: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw different numbers below `total`. The first ones do not depend on `count`."""
    if total <= _PERMUTED:
        return rng.permutation(total)[:count]
    drawn = np.empty(0, np.int64)
    while True:
        drawn = np.concatenate([drawn, rng.integers(total, size=count)])
        first = np.sort(np.unique(drawn, return_index=True)[1])
        if len(first) >= count:
            return drawn[first[:count]]


def _take(
    source: ClipSource, usable: NDArray[np.int64], protocol: EvaluationProtocol, left_out: dict[str, int]
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Return the first generated clips of those that can be used, and the number of the others by reason."""
    wanted = protocol.clips * protocol.folds
    if len(usable) < wanted:
        raise ValueError(_describe_lack(source, len(usable), protocol.clips, protocol.folds, left_out))
    if beyond := len(usable) - wanted:
        left_out = left_out | {f"beyond the {wanted:,} that the protocol takes": beyond}
    return usable[:wanted], left_out


def _describe_lack(source: ClipSource, found: int, clips: int, folds: int, left_out: dict[str, int]) -> str:
    facts = source.facts()
    place = f"{facts.get('path', 'the source')}{' split ' + facts['split'] if facts.get('split') else ''}"
    wanted = f"{clips:,}" if folds == 1 else f"{folds} x {clips:,} = {folds * clips:,}"
    others = f" (left out: {', '.join(f'{count:,} {reason}' for reason, count in left_out.items())})" if left_out else ""
    own = f"--clips {found // folds}" if found >= folds else f"--folds 1 --clips {found}"
    if folds > 1 and found >= folds:
        own = f"{own} --folds {folds}"
    more = "index more" if facts.get("kind") == "index" else "add more"
    advice = f"{more}, or write your own protocol with {own}" if found else "add clips that are long enough, or give --frames"
    return f"found {found:,} clips in {place}{others}, the protocol wants {wanted}: {advice}"


def _find_partners(real_source: ClipSource, generated_source: ClipSource) -> NDArray[np.int64]:
    """Return for each generated clip the position of its real clip.

    Names are compared without their endings: first whole, then without their folders.
    """
    real, generated = (list(map(_stem, source.names())) for source in (real_source, generated_source))
    missing = ""
    for part in (str, _last_part):
        places = {part(name): place for place, name in enumerate(real)}
        names = [part(name) for name in generated]
        if len(places) < len(real) or len(set(names)) < len(names):
            continue
        lacking = [name for name in names if name not in places]
        if not lacking:
            return np.array([places[name] for name in names], np.int64)
        if len(lacking) < len(names):
            missing = missing or lacking[0]
    if not missing and len(real) == len(generated):
        return np.arange(len(real))
    reason = f'no real clip of the name "{missing or generated[0]}"'
    raise ValueError(
        f"clips cannot be paired: {len(generated):,} generated, {len(real):,} real, {reason}; "
        "give both the same names, or equally many clips in the same order under names of their own"
    )


def _stem(name: str) -> str:
    """Return a name without the ending of its file."""
    return name.rpartition(".")[0] if kind_of(name) else name


def _last_part(name: str) -> str:
    return PurePosixPath(name).name
