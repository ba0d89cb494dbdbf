"""Tar shards read front to back: who reads what, and where a resume goes on."""

import io
import multiprocessing
import os
import signal
import tarfile
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from tests.helpers import sources
from walt_pl.data.batch import DataError, JointBatch, Kind
from walt_pl.data.transforms import ClipTransform
from walt_pl.data.webdataset_loader import ShardStream, StreamConfig, StreamLoader, StreamPosition
from walt_pl.media.writing import write_image, write_video

FRAMING = ClipTransform(16, frames=3)
SIZES = (3, 5, 2, 4, 3, 1)  # samples of the shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, str]:
    """Six shards of clips and six of images, as webdataset's own writer leaves them; number n of a kind has label n."""
    folder = tmp_path_factory.mktemp("shards")
    number = 0
    for shard, size in enumerate(SIZES):
        with (
            webdataset.TarWriter(str(folder / f"clips-{shard}.tar")) as clips,
            webdataset.TarWriter(str(folder / f"pictures-{shard}.tar")) as images,
        ):
            for _ in range(size):
                picture = np.full((3, 16, 24, 3), 5 * number, np.uint8)
                write_video(folder / "clip.mp4", picture, fps=8)
                write_image(folder / "picture.png", picture[0])
                words = {"__key__": f"{number:03d}", "txt": f"number {number}", "cls": number}
                clips.write({**words, "mp4": (folder / "clip.mp4").read_bytes()})
                images.write({**words, "png": (folder / "picture.png").read_bytes()})
                number += 1
    return {"video": f"{folder}/clips-{{0..5}}.tar", "image": f"{folder}/pictures-{{0..5}}.tar"}


def read(
    shards: ShardStream, reader: int, readers: int, count: int, place: StreamPosition = StreamPosition()
) -> list[tuple[int, StreamPosition]]:
    return [(member.label, after) for member, after in islice(shards.read(reader, readers, place), count)]


@pytest.mark.parametrize("readers", [1, 2, 3, 6])
def test_shard_stream_readers_of_an_epoch_read_everything_once(readers: int, shards: dict[Kind, str]) -> None:
    found: Counter[tuple[int, int]] = Counter()
    for reader in range(readers):
        labels = read(ShardStream("video", shards["video"], seed=1), reader, readers, 60)
        found.update((after.epoch, label) for label, after in labels)
    assert set(found.values()) == {1}
    for epoch in range(2):
        assert {label for number, label in found if number == epoch} == set(range(sum(SIZES)))


def test_shard_stream_order_differs_by_epoch_and_seed(shards: dict[Kind, str]) -> None:
    orders = [[label for label, _ in read(ShardStream("video", shards["video"], seed), 0, 1, 36)] for seed in (1, 2)]
    assert orders[0][:18] != orders[0][18:] and orders[0] != orders[1]


@pytest.mark.parametrize("stop", range(1, 20))
def test_shard_stream_resumes_anywhere(stop: int, shards: dict[Kind, str]) -> None:
    of = ShardStream("video", shards["video"], seed=1)
    whole = read(of, 0, 2, 30)
    assert read(of, 0, 2, 30 - stop, whole[stop - 1][1]) == whole[stop:]


def test_shard_stream_samples_equal_those_of_webdataset(shards: dict[Kind, str]) -> None:
    ours = islice(ShardStream("image", shards["image"], seed=1).read(0, 1, StreamPosition()), sum(SIZES))
    theirs = webdataset.WebDataset(shards["image"], shardshuffle=False, empty_check=False)
    wanted = {int(sample["cls"]): (sample["png"], sample["txt"].decode()) for sample in theirs}
    assert {member.label: (member.content, member.caption) for member, _ in ours} == wanted


def test_shard_stream_warns_of_a_truncated_shard_and_reads_the_next(shards: dict[Kind, str], tmp_path: Path) -> None:
    first, second = (Path(str(shards["video"]).replace("{0..5}", str(number))) for number in (1, 0))
    cut = tmp_path / "cut.tar"
    with tarfile.open(first) as tar:
        end = tar.getmembers()[7].offset_data + 10  # inside of the third sample
    cut.write_bytes(first.read_bytes()[:end])
    of = ShardStream("video", f"{cut}::{second}", seed=0)
    with pytest.warns(UserWarning, match=r"cut\.tar: could be read as far as 2 videos"):
        labels = {label for label, after in read(of, 0, 1, 8) if after.epoch == 0}
    assert labels >= {0, 1, 2} and 3 in labels and 6 not in labels


