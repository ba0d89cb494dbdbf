"""Cached latents are those that pixels would give; stale, unfinished and damaged caches are never read."""

import contextlib
import json
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from walt_pl.data import cache as cache_module
from walt_pl.data.batch import Kind, Sample, SampleRef
from walt_pl.data.cache import Encode, LatentCache, encode_batch_size
from walt_pl.data.index import Index, IndexEntry, write_index
from walt_pl.data.latent_dataset import LatentDataset
from walt_pl.data.transforms import ClipTransform, PixelDataset
from walt_pl.files import file_sha256
from walt_pl.media.writing import write_image, write_video

FRAMES, VIDEOS, IMAGES = 5, 7, 3
FRAMING = ClipTransform(16, FRAMES, views=2)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Seven clips of 8 frames, 24 x 32 pixels, the third of them broken, and three images."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(VIDEOS + IMAGES):
        kind = "video" if number < VIDEOS else "image"
        path = folder / f"{number}{'.mp4' if kind == 'video' else '.png'}"
        coarse = rng.integers(0, 256, (8, 3, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
        if kind == "video":
            write_video(path, coarse, fps=8)
        else:
            write_image(path, coarse[0])
        row = {"path": path.name, "kind": kind, "frames": 8 if kind == "video" else 1, "fps": 8.0, "width": 32}
        rows.append({**row, "height": 24, "caption": str(number), "label": number, "split": "train", "bytes": 1})
    (folder / "2.mp4").write_text("not a video")
    write_index(rows, folder / "index.parquet")
    return Index(folder / "index.parquet", "train")


@pytest.fixture
def pixels(index: Index) -> PixelDataset:
    return PixelDataset(index.videos, index.images, FRAMING)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "SHARD_ROWS", 4)  # 14 rows of videos: shards of 4, 4, 4 and 2


class CountingEncoder:
    """Means of 4 x 4 pixels of every second frame, one channel; counts clips, and can be interrupted."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.clips = 0
        self.stop_after = stop_after

    def __call__(self, x: Tensor) -> Tensor:
        if self.clips >= self.stop_after:
            raise KeyboardInterrupt
        self.clips += len(x)
        return torch.nn.functional.avg_pool3d(x, (1, 4, 4), (2, 4, 4)).mean(dim=1, keepdim=True)

    def make(self) -> Encode:
        return self


def make(folder: Path, vae: str = "a", kind: Kind = "video") -> LatentCache:
    return LatentCache(folder, {"vae": vae}, VIDEOS if kind == "video" else IMAGES, views=2)


def build(cache: LatentCache, pixels: PixelDataset, stop_after: int = 10**9, kind: Kind = "video") -> int:
    """Builds and says how many clips were encoded."""
    encoder = CountingEncoder(stop_after)
    cache.build(pixels, kind, encoder.make, batch_size=3)
    return encoder.clips


def entries_of(index: Index) -> tuple[list[IndexEntry], list[IndexEntry]]:
    return list(index.videos), list(index.images)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_latent_cache_gives_the_latents_of_encoding_pixels(kind: Kind, pixels: PixelDataset, index: Index, tmp_path: Path) -> None:
    cache = make(tmp_path, kind=kind)
    build(cache, pixels, kind=kind)
    opened = make(tmp_path, kind=kind)
    opened.open()
    latents = LatentDataset(index.videos, index.images, {kind: opened}, {kind: opened})
    encode = CountingEncoder()
    seen = []
    for item in range(VIDEOS if kind == "video" else IMAGES):
        for epoch in range(3):
            draw = SampleRef(kind, item, epoch, global_batch_index=9)
            cached, direct = latents[draw], pixels[draw]
            wanted = encode(direct.content[None])[0].half().float()
            assert cached.failure == direct.failure
            assert cached.content.dtype == torch.float32 and cached.space == "latents"
            assert torch.equal(cached.content, torch.zeros_like(wanted) if direct.failure else wanted)
            assert cached.low_res is not None and torch.equal(cached.content, cached.low_res)
            assert (cached.caption, cached.label, cached.path) == (direct.caption, direct.label, direct.path)
            seen.append(cached.content)
    assert seen[0].shape == (1, 3 if kind == "video" else 1, 4, 4)
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])  # views 0, 1, 0


def test_latent_cache_stores_channels_last_latents_unchanged(pixels: PixelDataset, tmp_path: Path) -> None:
    def encode(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool3d(x, (1, 4, 4), (2, 4, 4)).contiguous(memory_format=torch.channels_last_3d)

    cache = make(tmp_path)
    cache.build(pixels, "video", lambda: encode, batch_size=3)
    wanted = encode(pixels[SampleRef("video", 1, 0, 0)].content[None])[0].half().float()
    assert torch.equal(cache.read(1, 0)[0], wanted)


def test_latent_cache_remembers_a_broken_clip_with_its_reason(pixels: PixelDataset, tmp_path: Path) -> None:
    build(make(tmp_path), pixels)
    cache = make(tmp_path)
    cache.open()
    latent, failure = cache.read(2, 0)
    assert "2.mp4" in failure and not latent.any()
    assert cache.read(1, 0)[1] == ""


def test_latent_cache_finished_is_not_built_again(pixels: PixelDataset, tmp_path: Path) -> None:
    assert build(make(tmp_path), pixels) == 2 * VIDEOS
    assert build(make(tmp_path), pixels) == 0


def test_latent_cache_interrupted_build_resumes_to_the_same_bytes(pixels: PixelDataset, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(make(tmp_path / "cut"), pixels, stop_after=6)
    with pytest.raises(RuntimeError, match="3 of 4 shards of latents are missing"):
        make(tmp_path / "cut").open()
    assert build(make(tmp_path / "cut"), pixels) == 2 * VIDEOS - 4
    build(make(tmp_path / "whole"), pixels)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def test_latent_cache_stale_is_rebuilt_and_never_read(pixels: PixelDataset, tmp_path: Path) -> None:
    build(make(tmp_path, vae="old"), pixels)
    with (
        pytest.warns(UserWarning, match=r"stale \(vae changed\)"),
        pytest.raises(RuntimeError, match="trained again while this stage"),
    ):
        make(tmp_path, vae="new").open()
    with pytest.warns(UserWarning, match=r"stale \(vae changed\)"):
        assert build(make(tmp_path, vae="new"), pixels) == 2 * VIDEOS
    make(tmp_path, vae="new").open()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.filterwarnings("ignore:.*this shard is rebuilt")
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_latent_cache_rebuilds_only_the_damaged_shard(damage: Callable[[Path], None], pixels: PixelDataset, tmp_path: Path) -> None:
    build(make(tmp_path), pixels)
    shard = tmp_path / "00001.f16"
    before = shard.read_bytes()
    damage(shard)
    assert build(make(tmp_path), pixels) == 4
    assert shard.read_bytes() == before


def test_latent_cache_warns_of_a_flipped_byte(pixels: PixelDataset, tmp_path: Path) -> None:
    build(make(tmp_path), pixels)
    flip(tmp_path / "00001.f16")
    with pytest.warns(UserWarning, match="00001.f16: SHA-256 .* this shard is rebuilt"):
        build(make(tmp_path), pixels)


@pytest.mark.filterwarnings("ignore:.*this shard is rebuilt")
@pytest.mark.parametrize("meanwhile", [False, True])
def test_latent_cache_hashes_its_shards_again_only_if_another_process_built_it(
    meanwhile: bool, pixels: PixelDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(make(tmp_path), pixels)
    flip(tmp_path / "00001.f16")
    hashed: list[str] = []

    def count(path: Path, *, fresh: bool) -> str:
        hashed.append(path.name)
        return file_sha256(path, fresh=fresh)

    def hold(*args: object, **words: object) -> contextlib.nullcontext[None]:
        monkeypatch.undo()
        monkeypatch.setattr(cache_module, "SHARD_ROWS", 4)
        if meanwhile:
            assert build(make(tmp_path), pixels) == 4
        monkeypatch.setattr(cache_module, "file_sha256", count)
        return contextlib.nullcontext()

    monkeypatch.setattr(cache_module, "file_sha256", count)
    monkeypatch.setattr(cache_module, "hold_lock", hold)
    assert build(make(tmp_path), pixels) == (0 if meanwhile else 4)
    assert len(hashed) == (8 if meanwhile else 4)


@pytest.mark.filterwarnings("ignore:.*this shard is rebuilt")
@pytest.mark.parametrize("place", [0, 5, -1])
def test_latent_cache_finds_a_flipped_byte_when_its_row_is_read(place: int, pixels: PixelDataset, tmp_path: Path) -> None:
    build(make(tmp_path), pixels)
    cache = make(tmp_path)
    cache.open()
    whole = [cache.read(item, view) for item in range(VIDEOS) for view in range(2)]
    shard = tmp_path / "00001.f16"
    data = np.memmap(shard, dtype=np.uint8, mode="r+")
    data[place] ^= 1  # the file keeps its size, and every row but one its latent
    data.flush()
    row = 7 if place == -1 else 4  # the last byte belongs to the checksum of the last row
    for number, (latent, failure) in enumerate(cache.read(item, view) for item in range(VIDEOS) for view in range(2)):
        if number == row:
            assert "00001.f16: row" in failure and "python -m walt_pl cache" in failure and not latent.any()
        else:
            assert failure == whole[number][1] and torch.equal(latent, whole[number][0])
    build(make(tmp_path), pixels)
    cache.open()
    assert torch.equal(cache.read(row // 2, row % 2)[0], whole[row][0])


def test_latent_cache_without_verify_reads_no_byte(pixels: PixelDataset, tmp_path: Path) -> None:
    build(make(tmp_path), pixels)
    flip(tmp_path / "00001.f16")
    encoder = CountingEncoder()
    make(tmp_path).build(pixels, "video", encoder.make, batch_size=3, verify=False)
    assert encoder.clips == 0


def make_some(folder: Path, items: list[int]) -> LatentCache:
    return LatentCache(folder, {"vae": "a"}, len(items), views=2, items=np.array(items))


def test_latent_cache_of_selected_items_holds_only_those(pixels: PixelDataset, index: Index, tmp_path: Path) -> None:
    assert build(make_some(tmp_path, [1, 3, 6]), pixels) == 6
    cache = pickle.loads(pickle.dumps(make_some(tmp_path, [1, 3, 6])))
    cache.open()
    encode = CountingEncoder()
    for item in (6, 1, 3):
        for view in range(2):
            wanted = encode(pixels[SampleRef("video", item, view, 0)].content[None])[0].half().float()
            assert torch.equal(cache.read(item, view)[0], wanted)
    with pytest.raises(AssertionError, match="item 2 is not in"):
        cache.read(2, 0)


def test_latent_cache_is_stale_with_other_items_and_rewrites_a_damaged_item_list(pixels: PixelDataset, tmp_path: Path) -> None:
    build(make_some(tmp_path, [1, 3, 6]), pixels)
    with pytest.warns(UserWarning, match=r"stale \(items changed\)"):
        assert build(make_some(tmp_path, [1, 3, 5]), pixels) == 6
    flip(tmp_path / "items.i64")
    with pytest.raises(RuntimeError, match=r"items\.i64 is damaged"):
        make_some(tmp_path, [1, 3, 5]).open()
    assert build(make_some(tmp_path, [1, 3, 5]), pixels) == 0
    make_some(tmp_path, [1, 3, 5]).open()


def test_latent_cache_skips_quarantined_clips_and_encodes_them_when_released(pixels: PixelDataset, tmp_path: Path) -> None:
    encoder = CountingEncoder()
    make(tmp_path).build(Forbidden(pixels, {4}), "video", encoder.make, batch_size=3, skip={4: "corrupt: cannot be decoded"})
    cache = make(tmp_path)
    cache.open()
    assert cache.read(4, 0)[1] == "quarantined: corrupt: cannot be decoded" and not cache.read(4, 0)[0].any()
    assert build(cache, pixels) == 4  # the shard with both views of clip 4
    cache.open()
    assert cache.read(4, 0)[1] == "" and cache.read(4, 0)[0].any()
    assert build(make(tmp_path), pixels) == 0
    make(tmp_path).build(pixels, "video", encoder.make, batch_size=3, skip={5: "later"})
    assert cache.read(5, 0)[1] == ""


class Forbidden:
    """Clips of which some must not be read."""

    def __init__(self, pixels: PixelDataset, items: set[int]) -> None:
        self.pixels, self.items = pixels, items

    def __getitem__(self, draw: SampleRef) -> Sample:
        assert draw.item not in self.items
        return self.pixels[draw]

    def replace_failed(self, draw: SampleRef, reason: str) -> Sample:
        return self.pixels.replace_failed(draw, reason)


class Deadly(Forbidden):
    """Clips of which some kill whoever reads them."""

    def __getitem__(self, draw: SampleRef) -> Sample:
        if draw.item in self.items:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.pixels[draw]


def test_latent_cache_replaces_readers_that_a_clip_kills_and_lists_the_clip(pixels: PixelDataset, tmp_path: Path) -> None:
    encoder = CountingEncoder()
    with pytest.warns(UserWarning, match="4.mp4: its worker was killed by SIGKILL"):
        make(tmp_path / "some").build(Deadly(pixels, {4}), "video", encoder.make, batch_size=3, readers=2)
    build(make(tmp_path / "all"), pixels)
    some, whole = make(tmp_path / "some"), make(tmp_path / "all")
    some.open()
    whole.open()
    for item in range(VIDEOS):
        latent, failure = some.read(item, 0)
        assert "killed by SIGKILL" in failure if item == 4 else failure == whole.read(item, 0)[1]
        assert torch.equal(latent, torch.zeros_like(latent) if item == 4 else whole.read(item, 0)[0])


def test_latent_cache_closes_old_memory_maps(pixels: PixelDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_MAPS", 2)
    build(make(tmp_path), pixels)
    cache = make(tmp_path)
    cache.open()
    first = [cache.read(item, 0)[0] for item in range(VIDEOS)]
    assert all(torch.equal(cache.read(item, 0)[0], first[item]) for item in range(VIDEOS))
    assert len(cache._maps) == 2


def test_latent_cache_with_a_damaged_meta_file_is_rebuilt(pixels: PixelDataset, tmp_path: Path) -> None:
    build(make(tmp_path), pixels)
    (tmp_path / "meta.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged"):
        assert build(make(tmp_path), pixels) == 2 * VIDEOS
    assert json.loads((tmp_path / "meta.json").read_text())["key"]["vae"] == "a"


def test_latent_cache_build_removes_left_over_files(pixels: PixelDataset, tmp_path: Path) -> None:
    build(make(tmp_path), pixels)
    (tmp_path / "00001.f16").unlink()
    for name in (".00001.f16.17.tmp", ".meta.json.17.0123456789abcdef.tmp", "00009.f16"):
        (tmp_path / name).write_text("old")
    strangers = ["mine.f16", "notes.tmp"]
    for name in strangers:
        (tmp_path / name).write_text("of a person")
    build(make(tmp_path), pixels)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*(f"0000{n}.f16" for n in range(4)), "meta.json", *strangers])


def test_latent_cache_build_stops_with_the_reasons_when_nothing_is_readable(index: Index, tmp_path: Path) -> None:
    videos, images = entries_of(index)
    broken = PixelDataset([videos[2]] * VIDEOS, images, FRAMING)
    with pytest.raises(RuntimeError, match=r"(?s)none of the first 4 files.*2\.mp4"):
        build(make(tmp_path), broken)


def test_latent_cache_refuses_latents_beyond_float16(pixels: PixelDataset, tmp_path: Path) -> None:
    def diverged(x: Tensor) -> Tensor:
        return torch.full((len(x), 1, 1, 1, 1), 1e6)

    with pytest.raises(ValueError, match="do not fit float16: largest value 1e\\+06"):
        make(tmp_path).build(pixels, "video", lambda: diverged, batch_size=3)


def test_encode_batch_size_shrinks_as_clips_grow() -> None:
    sizes = [encode_batch_size(ClipTransform(size), "video") for size in (32, 64, 128, 512)]
    assert sizes == [16, 4, 1, 1]
    assert encode_batch_size(ClipTransform(32), "image") == 256
