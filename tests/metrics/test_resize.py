"""Resizes of the protocols: against torch-fidelity and common_metrics' steps, and pixels by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from walt_pl.metrics.protocol import Resize
from walt_pl.metrics.resize import prepare_video


def draw(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_prepare_video_tf1_equals_torch_fidelity() -> None:
    clip = draw(3, 20, 30, 3)
    wanted = interpolate_bilinear_2d_like_tensorflow1x(clip.permute(0, 3, 1, 2).float(), size=(224, 224), align_corners=False)
    found = prepare_video(clip, "tf1")
    assert found.shape == (3, 3, 224, 224) and found.dtype == torch.float32
    torch.testing.assert_close(found, wanted.permute(1, 0, 2, 3) / 127.5 - 1, atol=1e-6, rtol=0)


def test_prepare_video_tf1_and_half_pixel_equal_three_pixels_by_hand() -> None:
    """Three pixels 0, 90, 255 become six: without half-pixel centres, pixel i lies at i / 2, with them at (i + 0.5) / 2 - 0.5."""
    clip = torch.tensor([0, 90, 255], dtype=torch.uint8).view(1, 1, 3, 1).expand(1, 3, 3, 3)
    by_hand: dict[Resize, list[float]] = {"tf1": [0, 45, 90, 172.5, 255, 255], "half_pixel": [0, 22.5, 67.5, 131.25, 213.75, 255]}
    for resize, values in by_hand.items():
        row = prepare_video(clip, resize, side=6)[0, 0, 0]
        torch.testing.assert_close((row + 1) * 127.5, torch.tensor(values), atol=1e-4, rtol=0, msg=resize)


def test_prepare_video_half_pixel_has_no_antialias() -> None:
    clip = draw(2, 300, 260, 3)
    wanted = F.interpolate(clip.permute(0, 3, 1, 2).float(), size=(224, 224), mode="bilinear", align_corners=False, antialias=False)
    torch.testing.assert_close(prepare_video(clip, "half_pixel"), wanted.permute(1, 0, 2, 3) / 127.5 - 1)


@pytest.mark.parametrize(("shape", "scaled"), [((30, 47), (32, 51)), ((47, 30), (51, 32)), ((16, 16), (32, 32))])
def test_prepare_video_short_side_keeps_the_aspect_and_crops_the_centre(shape: tuple[int, int], scaled: tuple[int, int]) -> None:
    clip = draw(2, *shape, 3)
    whole = F.interpolate(clip.permute(0, 3, 1, 2).float(), size=scaled, mode="bilinear", align_corners=False)
    top, left = (scaled[0] - 32) // 2, (scaled[1] - 32) // 2
    wanted = whole[:, :, top : top + 32, left : left + 32].permute(1, 0, 2, 3) / 127.5 - 1
    torch.testing.assert_close(prepare_video(clip, "short_side", side=32), wanted)


def test_prepare_video_inside_leaves_pixels_and_size_to_the_extractor() -> None:
    clip = draw(2, 20, 30, 3)
    assert torch.equal(prepare_video(clip, "inside"), clip.permute(3, 0, 1, 2).float())
