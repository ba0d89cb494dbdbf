"""meta.json of a cache: damage and hostile content."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from walt_pl.data.cache import LatentCache, Shard
from walt_pl.data.cache_meta import dump_meta, read_meta

KEY = {"vae": "a", "split": "train"}


def cache(folder: Path) -> LatentCache:
    return LatentCache(folder, KEY, 300)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Return the meta.json of a cache of two shards, of which the first has broken rows."""
    of = cache(tmp_path)
    of.shape = (2, 1, 1, 1)
    of.shards = [Shard("0" * 64, {9: "corrupt", 10: "quarantined: mine"}), Shard("1" * 64)]
    of._write_meta()
    for number, rows in enumerate((256, 44)):
        (tmp_path / f"{number:05d}.f16").write_bytes(bytes(rows * 8))
    return tmp_path / "meta.json"


def test_latent_cache_loads_what_it_wrote(written: Path) -> None:
    of = cache(written.parent)
    of.open()
    assert of.shards == [Shard("0" * 64, {9: "corrupt", 10: "quarantined: mine"}), Shard("1" * 64)]


def test_latent_cache_takes_a_meta_file_of_an_older_version(written: Path) -> None:
    meta = json.loads(written.read_text())
    del meta["sha256"]
    written.write_text(json.dumps(meta))
    cache(written.parent).open()


def test_latent_cache_finds_every_flipped_bit_of_its_meta_file(written: Path) -> None:
    whole, wanted, random = written.read_bytes(), read_meta(written, 300), Random(0)
    for position in random.sample(range(len(whole)), 150):
        data = bytearray(whole)
        data[position] ^= 1 << random.randrange(8)
        written.write_bytes(data)
        try:
            found = read_meta(written, 300)
        except ValueError:
            continue
        assert found == wanted, f"byte {position}"  # white space


def test_read_meta_takes_as_many_bytes_as_the_rows_may_need(tmp_path: Path) -> None:
    meta = {"key": KEY, "shape": [1], "shards": [{"sha256": "0", "broken": {"7": "x" * (65 << 20)}}]}
    (tmp_path / "meta.json").write_bytes(dump_meta(meta))
    assert read_meta(tmp_path / "meta.json", 1 << 20) == meta
    with pytest.raises(ValueError, match=r"more than .* bytes"):
        read_meta(tmp_path / "meta.json", 300)
    of = LatentCache(tmp_path, KEY, 1 << 20)
    with pytest.warns(UserWarning, match="is stale"):  # it is read as far as its key
        of._load(verify=False)


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "row 10^30": lambda meta: meta["shards"][0]["broken"].update({str(10**30): "x"}),
    "row of another shard": lambda meta: meta["shards"][0]["broken"].update({"280": "x"}),
    "negative row": lambda meta: meta["shards"][0]["broken"].update({"-1": "x"}),
    "reason that is a number": lambda meta: meta["shards"][0]["broken"].update({"1": 5}),
    "hash that is a list": lambda meta: meta["shards"][0].update(sha256=[]),
    "more shards": lambda meta: meta["shards"].append(None),
    "no shards": lambda meta: meta.update(shards=[]),
    "shards that are words": lambda meta: meta.update(shards="many"),
    "negative shape": lambda meta: meta.update(shape=[-2, -1, 1, 1]),
    "shape 10^30": lambda meta: meta.update(shape=[10**30]),
    "shape of words": lambda meta: meta.update(shape=["2"]),
    "shape of booleans": lambda meta: meta.update(shape=[True, 2]),
    "shape that is not a number": lambda meta: meta.update(shape=[float("nan")]),
    "large shape": lambda meta: meta.update(shape=[2**20, 2**20]),
    "key of words": lambda meta: meta.update(key="vae"),
    "no shape": lambda meta: meta.pop("shape"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_latent_cache_counts_a_hostile_meta_file_as_missing(written: Path, name: str) -> None:
    meta = copy.deepcopy(json.loads(written.read_text()))
    del meta["sha256"]
    HOSTILE[name](meta)
    written.write_bytes(dump_meta(meta))
    of = cache(written.parent)
    with pytest.warns(UserWarning, match=r"meta\.json.* is damaged.*: the latents are computed anew"):
        of._load(verify=False)
    assert of.shards == [None, None]


@pytest.mark.parametrize("kind", ["deep", "pipe", "words", "surrogate"])
def test_latent_cache_counts_a_meta_file_that_cannot_be_read_as_missing(written: Path, kind: str) -> None:
    written.unlink()
    if kind == "pipe":
        os.mkfifo(written)
    else:
        written.write_text({"deep": "[" * 100_000, "words": "{", "surrogate": '{"key": "\\ud800"}'}[kind])
    of = cache(written.parent)
    with pytest.warns(UserWarning, match=r"meta\.json.* is damaged.*: the latents are computed anew"):
        of._load(verify=False)
    assert of.shards == [None, None]
