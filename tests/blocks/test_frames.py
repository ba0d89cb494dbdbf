"""The frames of a joint batch: videos first, then images."""

import pytest
import torch

from walt_pl.blocks.frames import FrameLayout

LAYOUTS = [FrameLayout(2, 3, 4), FrameLayout(2, 3, 0), FrameLayout(0, 3, 4), FrameLayout(1, 1, 2), FrameLayout(0, 3, 0)]


def test_frame_layout_counts_frames_and_samples() -> None:
    layout = FrameLayout(2, 3, 4)
    assert (layout.num_samples, layout.video_frames, layout.total_frames) == (6, 6, 10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frame_layout_split_undoes_join(layout: FrameLayout) -> None:
    videos, images = torch.randn(layout.videos, 5, layout.frames, 4, 2), torch.randn(layout.images, 5, 1, 4, 2)
    frames = layout.join(videos, images)
    assert frames.shape == (layout.total_frames, 5, 4, 2)
    again = layout.split(frames)
    assert torch.equal(again[0], videos) and torch.equal(again[1], images)


def test_frame_layout_join_keeps_frames_of_a_video_adjacent_in_time_order() -> None:
    layout = FrameLayout(2, 3, 1)
    videos = torch.arange(6.0).view(2, 1, 3, 1, 1)
    assert layout.join(videos, torch.full((1, 1, 1, 1, 1), 6.0)).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frame_layout_per_sample_undoes_per_frame(layout: FrameLayout) -> None:
    x = torch.randn(layout.num_samples)
    frames = layout.per_frame(x)
    assert frames.shape == (layout.total_frames,)
    torch.testing.assert_close(layout.per_sample(frames), x)


def test_frame_layout_per_frame_repeats_each_sample_for_its_own_frames() -> None:
    assert FrameLayout(2, 3, 2).per_frame(torch.arange(4)).tolist() == [0, 0, 0, 1, 1, 1, 2, 3]
    assert FrameLayout(2, 3, 2).per_sample(torch.arange(8.0)).tolist() == [1, 4, 6, 7]
