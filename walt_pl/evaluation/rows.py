"""Read the clips of one side, and compute their rows with every extractor that still lacks some."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from walt_pl.evaluation.program import describe_program
from walt_pl.evaluation.progress import show_progress
from walt_pl.evaluation.ranks import Ranks
from walt_pl.evaluation.row_store import RowStore, StoredRows, canonical_json
from walt_pl.evaluation.source import ClipDraw, ClipSource, Drawn, ReadClips
from walt_pl.metrics.extractor import ClipBatch, Extractor
from walt_pl.metrics.protocol import EvaluationProtocol


@dataclass(frozen=True)
class MeasureOptions:
    """Places and sizes of a measurement, by which no figure changes beyond rounding."""

    cache: Path
    """Folder of the rows of real clips. Processes, runs and commands may share it."""
    work: Path
    """Folder of the rows of generated clips; it may be that of the real ones."""
    batch: int = 16
    """Clips that are read and computed at once. A stopped measurement loses the blocks in work: two, and three where a GPU samples."""
    ranks: Ranks = field(default_factory=Ranks)
    device: str = "cpu"
    """Device of the extractors, for the card."""


@dataclass(frozen=True)
class Side:
    """Clips of one side."""

    name: str
    """real or generated."""
    source: ClipSource
    drawn: Drawn
    originals: Side | None = None
    """Real clips, of which each belongs to the clip of its position; None where there are none, or the source knows them."""

    def stride(self, protocol: EvaluationProtocol) -> int:
        """Return the distance between frames. A protocol's is of real clips: generated ones have the rate of the comparison already."""
        return protocol.stride if self.name == "real" else 1

    def identity(self, protocol: EvaluationProtocol) -> dict[str, Any]:
        """Return everything that determines the pixels, in plain values."""
        draws = canonical_json([list(draw) for draw in self.drawn.draws])
        values = protocol.to_plain()
        return {
            "source": self.source.facts(),
            "draws": hashlib.sha256(draws.encode()).hexdigest(),
            "stride": self.stride(protocol),
            **{name: values[name] for name in ("frames", "size", "crop")},
        }


@dataclass(frozen=True)
class _Block:
    """Clips of a block, and their originals where an extractor compares pairs."""

    read: ReadClips
    originals: ReadClips | None

    def original(self, position: int) -> Tensor | None:
        if self.read.originals is not None:
            return self.read.originals[position]
        return self.originals.clips[position] if self.originals else None

    def reason(self, position: int) -> str:
        """Return why a clip, or its original, is not there."""
        failures = self.read.failures if self.read.clips[position] is None or self.originals is None else self.originals.failures
        return failures.get(position, "its original cannot be read")


def compute_rows(
    side: Side, extractors: Sequence[Extractor], protocol: EvaluationProtocol, root: Path, options: MeasureOptions
) -> list[StoredRows]:
    """Return the rows of a side from each extractor. Those on disk are not computed again.

    Every process computes some blocks. Process zero joins them, and all read the joined files.

    Args:
        side: clips to read.
        extractors: extractors whose rows are wanted.
        protocol: frames and size of the clips, and stride of real ones.
        root: folder of the rows.
        options: size of a block, and the processes.

    Raises:
        ValueError: no clip can be read, or an extractor refuses a clip.
        OSError: rows cannot be written.
        ConnectionError: another process has ended.
    """
    program = describe_program(options.device, options.ranks.world)
    stores = [open_store(side, extractor, protocol, root, options.batch, program) for extractor in extractors]
    for store in stores:
        store.prepare()
    ranks = options.ranks
    wanted: dict[int, list[tuple[Extractor, RowStore]]] = {}
    for extractor, store in zip(extractors, stores, strict=True):
        for number in store.missing(ranks.share(range(len(store)))):
            wanted.setdefault(number, []).append((extractor, store))
    _compute_blocks(side, dict(sorted(wanted.items())), protocol, ranks)
    ranks.barrier()
    for store in stores if ranks.is_first else ():
        store.join()
    ranks.barrier()
    stored = [store.read() for store in stores]
    for rows in stored:
        if not rows.kept.any():
            reason = next(iter(rows.reasons.values()), "there are none")
            raise ValueError(f"{side.name} clips: none of the {len(rows.kept):,} can be read ({reason})")
    return stored


