"""Joint batches streamed from tar shards, front to back: for data on storage without fast random access, such as object storage.

The shards have webdataset's format, and its functions open those that are no files: `clips-{0000..0999}.tar`, `https://...`,
`pipe:aws s3 cp s3://bucket/{000..999}.tar -`. A scheme is opened only if `data.allow_schemes` names it (`shard_urls`). Every epoch
distributes the shards to the readers in a new order. A reader is one worker of one rank. It reads its shards one after the other, each
in its own order (shuffle when you write them). So within an epoch no sample is left out and none comes twice. A reader that has finished
its share begins its next epoch at once.

A shard has no table of contents, so the state is the position of each reader: shard and sample. A resume with as many ranks and
workers continues exactly there. With another number this is impossible, and new epochs begin. An index of the shards
(`python -m walt_pl index`) adds exact resume on any number of ranks, buckets and a quarantine. It also adds starts within a clip,
cached latents, and files that are left out once they kill a worker. An index holds the place of every member; it needs a disk or a
mounted bucket.
"""

import contextlib
import hashlib
import re
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch.distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys

from walt_pl.data.batch import DataError, Kind, Sample, SampleRef, collate
from walt_pl.data.index import IndexEntry
from walt_pl.data.labels import NO_LABEL
from walt_pl.data.loader import BatchLoader
from walt_pl.data.shard_urls import expand_urls, open_shard
from walt_pl.data.stream_watch import LostWorker, WorkerSigns, begin_again, watched
from walt_pl.data.tar_members import MAX_TEXT_BYTES, BoundedTarInfo, join_words, read_words, unused_words
from walt_pl.data.transforms import ClipTransform, PixelDataset
from walt_pl.data.workers import Answer, forkserver
from walt_pl.media.extensions import IMAGES, VIDEOS
from walt_pl.plain_text import unify
from walt_pl.untrusted import UntrustedError

EPOCH = 1000
"""Steps that count as an epoch: the number of samples is not known."""
MAX_MEDIA_BYTES = 4 << 30
"""Bytes of a clip or image in a streamed shard: it is read into memory."""
_ENDINGS: dict[Kind, frozenset[str]] = {"video": VIDEOS, "image": IMAGES}
_NUMBER: dict[Kind, int] = {"video": 0, "image": 1}


class StreamPosition(NamedTuple):
    """Position of a reader among the shards of a kind."""

    epoch: int = 0
    """Number of times that the reader has read its share."""
    shard: int = 0
    """Number of shards of its share that it has finished in this epoch."""
    sample: int = 0
    """Number of samples of the next shard that it has read, too."""


class ShardSample(NamedTuple):
    """A clip or image as read from a shard, not decoded."""

    name: str
    """Shard and name in it, for messages."""
    content: bytes
    caption: str
    label: int
    more_captions: tuple[str, ...] = ()
    finding: str = ""
    """Words about it that are not used, and why."""
    fault: str = ""
    """Why the label that the shard has cannot be used; empty where it can, or where there is none."""


