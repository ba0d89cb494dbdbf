"""Tar shards read front to back: who reads what, and where a resume goes on."""

import io
import multiprocessing
import os
import re
import signal
import tarfile
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import webdataset
from PIL import Image

from tests.helpers import sources
from walt_pl.data.batch import DataError, JointBatch, Kind, SampleRef
from walt_pl.data.transforms import ClipTransform
from walt_pl.data.webdataset_loader import ShardSample, ShardStream, StreamConfig, StreamLoader, StreamPosition, _decode_sample
from walt_pl.media.decode_options import DecodeOptions
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


def test_stream_loader_animated_image_gets_weight_0_and_is_named(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (24, 16), (level, 0, 0)) for level in (0, 200)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    with webdataset.TarWriter(str(tmp_path / "images.tar")) as tar:
        tar.write({"__key__": "moves", "webp": (tmp_path / "a.webp").read_bytes()})
    loader = StreamLoader(reading({"image": str(tmp_path / "images.tar")}, per_batch={"image": 1}))
    with pytest.warns(UserWarning, match=r"images\.tar/moves\.webp: animated: a WEBP of 2 frames"):
        batch = next(iter(loader))
    assert batch.weight.tolist() == [0] and list(loader.failures) == [f"{tmp_path}/images.tar/moves.webp"]