def open_store(
    side: Side, extractor: Extractor, protocol: EvaluationProtocol, root: Path, batch: int, program: Mapping[str, Any] | None = None
) -> RowStore:
    """Return the store of the rows of a side from an extractor. Two sides of equal clips have one store."""
    key = {**side.identity(protocol), "extractor": extractor.identity()}
    if extractor.of_pairs and side.originals is not None:
        key["originals"] = side.originals.identity(protocol)
    return RowStore(root, key, len(side.drawn.draws), batch, extractor.gives, program)


def _compute_blocks(
    side: Side, wanted: Mapping[int, Sequence[tuple[Extractor, RowStore]]], protocol: EvaluationProtocol, ranks: Ranks
) -> None:
    """Read each block once, and write its rows from every extractor that lacks them.

    A thread reads the next block while the extractors compute. A source may work ahead of it.
    """
    left = list(wanted)
    total = sum(len(wanted[number][0][1].block(number)) for number in left)
    if not left:
        return
    words = f"{side.name} clips" + (f" of process 1 of {ranks.world}" if ranks.world > 1 else "")
    with (
        closing(_read_blocks(side, wanted, protocol)) as blocks,  # after the thread has ended
        ThreadPoolExecutor(1) as reader,
        show_progress(words, total, ranks.is_first) as advance,
    ):
        following = reader.submit(next, blocks)
        for number in left:
            started = time.perf_counter()
            block = following.result()
            waited = time.perf_counter() - started
            if number != left[-1]:
                following = reader.submit(next, blocks)
            for extractor, store in wanted[number]:
                if not store.is_joined():  # another command may have been faster
                    started = time.perf_counter()
                    rows, kept, reasons = _extract(extractor, block, side.name)
                    seconds = (waited + time.perf_counter() - started) / ranks.world
                    store.write_block(number, StoredRows(rows, kept, reasons, seconds))
            advance(len(block.read.clips))


def _read_blocks(side: Side, wanted: Mapping[int, Sequence[tuple[Extractor, RowStore]]], protocol: EvaluationProtocol) -> Generator[_Block]:
    """Read the clips of blocks, and their originals where an extractor compares pairs.

    Raises:
        ValueError: originals are wanted, and there are none.
    """
    draws = {number: _draws_at(side, of_block[0][1].block(number)) for number, of_block in wanted.items()}
    reads = side.source.read_blocks(list(draws.values()), protocol.frames, side.stride(protocol), protocol.size)
    for (number, of_block), read in zip(wanted.items(), reads, strict=True):
        pairs = any(extractor.of_pairs for extractor, _ in of_block)
        if not pairs or read.originals is not None:
            yield _Block(read, None)
            continue
        if side.originals is None:
            raise ValueError("a metric of pairs compares each clip with its original: name the real clips with --real")
        of_real = _draws_at(side.originals, of_block[0][1].block(number))
        yield _Block(read, side.originals.source.read(of_real, protocol.frames, side.originals.stride(protocol), protocol.size))


def _draws_at(side: Side, positions: range) -> Sequence[ClipDraw]:
    return side.drawn.draws[positions.start : positions.stop]


def _extract(extractor: Extractor, block: _Block, side: str) -> tuple[dict[str, Tensor], Tensor, dict[int, str]]:
    """Return the rows of a block, whether each clip was read, and the reasons for those that were not.

    Raises:
        ValueError: the extractor refuses a clip, or its numbers are not finite.
    """
    read, pairs = block.read, extractor.of_pairs
    total = len(read.clips)
    clips = {place: clip for place, clip in enumerate(read.clips) if clip is not None}
    originals = {place: original for place in clips if pairs and (original := block.original(place)) is not None}
    places = [place for place in clips if place in originals or not pairs]
    kept = torch.zeros(total, dtype=torch.bool)
    kept[places] = True
    reasons = {place: block.reason(place) for place in range(total) if not kept[place]}
    if not places:
        return {name: torch.zeros(total, 0) for name in extractor.gives}, kept, reasons
    batch = ClipBatch(
        [clips[place] for place in places],
        [originals[place] for place in places] if pairs else None,
        [read.captions[place] for place in places] if read.captions else (),
        [read.labels[place] for place in places] if read.labels else (),
    )
    with torch.no_grad():
        found = extractor(batch)
    rows = {}
    for name in extractor.gives:
        if not bool(torch.isfinite(found[name]).all()):
            raise ValueError(f"{extractor.kind}: its {name} of a {side} clip are not finite; check its file, or use another device")
        rows[name] = torch.zeros(total, found[name].shape[1])
        rows[name][places] = found[name].float()
    return rows, kept, reasons