class ShardStream:
    """The shards of a kind, distributed to readers in a new order in every epoch.

    Args:
        kind: Kind of the samples that are read.
        pattern: Names of the shards, in webdataset's notation.
        seed: Seed of the order of the shards.
        allow_schemes: Schemes that the person who starts the training allows, such as "https" or "pipe"; plain files need none.

    Raises:
        ValueError: The pattern names no shard, too many, or one whose scheme is not allowed.
    """

    def __init__(self, kind: Kind, pattern: str, seed: int, allow_schemes: Collection[str] = ()) -> None:
        self.kind = kind
        self.seed = seed
        self.allow_schemes = tuple(allow_schemes)
        self.urls = expand_urls(pattern, self.allow_schemes)
        self._told = set[tuple[str, str]]()
        if not self.urls:
            raise ValueError(f"data.shards: {pattern} names no shard")

    def read(self, reader: int, readers: int, place: StreamPosition) -> Iterator[tuple[ShardSample, StreamPosition]]:
        """Yield a reader's samples from a position on, without end, each with the position after it.

        If a shard breaks off, warn and continue with the next one.

        Args:
            reader: Number of the reader, from 0.
            readers: Number of readers.
            place: Position to start from.

        Raises:
            DataError: A whole epoch has no sample.
        """
        found, whole = 0, place == StreamPosition(place.epoch)
        while True:
            order = np.random.default_rng([self.seed, _NUMBER[self.kind], place.epoch]).permutation(len(self.urls))[reader::readers]
            for number in range(place.shard, len(order)):
                for member, count in self._members(self.urls[order[number]], behind=place.sample):
                    found += 1
                    yield member, StreamPosition(place.epoch, number, count)
                place = StreamPosition(place.epoch, number + 1)
            if whole and not found:
                raise DataError(f"data.shards: no {self.kind} in {self.urls[order[0]]} and the {len(order) - 1} other shards of a reader")
            found, whole, place = 0, True, StreamPosition(place.epoch + 1)

    def _members(self, url: str, behind: int) -> Iterator[tuple[ShardSample, int]]:
        count = 0
        try:
            for sample in group_by_keys(self._files(url, open_shard(url, self.allow_schemes))):
                ending = next((ending for ending in sample if ending in _ENDINGS[self.kind]), None)
                if ending is None:
                    continue
                count += 1
                if count > behind:
                    member = _member(sample, ending)
                    if member.finding:
                        self._tell(url, "finding", f"{member.name} (and perhaps others of this shard): not used: {member.finding}")
                    yield member, count
        # tarfile, the process behind a pipe, and a bad member name each raise their own exceptions.
        except Exception as error:
            warnings.warn(f"{url}: could be read as far as {count} {self.kind}s: {error}", stacklevel=2)

    def _files(self, url: str, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
        """Yield the plain members of a shard that a sample may have, each with its content. Of two members for one thing, the first.

        Raises:
            tarfile.TarError: The shard is damaged, or a member is larger than `MAX_MEDIA_BYTES`.
        """
        sample, names = "", dict[str, str]()  # of the sample: the member of each ending
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=BoundedTarInfo) as shard:
            for member in shard:
                ending = member.name.rpartition("/")[2].partition(".")[2].lower()
                shard.members = []  # type: ignore[attr-defined]  # tarfile remembers each member, for random access
                wanted = ending in VIDEOS | IMAGES or ending in ("txt", "cls", "json")
                hidden = re.match(r"__[^/]*__/", member.name)  # webdataset's own notes
                if hidden or not wanted or not member.isreg() or member.issparse():
                    continue
                if member.size > (MAX_MEDIA_BYTES if ending in VIDEOS | IMAGES else MAX_TEXT_BYTES):
                    self._tell(url, "size", f"{url}: {member.name[:200]} has {member.size:,} bytes, too many: left out")
                    continue
                # A text and its clip may have been written on two systems.
                name = unify(member.name)
                if (key := name[: -len(ending)]) != sample:
                    sample, names = key, {}
                if (first := names.setdefault(ending, member.name)) is not member.name:
                    two = f"two {'texts' if ending == 'txt' else 'members'}, {first[:200]!a} and {member.name[:200]!a}"
                    self._tell(url, "two", f"{url} (and perhaps others of this shard): {two}: the first is used; keep one")
                    continue
                content = shard.extractfile(member)
                assert content is not None
                yield {"fname": name, "data": content.read(), "__url__": url}

    def _tell(self, url: str, topic: str, text: str) -> None:
        """Warn of a shard, but of a topic only once, as every epoch reads the shard again."""
        if (url, topic) not in self._told:
            self._told.add((url, topic))
            warnings.warn(text, stacklevel=3)


def _member(sample: Mapping[str, Any], ending: str) -> ShardSample:
    said: dict[str, dict[str, Any]] = {}
    for part in ("json", "txt", "cls"):
        try:
            said[part] = read_words(sample[part], part) if part in sample else {}
        except UntrustedError as error:  # without the words that cannot be read, the clip is as good as before
            said[part] = unused_words(part, str(error))
    words = join_words(said)
    label, findings = words.get("label", NO_LABEL), words["findings"]
    fault = findings.get("label", "")
    if isinstance(label, str):
        fault = f'label "{label[:40]}" is a name: write numbers, or index the shards, which numbers the names (python -m walt_pl index)'
        label = NO_LABEL
    name = f"{sample['__url__']}/{sample['__key__']}.{ending}"
    caption, more = words.get("caption", ""), words.get("more_captions", ())
    unused = "; ".join(f"{field}: {reason}" for field, reason in findings.items())
    return ShardSample(name, sample[ending], caption, label, more, unused, "" if label != NO_LABEL else fault)


