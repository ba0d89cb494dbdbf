"""NumPy files as sources of clips: mapped, never unpickled, and refused before their claims take memory."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from walt_pl.evaluation import array_source
from walt_pl.evaluation.clip_reading import cover_and_crop
from walt_pl.evaluation.source import ClipDraw
from walt_pl.evaluation.sources import open_source
from walt_pl.files import file_sha256

CLIPS = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 10, 3), np.uint8)


def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    """Return the header of an array of this shape, without values."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def write_zip(path: Path, name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "write",
    [
        lambda path: np.save(path.with_suffix(".npy"), CLIPS),
        lambda path: np.save(path.with_suffix(".npy"), np.asfortranarray(CLIPS)),
        lambda path: np.savez(path, arr_1=np.zeros(3), arr_0=CLIPS),
        lambda path: np.savez(path, samples=CLIPS),
        lambda path: np.savez_compressed(path, CLIPS),
    ],
    ids=["npy", "fortran", "npz", "one_array", "compressed"],
)
def test_array_source_reads_the_drawn_frames_of_every_layout(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "a.npz")
    (path,) = tmp_path.iterdir()
    source = open_source(str(path), "train")
    assert (len(source), source.lengths(), source.kinds(), source.names()) == (3, [6] * 3, ["video"] * 3, ["0", "1", "2"])
    read = source.read([ClipDraw(2, 1), ClipDraw(0, 0), ClipDraw(1, 2)], 2, 3, None)
    first, second, third = read.clips
    assert first is not None and torch.equal(first, torch.from_numpy(CLIPS[2, 1:5:3]))
    assert second is not None and torch.equal(second, torch.from_numpy(CLIPS[0, 0:4:3]))
    assert third is not None and torch.equal(third, torch.from_numpy(CLIPS[1, 2:6:3]))
    facts = source.facts()
    assert (facts["kind"], facts["sha256"], facts["shape"]) == ("array", file_sha256(path), [3, 6, 8, 10, 3])


def test_array_source_gives_a_reason_for_frames_beyond_the_end(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", CLIPS)
    read = open_source(str(tmp_path / "a.npy"), "train").read([ClipDraw(0, 3), ClipDraw(1, 2)], 4, 1, (4, 4))
    assert read.clips[0] is None and read.failures == {0: f"{tmp_path}/a.npy: clip 0: found 3 frames from frame 3 on, wanted 4"}
    assert read.clips[1] is not None and torch.equal(read.clips[1], cover_and_crop(CLIPS[1, 2:6], (4, 4)))


def test_array_source_takes_images_as_clips_of_one_frame(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", CLIPS[0])
    source = open_source(str(tmp_path / "a.npz"), "train")
    assert (source.lengths(), source.kinds()) == ([1] * 6, ["image"] * 6)
    (image,) = source.read([ClipDraw(4, 0)], 1, 1, None).clips
    assert image is not None and torch.equal(image, torch.from_numpy(CLIPS[0, 4:5]))


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_array_source_never_unpickles(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    np.save(tmp_path / "a.npy", np.array([Trap(mark)], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", np.array([Trap(mark)], object))
    (tmp_path / "b.npy").write_bytes(np.array([Trap(mark)], object).dumps())
    for name, message in [("a.npy", "values of type object, wanted uint8"), ("a.npz", "type object"), ("b.npy", "not clips")]:
        with pytest.raises(ValueError, match=message):
            open_source(str(tmp_path / name), "train")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (CLIPS / np.float32(255), r"values of type float32, wanted uint8 in 0\.\.255; write \(x \* 255\)\.round\(\)\.astype\('uint8'\)"),
        (CLIPS.astype(np.int64), r"values of type int64, wanted uint8 in 0\.\.255$"),
        (CLIPS.transpose(0, 1, 4, 2, 3).copy(), r"shape \[3, 6, 3, 8, 10\], wanted clips \[n t h w 3\] or images \[n h w 3\]$"),
        (CLIPS.transpose(0, 4, 1, 2, 3).copy(), r"shape \[3, 3, 6, 8, 10\], .*; transpose\(0, 2, 3, 4, 1\) brings"),
        (CLIPS[:0], r"shape \[0, 6, 8, 10, 3\], wanted clips"),
        (CLIPS[0, 0], r"shape \[8, 10, 3\], wanted clips"),
    ],
)
def test_array_source_refuses_other_values_and_shapes_with_the_wanted_ones(tmp_path: Path, array: Any, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", array)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=message):
            open_source(str(tmp_path / name), "train")


TERA = (1 << 20, 16, 256, 256, 3)
"""Shape of an array of 3 TB."""


def bomb(path: Path) -> None:
    """Write a compressed member that says in every header that it has 3 TB."""
    write_zip(path, "arr_0.npy", header(TERA) + bytes(1 << 20), zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    size = (len(header(TERA)) + (1 << 20)).to_bytes(4, "little")
    path.write_bytes(content.replace(size, (0xFFFFFFFE).to_bytes(4, "little")))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npy", lambda path: path.write_bytes(header(TERA) + bytes(100)), "has more bytes than the [0-9]+ of the file: it is truncated"),
        ("a.npy", lambda path: path.write_bytes(header((1, 1, 1 << 20, 1 << 20, 3))), "too large"),
        ("a.npy", lambda path: path.write_bytes(b"\x93NUMPY\1\0\x76\0" + b"{'descr': ((((".ljust(118)), "header is not one of NumPy"),
        ("a.npy", lambda path: path.write_bytes(b""), "the file is empty"),
        ("a.npz", lambda path: write_zip(path, "arr_0.npy", header(TERA) + bytes(100), zipfile.ZIP_DEFLATED), "it is truncated"),
        ("a.npz", lambda path: write_zip(path, "arr_0.npy", header(TERA) + bytes(100)), "it is truncated"),
        ("a.npz", bomb, r"is compressed and has 4,294,967,294 bytes, at most 4,2.* wanted; write it with np\.savez or np\.save"),
        ("a.npz", lambda path: write_zip(path, "arr_0.npy", header(TERA), zipfile.ZIP_LZMA), "compressed in another way"),
        ("a.npz", lambda path: write_zip(path, "a.txt", b"text"), r"it has the arrays \(none\), wanted one"),
        ("a.npz", lambda path: np.savez(path, a=CLIPS, b=CLIPS), "it has the arrays a, b, wanted one, or one named arr_0"),
        ("a.npz", lambda path: path.write_bytes(b"PK\3\4 no zip"), "not clips: File is not a zip file"),
        ("a.npy", lambda path: os.mkfifo(path), "no such file"),
    ],
)
def test_array_source_refuses_false_claims_before_it_takes_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path], None], message: str
) -> None:
    monkeypatch.setattr(array_source, "MAX_COMPRESSED_BYTES", (4 << 30) - 10)  # a header of 32 bits can claim more
    write(tmp_path / name)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            open_source(str(tmp_path / name), "train")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_array_source_maps_what_is_not_compressed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((40, 16, 64, 64, 3), np.uint8))
    np.savez(tmp_path / "a.npz", np.zeros((40, 16, 64, 64, 3), np.uint8))
    for name in ("a.npy", "a.npz"):
        tracemalloc.start()
        try:
            open_source(str(tmp_path / name), "train").read([ClipDraw(3, 0)], 16, 1, None)
            assert tracemalloc.get_traced_memory()[1] < 2 << 20  # a clip has 0.2 MB, the file 8 MB
        finally:
            tracemalloc.stop()