def test_stream_loader_clip_without_a_class_of_the_model_gets_weight_0_and_is_named(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", np.zeros((3, 16, 24, 3), np.uint8), fps=8)
    content = (tmp_path / "clip.mp4").read_bytes()
    labels = {"good": "4.0", "high": "5", "name": "cat", "half": "3.5", "none": None}
    with webdataset.TarWriter(str(tmp_path / "clips.tar")) as tar:
        for key, label in labels.items():
            tar.write({"__key__": key, "mp4": content, **({} if label is None else {"cls": label})})
    whole = {"video": str(tmp_path / "clips.tar")}
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        loader = StreamLoader(reading(whole, per_batch={"video": 5}, num_classes=5))  # type: ignore[arg-type]
        batch = next(iter(loader))
    assert batch.weight.tolist() == [1, 0, 0, 0, 0] and batch.labels.tolist() == [4, 0, 0, 0, 0]
    found = {Path(path).stem: reason.partition(": ")[2] for path, reason in loader.failures.items()}
    wanted = "the model has the classes 0 to 4 (model.denoiser.num_classes)"
    assert found["high"] == f"label 5, {wanted}" and found["none"] == f"no label, {wanted}"
    assert 'label "cat" is a name: write numbers' in found["name"] and "label 3.5 is no whole number" in found["half"]
    free = next(iter(StreamLoader(reading(whole, per_batch={"video": 5}))))  # type: ignore[arg-type]
    assert free.weight.all(), "without classes, labels do not matter"


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


def test_decode_sample_of_a_stream_squares_the_pixels_and_deinterlaces(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.ts"), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+ilme+ildct"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 128, 128, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        for time in range(6):
            picture = np.zeros((128, 128, 3), np.uint8)
            for field in (0, 1):
                left = 8 * time + 4 * field
                picture[32 + field : 96 : 2, left : left + 32] = 255  # seen: 64 x 64
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    member = ShardSample("000.ts", (tmp_path / "a.ts").read_bytes(), "", -1)
    combs = []
    for deinterlace in (False, True):
        transform = ClipTransform(128, frames=3, aspect=2.0, decoding=DecodeOptions(deinterlace=deinterlace))
        sample = _decode_sample(member, SampleRef("video", 0, 0, 0), transform)
        assert not sample.failure and sample.content.shape == (3, 3, 128, 256)
        frame = sample.content[:, 0].mean(0).numpy()
        rows, columns = ((frame > 0).sum(axis).max() for axis in (0, 1))
        assert abs(rows - 64) <= 1 and abs(columns - 64) <= 2, "a square, not cut off at the sides"
        combs.append(np.abs(frame[40:88] - (frame[39:87] + frame[41:89]) / 2).mean())
    assert combs[0] > 0.02 > 10 * combs[1], combs


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two shards of three pictures with three captions each."""
    folder = tmp_path_factory.mktemp("captioned")
    write_image(folder / "a.png", np.zeros((16, 16, 3), np.uint8))
    for number in range(2):
        with webdataset.TarWriter(str(folder / f"{number}.tar")) as shard:
            for item in range(3):
                captions = [f"{number}{item} {word}" for word in ("one", "two", "three")]
                shard.write({"__key__": f"{item}", "png": (folder / "a.png").read_bytes(), "json": {"caption": captions}})
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_loader_draws_one_of_several_captions_and_resumes(
    workers: int, captioned: Path, loaders: list[StreamLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(captioned)  # the name of a file, with its folder, determines the draw
    shards: dict[Kind, str] = {"image": "{0..1}.tar"}
    for seed in (3, 3, 4):
        settings: dict[str, Any] = {"per_batch": {"image": 2}, "clip_transform": ClipTransform(16, frames=3, seed=seed)}
        loaders.append(StreamLoader(reading(shards, workers=workers, **settings)))
    whole = list(islice(loaders[0], 60))
    captions = [caption for batch in whole for caption in batch.captions]
    counts = Counter(caption.partition(" ")[2] for caption in captions)
    assert len(set(captions)) == 18 and min(counts.values()) > 25, "120 draws among three"
    start = list(islice(loaders[1], 20))
    loaders[2].load_state_dict(loaders[1].state_dict())
    assert told(start) == told(whole[:20])
    assert told(list(islice(loaders[2], 20))) != told(whole[20:40]), "another seed draws otherwise"
    loaders.append(StreamLoader(reading(shards, workers=workers, **settings | {"clip_transform": ClipTransform(16, frames=3, seed=3)})))
    loaders[3].load_state_dict(loaders[1].state_dict())
    assert told(list(islice(loaders[3], 20))) == told(whole[20:40])


def test_shard_stream_warns_once_of_captions_that_are_not_used(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as shard:
        for item in range(3):
            shard.write({"__key__": f"{item}", "png": b"png", "json": {"caption": 5}, "cls": item})
    with pytest.warns(UserWarning, match="caption: it must be text, or a list of texts") as warned:
        found = list(islice(ShardStream("image", str(tmp_path / "a.tar"), seed=1).read(0, 1, StreamPosition()), 9))
    lines = [str(warning.message) for warning in warned if "not used" in str(warning.message)]
    assert len(lines) == 1 and "a.tar/0.png" in lines[0]
    assert [(member.label, member.caption) for member, _ in found] == [(0, ""), (1, ""), (2, "")] * 3


@pytest.mark.parametrize("names", [("a.txt", "a.TXT"), ("\xfc.txt", unicodedata.normalize("NFD", "\xfc.txt")), ("a.mp4", "a.MP4")])
def test_shard_stream_uses_the_first_of_two_members_and_says_so_once(names: tuple[str, str], tmp_path: Path) -> None:
    first, second = names
    stem = first.partition(".")[0]
    members = {f"{stem}.mp4": b"one", f"{stem}.txt": b"one", second: b"two", "b.mp4": b"one", "b.txt": b"one", "b.TXT": b"two"}
    stream = ShardStream("video", str(sources.shard(tmp_path / "s.tar", members)), seed=0)
    noun = "members" if first.endswith("mp4") else "texts"
    words = f"s.tar (and perhaps others of this shard): two {noun}, {first!a} and {second!a}: the first is used; keep one"
    with pytest.warns(UserWarning, match=re.escape(words)) as warned:
        found = [(member.content, member.caption) for member, _ in islice(stream.read(0, 1, StreamPosition()), 6)]
    assert found == [(b"one", "one")] * 6 and sum(warning.category is UserWarning for warning in warned) == 1


def test_stream_loader_counts_clips_of_weight_0_whatever_the_reason(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((16, 16, 3), np.uint8))
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        tar.write({"__key__": "high", "png": (tmp_path / "a.png").read_bytes(), "cls": 7})
        tar.write({"__key__": "bad", "png": b"none", "cls": 1})
    loader = StreamLoader(reading({"image": str(tmp_path / "a.tar")}, per_batch={"image": 2}, num_classes=5))
    with pytest.warns(UserWarning, match="label 7, .* .clips and images of weight 0 so far: 1; each keeps its place in the batch"):
        assert next(iter(loader)).weight.tolist() == [0, 0]


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
    with pytest.warns(UserWarning, match=r"a\.tar/l\.mp4 .*: not used: caption: not UTF-8.*iconv") as caught:
        captions = [member.caption for member, _ in islice(stream.read(0, 1, StreamPosition()), 4)]
    assert captions == ["caf\xe9 noir", "th\xe9", "", "a cat"]
    assert sum("not used" in str(warning.message) for warning in caught) == 1, "once a shard"