@dataclass(frozen=True)
class StreamConfig:
    """The shards of each kind, and this rank's part of the batch."""

    shards: Mapping[Kind, ShardStream]
    per_batch: Mapping[Kind, int]
    """Clips and images of the global batch."""
    clip_transform: ClipTransform
    rank: int
    ranks: int
    num_workers: int
    """Processes of a rank. With 0, the training process is the one reader of the rank."""
    patience: float = 60.0
    """Seconds without a sign of life after which a worker is ended, and all begin again where they were."""
    num_classes: int | None = None
    """Classes of the model; None for a model without classes."""

    @property
    def readers(self) -> int:
        """Return the number of readers of all ranks."""
        return self.ranks * max(1, self.num_workers)

    @property
    def own(self) -> range:
        """Return the numbers of the readers of this rank."""
        return range(self.readers // self.ranks * self.rank, self.readers // self.ranks * (self.rank + 1))

    def identity(self) -> str:
        """Return a hash of everything that gives a position its meaning: shards, their order, ranks and workers."""
        listed = [(kind, shards.urls, shards.seed) for kind, shards in self.shards.items()]
        return hashlib.sha256(repr((listed, self.ranks, self.num_workers)).encode()).hexdigest()


class _Stream(IterableDataset[tuple[int, dict[Kind, StreamPosition], Answer]]):
    """The batches of one worker. Each comes with the number of the reader and the reader's positions after the batch."""

    def __init__(self, reading: StreamConfig, places: Mapping[int, Mapping[Kind, StreamPosition]], turn: int) -> None:
        self._reading = reading
        self._places = places
        self._turn = turn

    def __iter__(self) -> Iterator[tuple[int, dict[Kind, StreamPosition], Answer]]:
        reading, info = self._reading, get_worker_info()
        # The DataLoader asks worker 0 first, but after a resume the next batch may be another worker's.
        worker = 0 if info is None else (info.id + self._turn) % info.num_workers
        reader = reading.own[worker]
        places = {kind: StreamPosition(*self._places.get(reader, {}).get(kind, ())) for kind in reading.shards}
        streams = {kind: shards.read(reader, reading.readers, places[kind]) for kind, shards in reading.shards.items()}
        while True:
            samples = []
            first_index = 0
            for kind, per_batch in reading.per_batch.items():
                share = per_batch // reading.ranks
                for global_batch_index in range(first_index + reading.rank * share, first_index + (reading.rank + 1) * share):
                    member, places[kind] = next(streams[kind])
                    draw = SampleRef(kind, zlib.crc32(member.name.encode()), places[kind].epoch, global_batch_index)
                    samples.append(_read_sample(member, draw, reading))
                first_index += per_batch
            yield reader, dict(places), collate(samples)


class _Always(Sequence[IndexEntry]):
    """A sequence with one entry at every position."""

    def __init__(self, entry: IndexEntry) -> None:
        self._entry = entry

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: Any) -> Any:
        return self._entry


def _read_sample(member: ShardSample, draw: SampleRef, reading: StreamConfig) -> Sample:
    """Decode a clip. For a class-conditional model, one without a class of the model fails like one that cannot be read."""
    classes = reading.num_classes
    if classes is None or 0 <= member.label < classes:
        return _decode_sample(member, draw, reading.clip_transform)
    found = member.fault or ("no label" if member.label < 0 else f"label {member.label}")
    entry = _Always(_entry(member, Path(member.name), draw.kind, reading.clip_transform))
    reason = f"{member.name}: {found}, the model has the classes 0 to {classes - 1} (model.denoiser.num_classes)"
    # The network wants a class even for a sample of weight 0.
    return replace(PixelDataset(entry, entry, reading.clip_transform).replace_failed(draw, reason), path=member.name, label=0)


