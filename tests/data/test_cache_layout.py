"""The key of a cache names everything that its latents depend on, and each selection of clips has a folder."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.clips import entry_of
from walt_pl.data import cache_layout
from walt_pl.data.cache import Encode, LatentCache
from walt_pl.data.cache_layout import bucket_caches, cache_key
from walt_pl.data.index import Index, write_index
from walt_pl.data.selection import Bucket, select
from walt_pl.data.transforms import ClipTransform, PixelDataset
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.writing import write_video

PLAIN = ClipTransform(16, frames=5, views=2)
CHANGED = {
    "background": replace(PLAIN, decoding=DecodeOptions(background=(10, 20, 200))),
    "deinterlace": replace(PLAIN, decoding=DecodeOptions(deinterlace=True)),
    "fps": replace(PLAIN, fps=8.0),
    "stride": replace(PLAIN, stride=2),
    "flip": replace(PLAIN, flip=not PLAIN.flip),
    "size": replace(PLAIN, size=32),
}


def key_of(transform: ClipTransform) -> dict[str, object]:
    return cache_key(transform, "train", "vae", "index", torch.float32)


def changed_names(first: dict[str, object], second: dict[str, object]) -> list[str]:
    return [name for name in {**first, **second} if first.get(name) != second.get(name)]


@pytest.mark.parametrize("name", CHANGED)
def test_cache_key_changes_with_each_option_that_changes_latents(name: str) -> None:
    assert changed_names(key_of(PLAIN), key_of(CHANGED[name])) == [name]


def test_cache_key_names_the_version_of_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(PLAIN)
    monkeypatch.setattr(cache_layout, "_READING", cache_layout._READING + 1)
    assert changed_names(before, key_of(PLAIN)) == ["reading"]


@pytest.mark.parametrize("name", CHANGED)
def test_latent_cache_of_each_key_is_found_again_and_opens(name: str, tmp_path: Path) -> None:
    transform = CHANGED[name]
    write_video(tmp_path / "a.mp4", torch.randint(256, (12, 32, 32, 3), dtype=torch.uint8).numpy(), fps=8)
    source = PixelDataset([entry_of(tmp_path / "a.mp4")], [], transform)
    encoded = []

    def encode(x: Tensor) -> Tensor:
        encoded.append(len(x))
        return x[:, :1, ::2, ::4, ::4]

    def make_encoder() -> Encode:
        return encode

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            LatentCache(tmp_path / "cache", key_of(transform), 1, views=2).build(source, "video", make_encoder, batch_size=2)
        opened = LatentCache(tmp_path / "cache", key_of(transform), 1, views=2)
        opened.open()
    assert encoded == [2], "the second start encodes nothing"
    assert opened.read(0, 0)[1] == ""


TRANSFORM = ClipTransform(32, frames=9)


def write_clips(labels: list[int], out: Path) -> Path:
    size = {"frames": 17, "fps": 8.0, "width": 32, "height": 32, "caption": "", "bytes": 1, "duration": 2.125, "split": "train"}
    write_index([{"path": f"{n}.mp4", "kind": "video", "label": label, **size} for n, label in enumerate(labels)], out)
    return out


def folder_of(index: Path, num_classes: int | None, quarantined: list[int]) -> tuple[str, int]:
    """Return the name of the folder that has the latents of the clips, and their number."""
    entries, marked = {"video": Index(index, "train").videos}, {"video": np.array(quarantined, np.int64)}
    selections = select(entries, TRANSFORM, [Bucket(32, 32)], marked, num_classes=num_classes)  # type: ignore[arg-type]
    (cache,) = bucket_caches(Path("train"), {}, TRANSFORM, selections, 0).values()
    count = cache.key["count"]
    assert isinstance(count, int)
    return cache.folder.parent.name, count


@pytest.mark.parametrize("quarantined", [[], [7], [8], [7, 8], [2, 7, 8], list(range(1, 9))])
def test_bucket_caches_of_classes_has_a_folder_of_its_own_whatever_is_quarantined(tmp_path: Path, quarantined: list[int]) -> None:
    index = write_clips([0, 1, 2, 0, 1, 2, 0, -1, 9], tmp_path / "i.parquet")
    assert folder_of(index, None, quarantined) == ("train", 9)
    found = folder_of(index, 3, quarantined)
    assert found == folder_of(index, 3, []) and found[0].startswith("train-") and found[1] == 7


@pytest.mark.parametrize("quarantined", [[], [3]])
def test_bucket_caches_of_fitting_labels_keeps_the_folder_of_a_stage_without_classes(tmp_path: Path, quarantined: list[int]) -> None:
    index = write_clips([0, 1, 2, 1], tmp_path / "i.parquet")
    assert folder_of(index, 3, quarantined) == folder_of(index, None, quarantined) == ("train", 4)