def test_shard_stream_without_samples_raises(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "none.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("0.txt"), io.BytesIO())
    with pytest.raises(DataError, match=r"no video in .*none\.tar"):
        next(ShardStream("video", str(tmp_path / "none.tar"), 0).read(0, 1, StreamPosition()))


# The loader


def reading(shards: dict[Kind, str], rank: int = 0, ranks: int = 1, workers: int = 0, **changes: Any) -> StreamConfig:
    of = {kind: ShardStream(kind, pattern, 3) for kind, pattern in shards.items()}
    return StreamConfig(
        **{"shards": of, "per_batch": {"video": 2, "image": 4}, "clip_transform": FRAMING, **changes},
        rank=rank,
        ranks=ranks,
        num_workers=workers,
    )


@pytest.fixture
def loaders() -> Iterator[list[StreamLoader]]:
    made: list[StreamLoader] = []
    yield made
    for loader in made:
        loader.close()


def told(batches: list[JointBatch]) -> list[tuple[list[int], list[int], list[str]]]:
    return [(batch.labels.tolist(), batch.global_batch_index.tolist(), batch.captions) for batch in batches]


def test_stream_loader_batches_have_the_exact_ratio_and_ranks_share_the_slots(shards: dict[Kind, str]) -> None:
    pair = [list(islice(StreamLoader(reading(shards, rank, 2)), 12)) for rank in range(2)]
    for left, right in zip(*pair, strict=True):
        assert left.videos.shape == right.videos.shape == (1, 3, 3, 16, 16)
        assert left.images.shape == right.images.shape == (2, 3, 1, 16, 16)
        assert left.global_batch_index.tolist() == [0, 2, 3] and right.global_batch_index.tolist() == [1, 4, 5]
        assert left.weight.all() and right.weight.all()
        shown = (left.videos[0].mean() + 1) * 127.5
        assert abs(float(shown) - 5 * int(left.labels[0])) < 4, "a caption stays with its pixels"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4])
def test_stream_loader_resumes_with_as_many_readers(workers: int, stop: int, shards: dict[Kind, str], loaders: list[StreamLoader]) -> None:
    for _ in range(3):
        loaders.append(StreamLoader(reading(shards, workers=workers)))
    whole = list(islice(loaders[0], 8))
    start = list(islice(loaders[1], stop))
    loaders[2].load_state_dict(loaders[1].state_dict())
    assert told(start) + told(list(islice(loaders[2], 8 - stop))) == told(whole)


def test_stream_loader_warns_of_another_number_of_readers_and_begins_new_epochs(shards: dict[Kind, str]) -> None:
    one = StreamLoader(reading(shards))
    list(islice(one, 12))  # into the second pass
    two = StreamLoader(reading(shards, ranks=2))
    with pytest.warns(UserWarning, match="new ones begin. An index of the shards"):
        two.load_state_dict(one.state_dict())
    next(iter(two))
    assert {place["video"].epoch for place in two._places.values()} == {2}


def test_stream_loader_refuses_more_readers_than_shards(shards: dict[Kind, str]) -> None:
    with pytest.raises(ValueError, match=r"6 video shards cannot be dealt out to 8 readers \(2 ranks, data\.num_workers 4\)"):
        StreamLoader(reading(shards, ranks=2, workers=4))


def test_stream_loader_broken_member_gets_weight_0_and_is_named(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "clips.tar")) as tar:
        write_video(tmp_path / "clip.mp4", np.zeros((3, 16, 24, 3), np.uint8), fps=8)
        tar.write({"__key__": "good", "mp4": (tmp_path / "clip.mp4").read_bytes()})
        tar.write({"__key__": "bad", "mp4": b"not a video"})
    loader = StreamLoader(reading({"video": str(tmp_path / "clips.tar")}, per_batch={"video": 2}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batch = next(iter(loader))
    assert sorted(batch.weight.tolist()) == [0, 1]
    assert list(loader.failures) == [f"{tmp_path}/clips.tar/bad.mp4"]
    assert any("clips.tar/bad.mp4" in str(warning.message) and "/dev/shm" not in str(warning.message) for warning in caught)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_stream_loader_begins_again_where_it_was_when_a_worker_dies_or_stops(blow: int, shards: dict[Kind, str]) -> None:
    def make(workers: int) -> StreamLoader:
        streams = {kind: ShardStream(kind, pattern, seed=1) for kind, pattern in shards.items()}
        return StreamLoader(StreamConfig(streams, {"video": 1, "image": 2}, FRAMING, 0, 1, workers, patience=1))

    loader = make(2)
    found = []
    with pytest.warns(UserWarning, match="a worker of the tar shards was lost"):
        for batch in islice(loader, 12):
            found.append(batch.paths)
            if len(found) == 2:
                os.kill(multiprocessing.active_children()[0].pid or 0, blow)
    loader.close()
    unharmed = make(2)
    assert found == [batch.paths for batch in islice(unharmed, 12)]
    unharmed.close()


def test_shard_stream_reads_texts_by_the_rule_of_folders(tmp_path: Path) -> None:
    members = {
        "A.MP4": b"x",
        "A.TXT": "caf\xe9\u2028 noir\n".encode(),
        unicodedata.normalize("NFD", "\xe9.mp4"): b"x",
        "\xe9.txt": unicodedata.normalize("NFD", "th\xe9").encode(),
        "l.mp4": b"x",
        "l.txt": "caf\xe9".encode("latin1"),
        "u.mp4": b"x",
        "u.txt": "a dog".encode("utf-16"),
        "u.json": b'{"caption": "a cat"}',
    }
    stream = ShardStream("video", str(sources.shard(tmp_path / "a.tar", members)), seed=0)
    with pytest.warns(UserWarning, match=r"a\.tar: [lu]\.txt is not used: not UTF-8.*iconv") as caught:
        captions = [member.caption for member, _ in islice(stream.read(0, 1, StreamPosition()), 4)]
    assert captions == ["caf\xe9 noir", "th\xe9", "", "a cat"]
    assert sum("is not used" in str(warning.message) for warning in caught) == 2
