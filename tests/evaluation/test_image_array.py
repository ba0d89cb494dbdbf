"""The array of images for ADM's evaluator."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.test_run_source import CAPTIONS, FakeClips, clip_of, draws
from walt_pl.evaluation.image_array import KeptImages, write_npz


def test_write_npz_gives_every_image_and_label_in_order(tmp_path: Path) -> None:
    source, path = FakeClips(), tmp_path / "new" / "images.npz"
    asked = draws(3, 0, 2, 1, 0)
    write_npz(path, source, asked, batch=2)
    with np.load(path) as found:
        assert found.files == ["arr_0", "arr_1"]
        images, labels = found["arr_0"], found["arr_1"]
    assert images.dtype == np.uint8 and np.array_equal(images, source.clips[[3, 0, 2, 1, 0], 0].numpy())
    assert labels.tolist() == [3, 0, 2, 1, 0]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_write_npz_leaves_no_file_where_an_image_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 images cannot be made: clip2.mp4: no such file"):
        write_npz(tmp_path / "images.npz", FakeClips(broken=True), draws(0, 2), batch=1)
    assert not list(tmp_path.iterdir())


def test_kept_images_are_made_once(tmp_path: Path) -> None:
    """After a stop, another process reads what was made."""
    source, folder = FakeClips(), tmp_path / "work"
    first = KeptImages(source, folder).read(draws(1, 3), 1, 1, (8, 8))
    again = KeptImages(source, folder).read(draws(1, 3), 1, 1, (8, 8))
    assert source.asked == [(1, 1), (3, 1)] and list(again.labels) == [1, 3]
    assert list(again.captions) == list(first.captions) == [CAPTIONS[1]] * 2, "clip similarity reads them"
    assert all(torch.equal(clip_of(first, i), clip_of(again, i)) for i in range(2)) and clip_of(first, 0).shape == (1, 8, 8, 3)
    kept = KeptImages(source, folder)
    kept.read(draws(1), 1, 1, (8, 8))
    kept.read(draws(1, 3), 1, 1, (4, 4))
    assert len(source.asked) == 5, "other draws and sizes are other blocks"
    kept.remove()
    assert not folder.exists()


def test_kept_images_of_several_blocks_are_made_where_they_are_missing(tmp_path: Path) -> None:
    source = FakeClips()
    kept = KeptImages(source, tmp_path / "work")
    blocks = [draws(0), draws(1, 3), draws(3)]
    alone = [KeptImages(FakeClips(), tmp_path / "alone").read(block, 1, 1, (8, 8)) for block in blocks]
    kept.read(blocks[1], 1, 1, (8, 8))
    found = list(kept.read_blocks(blocks, 1, 1, (8, 8)))
    assert source.asked == [(1, 1), (3, 1), (0, 1), (3, 1)]
    assert [one.labels for one in found] == [[0], [1, 3], [3]]
    for got, wanted in zip(found, alone, strict=True):
        assert torch.equal(torch.stack(list(got.clips)), torch.stack(list(wanted.clips)))  # type: ignore[arg-type]
