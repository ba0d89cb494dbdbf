"""Size, range and place of what is taken of a clip."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers.clips import B_FRAMES, FRAMES, UNEVEN, Case, encode, entry_of, numbers, textured_clip, write_transparent
from walt_pl.data.batch import SampleRef
from walt_pl.data.index import IndexEntry
from walt_pl.data.transforms import ClipTransform, PixelDataset, draw_view, random_crop, to_size, to_square
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.probing import Probe
from walt_pl.media.reading import read_clip


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_to_square_at_the_own_size_keeps_every_pixel() -> None:
    clip = noise(3, 16, 16)
    square = to_square(clip, 16)
    assert square.shape == (3, 3, 16, 16) and square.dtype == torch.float32
    back = ((square + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(back.permute(1, 2, 3, 0), torch.from_numpy(clip))


def test_to_square_resizes_the_shorter_side_antialiased_and_crops_the_centre() -> None:
    clip = noise(2, 32, 64)
    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1
    wide = F.interpolate(pixels, size=(8, 16), mode="bicubic", antialias=True).clamp(-1, 1)
    torch.testing.assert_close(to_square(clip, 8), wide[:, :, :, 4:12].permute(1, 0, 2, 3))
    torch.testing.assert_close(to_square(clip, 8, (0.0, 1.0)), wide[:, :, :, 8:].permute(1, 0, 2, 3))


@pytest.mark.parametrize("rows, columns, resized", [(8, 14, (8, 16)), (8, 20, (10, 20)), (32, 64, (32, 64)), (9, 8, (9, 18))])
def test_to_size_covers_a_rectangle_and_crops_the_centre(rows: int, columns: int, resized: tuple[int, int]) -> None:
    clip = noise(2, 32, 64)
    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1
    whole = F.interpolate(pixels, size=resized, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = (resized[0] - rows) // 2, (resized[1] - columns) // 2
    want = whole[:, :, top : top + rows, left : left + columns].permute(1, 0, 2, 3)
    torch.testing.assert_close(to_size(clip, rows, columns), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [7, 16, 33])
def test_to_square_of_any_shape_is_in_range(size: int) -> None:
    for height, width in [(17, 40), (40, 17), (5, 5), (33, 34)]:
        square = to_square(noise(1, height, width), size, (1.0, 1.0))
        assert square.shape == (3, 1, size, size)
        assert square.abs().max() <= 1


def test_random_crop_takes_the_same_place_in_all_frames() -> None:
    frame = torch.arange(100.0).view(1, 1, 10, 10)
    places = set()
    for seed in range(20):
        crop = random_crop(frame.expand(3, 5, 10, 10), 4, np.random.default_rng(seed))
        assert crop.shape == (3, 5, 4, 4)
        assert torch.equal(crop, crop[:1, :1].expand(3, 5, 4, 4))
        places.add(float(crop[0, 0, 0, 0]))
    assert len(places) > 10


def test_draw_view_0_is_the_centre_of_the_first_frames_and_others_are_fixed() -> None:
    assert draw_view("video", 5, 0, spare_frames=9).start == 0
    assert draw_view("video", 5, 0, spare_frames=9).place == (0.5, 0.5)
    assert draw_view("video", 5, 1, spare_frames=9) == draw_view("video", 5, 1, spare_frames=9)
    assert draw_view("video", 5, 1, spare_frames=9) != draw_view("video", 5, 2, spare_frames=9)
    assert {draw_view("video", item, 1, spare_frames=2).start for item in range(40)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low_res_size": 32}, "data.low_res_size must lie"),
        ({"sizes": (64,)}, "data.sizes needs data.crop"),
        ({"sizes": (16,), "crop": 32}, "smallest side 16, got 32"),
        ({"aspect": 0.5, "crop": 32}, "smallest side 16, got 32"),
        ({"aspect": 1.77}, "data.aspect times each size"),
        ({"aspect": 0.0}, "data.aspect times each size"),
        ({"crop": 16, "views": 2}, "leave out"),
        ({"frames": 0}, "data.frames must be at least 1"),
        ({"stride": 0}, "data.stride must be at least 1"),
        ({"fps": 0.0}, "data.fps above 0"),
        ({"fps": 8.0, "stride": 2}, "give one of them"),
        ({"flip": True}, "give data.crop or data.views"),
    ],
)
def test_clip_transform_refuses_settings_that_do_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipTransform(32, **settings)  # type: ignore[arg-type]


def test_to_size_mirrored_is_the_same_region_flipped() -> None:
    clip = noise(2, 32, 64)
    assert torch.equal(to_size(clip, 8, 12, (0.3, 0.9), mirrored=True), to_size(clip, 8, 12, (0.3, 0.9)).flip(-1))


def entry(frames: int, fps: float, duration: float = 0.0, kind: str = "video") -> IndexEntry:
    return IndexEntry(Path("a.mp4"), kind, frames, fps, 64, 64, "", -1, "train", 1, duration)


@pytest.mark.parametrize(
    ("clip_transform", "clip", "needed"),
    [
        (ClipTransform(8, 17), (30, 25.0), 17),
        (ClipTransform(8, 17, stride=3), (30, 25.0), 49),
        (ClipTransform(8, 17, fps=25.0), (30, 25.0), 17),
        (ClipTransform(8, 17, fps=8.0), (90, 24.0), 49),
        (ClipTransform(8, 17, fps=10.0), (90, 24.0), 39),
        (ClipTransform(8, 17, fps=16.0), (30, 8.0), 9),
        (ClipTransform(8, 17, fps=8.0), (24, 8.0, 6.0), 9),
        (ClipTransform(8, 17, fps=8.0), (24, 0.0), np.inf),
        (ClipTransform(8, 1, fps=8.0), (1, 24.0), 1),
    ],
)
def test_clip_transform_needs_counts_the_frames_of_a_clip(clip_transform: ClipTransform, clip: tuple[int, float], needed: float) -> None:
    one = entry(*clip)
    assert clip_transform.needs(one.frames, one.fps, one.duration) == needed
    columns = (np.array([column] * 3) for column in (one.frames, one.fps, one.duration))
    assert clip_transform.needs(*columns).tolist() == [needed] * 3
    assert clip_transform.spare(one) == max(0, one.frames - needed)


@pytest.mark.parametrize(
    "clip_transform", [ClipTransform(32, 7, views=40), ClipTransform(32, 7, stride=3, views=40), ClipTransform(32, 7, fps=3.0, views=40)]
)
def test_pixel_dataset_reads_every_view_and_reaches_the_end_of_the_clip(tmp_path: Path, clip_transform: ClipTransform) -> None:
    clips = {"even.mp4": Case("even.mp4", "libx264", B_FRAMES), "uneven.mkv": Case("uneven.mkv", "libx264", B_FRAMES, times=tuple(UNEVEN))}
    for name, case in clips.items():
        listed = entry_of(case.write(tmp_path))
        dataset = PixelDataset([listed], [], clip_transform)
        shown = []
        for view in range(clip_transform.views):
            sample = dataset[SampleRef("video", 0, view, 0)]
            assert sample.failure == ""
            start = draw_view("video", 0, view, clip_transform.spare(listed)).start
            shown.append(numbers(read_clip(listed, clip_transform.frame_range(listed, start))))
        assert min(frames[0] for frames in shown) == 0 and max(frames[-1] for frames in shown) >= FRAMES - 4, name
        if clip_transform.fps is None:
            assert {frame - before for frames in shown for before, frame in pairwise(frames)} == {clip_transform.stride}


def test_pixel_dataset_low_res_is_the_same_moment_as_the_content(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", textured_clip(30, 192, 192), "libx264", **B_FRAMES)
    listed = entry_of(tmp_path / "a.mp4")
    both = ClipTransform(96, 5, low_res_size=32, views=4)
    for view in range(4):
        draw = SampleRef("video", 0, view, 0)
        sample = PixelDataset([listed], [], both)[draw]
        assert sample.low_res is not None and sample.content.shape == (3, 5, 96, 96) and sample.low_res.shape == (3, 5, 32, 32)
        assert torch.equal(sample.content, PixelDataset([listed], [], ClipTransform(96, 5, views=4))[draw].content)
        assert torch.equal(sample.low_res, PixelDataset([listed], [], ClipTransform(32, 5, views=4))[draw].content)
        shrunk = F.interpolate(sample.content.transpose(0, 1), size=(32, 32), mode="bicubic", antialias=True)
        assert (shrunk.transpose(0, 1) - sample.low_res).abs().mean() < 0.02


def test_pixel_dataset_flip_mirrors_about_half_of_the_views_and_never_the_first(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", textured_clip(5, 64, 64), "libx264", **B_FRAMES)
    listed = entry_of(tmp_path / "a.mp4")
    plain, flipped = (PixelDataset([listed], [], ClipTransform(64, 5, views=30, flip=flip)) for flip in (False, True))
    mirrored = 0
    for view in range(30):
        draw = SampleRef("video", 0, view, 0)
        a, b = plain[draw].content, flipped[draw].content
        assert torch.equal(a, b) or (view and torch.equal(a.flip(-1), b)), "the whole clip or nothing of it"
        mirrored += not torch.equal(a, b)
    assert 8 < mirrored < 22


@pytest.mark.parametrize("how", [{}, {"crop": 16}])
def test_pixel_dataset_reads_transparent_files_over_the_background(how: dict[str, int], tmp_path: Path) -> None:
    write_transparent(tmp_path, height=32, width=48, frames=3)
    image = replace(entry_of(tmp_path / "a.png", Probe(1, 0.0, 48, 32, decoder="pillow")), kind="image")
    transform = ClipTransform(16, frames=3, decoding=DecodeOptions(background=(255, 0, 51)), **how)
    dataset = PixelDataset([entry_of(tmp_path / "a.mov")], [image], transform)
    for kind in ("video", "image"):
        sample = dataset[SampleRef(kind, 0, 0, 0)]
        assert not sample.failure
        torch.testing.assert_close(sample.content.mean((1, 2, 3)), torch.tensor([1.0, -1.0, -0.6]))
