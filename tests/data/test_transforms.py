"""Size, range and place of what is taken of a clip."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from walt_pl.data.transforms import Framing, random_crop, to_size, to_square, view_of


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_own_size_keeps_every_pixel() -> None:
    clip = noise(3, 16, 16)
    square = to_square(clip, 16)
    assert square.shape == (3, 3, 16, 16) and square.dtype == torch.float32
    back = ((square + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(back.permute(1, 2, 3, 0), torch.from_numpy(clip))


def test_shorter_side_is_resized_antialiased_and_the_centre_is_cut_out() -> None:
    clip = noise(2, 32, 64)
    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1
    wide = F.interpolate(pixels, size=(8, 16), mode="bicubic", antialias=True).clamp(-1, 1)
    torch.testing.assert_close(to_square(clip, 8), wide[:, :, :, 4:12].permute(1, 0, 2, 3))
    torch.testing.assert_close(to_square(clip, 8, (0.0, 1.0)), wide[:, :, :, 8:].permute(1, 0, 2, 3))


@pytest.mark.parametrize("rows, columns, resized", [(8, 14, (8, 16)), (8, 20, (10, 20)), (32, 64, (32, 64)), (9, 8, (9, 18))])
def test_a_rectangle_is_covered_and_its_centre_cut_out(rows: int, columns: int, resized: tuple[int, int]) -> None:
    clip = noise(2, 32, 64)
    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1
    whole = F.interpolate(pixels, size=resized, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = (resized[0] - rows) // 2, (resized[1] - columns) // 2
    want = whole[:, :, top : top + rows, left : left + columns].permute(1, 0, 2, 3)
    torch.testing.assert_close(to_size(clip, rows, columns), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [7, 16, 33])
def test_any_shape_gives_a_square_in_range(size: int) -> None:
    for height, width in [(17, 40), (40, 17), (5, 5), (33, 34)]:
        square = to_square(noise(1, height, width), size, (1.0, 1.0))
        assert square.shape == (3, 1, size, size)
        assert square.abs().max() <= 1


def test_a_crop_is_the_same_place_in_all_frames() -> None:
    frame = torch.arange(100.0).view(1, 1, 10, 10)
    places = set()
    for seed in range(20):
        crop = random_crop(frame.expand(3, 5, 10, 10), 4, np.random.default_rng(seed))
        assert crop.shape == (3, 5, 4, 4)
        assert torch.equal(crop, crop[:1, :1].expand(3, 5, 4, 4))
        places.add(float(crop[0, 0, 0, 0]))
    assert len(places) > 10


def test_view_0_is_the_centre_of_the_first_frames_and_the_others_are_fixed() -> None:
    assert view_of("video", 5, 0, spare_frames=9).start == 0
    assert view_of("video", 5, 0, spare_frames=9).place == (0.5, 0.5)
    assert view_of("video", 5, 1, spare_frames=9) == view_of("video", 5, 1, spare_frames=9)
    assert view_of("video", 5, 1, spare_frames=9) != view_of("video", 5, 2, spare_frames=9)
    assert {view_of("video", item, 1, spare_frames=2).start for item in range(40)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low_size": 32}, "data.low_size must lie"),
        ({"sizes": (64,)}, "data.sizes needs data.crop"),
        ({"sizes": (16,), "crop": 32}, "smallest side 16, got 32"),
        ({"aspect": 0.5, "crop": 32}, "smallest side 16, got 32"),
        ({"aspect": 1.77}, "data.aspect times each size"),
        ({"aspect": 0.0}, "data.aspect times each size"),
        ({"crop": 16, "views": 2}, "leave out"),
        ({"frames": 0}, "data.frames must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Framing(32, **settings)  # type: ignore[arg-type]