def _entry(member: ShardSample, file: Path, kind: Kind, clip_transform: ClipTransform) -> IndexEntry:
    # The length of the clip is unknown. An entry with `frames` frames is read from frame 0.
    frames = clip_transform.frames if kind == "video" else 1
    entry = IndexEntry(file, kind, frames, 0.0, 0, 0, member.caption, member.label, "train", len(member.content))
    return replace(entry, more_captions=member.more_captions)


def _decode_sample(member: ShardSample, draw: SampleRef, clip_transform: ClipTransform) -> Sample:
    """Decode a clip from its first frame on, by way of a temporary file, because decoders read files."""
    memory = Path("/dev/shm")
    with tempfile.NamedTemporaryFile(suffix=Path(member.name).suffix, dir=memory if memory.is_dir() else None) as file:
        file.write(member.content)
        file.flush()
        entry = _Always(_entry(member, Path(file.name), draw.kind, clip_transform))
        sample = PixelDataset(entry, entry, clip_transform, clip_transform.seed)[draw]
    return replace(sample, path=member.name, failure=sample.failure.replace(file.name, member.name))


def _as_it_is(batch: Any) -> Any:
    return batch


class StreamLoader(BatchLoader):
    """Load joint batches from tar shards, and resume at the position of every reader (see the text at the top of this file).

    Args:
        reading: The shards, and the part of them that this rank reads.

    Raises:
        ValueError: There are fewer shards than readers.
    """

    endless = True

    def __init__(self, reading: StreamConfig) -> None:
        super().__init__()
        for kind, shards in reading.shards.items():
            if len(shards.urls) < reading.readers:
                raise ValueError(
                    f"data.shards: {len(shards.urls)} {kind} shards cannot be dealt out to {reading.readers} readers "
                    f"({reading.ranks} ranks, data.num_workers {reading.num_workers}): use fewer workers or write smaller shards"
                )
        self._reading = reading
        self._places: dict[int, dict[Kind, StreamPosition]] = {}
        self._turn = 0

    def __len__(self) -> int:
        """Return the number of batches that count as an epoch."""
        return EPOCH

    def _answers(self) -> Generator[Answer, None, None]:
        workers, deaths = self._reading.num_workers, 0
        while True:
            with contextlib.closing(watched(self._loader(), self._reading.patience)) as batches:
                try:
                    for reader, places, answer in batches:
                        self._places[reader] = places
                        self._turn = (self._turn + 1) % max(1, workers)
                        deaths = 0
                        yield answer
                    return
                except LostWorker as lost:
                    deaths += 1
                    begin_again(lost, deaths)

    def _loader(self) -> DataLoader[Any]:
        """Return a loader that begins at the present positions."""
        workers = self._reading.num_workers
        return DataLoader(
            _Stream(self._reading, self._places, self._turn),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            multiprocessing_context=forkserver() if workers else None,
            worker_init_fn=WorkerSigns(workers),
            generator=torch.Generator(),  # its own: iterating draws a seed, which would change the state of the global one
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the positions of the readers of all ranks. Every rank must call this, because it gathers over ranks."""
        places = {r: {kind: tuple(place) for kind, place in self._places[r].items()} for r in self._reading.own if r in self._places}
        if torch.distributed.is_initialized():
            of_ranks: list[Any] = [None] * self._reading.ranks
            torch.distributed.all_gather_object(of_ranks, places)
            places = {reader: place for of_rank in of_ranks for reader, place in of_rank.items()}
        return {"places": places, "turn": self._turn, "reading": self._reading.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state. Warn where the shards or the number of readers differ: then new epochs begin."""
        self.restart()
        self._places, self._turn = {}, 0
        if state["reading"] == self._reading.identity():
            self._places = {reader: {kind: StreamPosition(*place) for kind, place in of.items()} for reader, of in state["places"].items()}
            self._turn = state["turn"]
            return
        began = {kind: [StreamPosition(*of[kind]).epoch for of in state["places"].values() if kind in of] for kind in self._reading.shards}
        following = {kind: StreamPosition(max(epochs, default=-1) + 1) for kind, epochs in began.items()}
        self._places = {reader: dict(following) for reader in self._reading.own}
        warnings.warn(
            "the checkpoint was written with other shards or with another number of ranks or workers: the interrupted epochs are not "
            "finished, new ones begin. An index of the shards (python -m walt_pl index) resumes exactly on any number of them",
            stacklevel=2,
        )
