"""Validation clips that metrics of a training are measured on: in order, in blocks of one size, as the stage reads them and as pixels."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.joint_data import FakeVAE, make
from walt_pl.data.batch import images_as_videos
from walt_pl.data.measured_clips import choose_blocks
from walt_pl.data.selection import USED, Selection


def test_choose_blocks_keeps_order_and_size_and_numbers_clips_by_place() -> None:
    bucket = np.array([0, 1, 0, -1, 0, 0, 0, 1], np.int16)
    reason = np.full(8, USED, np.uint8)
    reason[3] = USED + 1
    blocks = choose_blocks({"video": Selection(bucket, reason, False)}, 2, 7, at_most=64)
    assert [[(ref.item, ref.global_batch_index, ref.bucket) for ref in block] for block in blocks] == [
        [(0, 0, 0), (2, 2, 0), (4, 3, 0), (5, 4, 0)],
        [(6, 5, 0)],
        [(1, 1, 1), (7, 6, 1)],
    ]


@pytest.mark.parametrize(
    ("settings", "samples", "said"),
    [
        ({"val_videos": 3}, 4, r"metrics\.samples is 4, but there are 3 videos to validate on \(data\.val_videos 3\): .*samples 3"),
        ({"val_videos": 0}, 4, r"nothing is validated: set data\.val_videos above 0"),
    ],
)
def test_joint_data_measured_clips_refuse_more_than_there_are(index: str, settings: dict[str, Any], samples: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(index, **settings).measured_clips(samples)


def test_joint_data_measured_clips_are_latents_and_the_pixels_of_the_index(index: str, vae: str) -> None:
    cached, plain = make(index, vae=vae, low_res_size=8, val_videos=5), make(index, low_res_size=8, val_videos=5)
    cached.prepare_data()
    clips, pixel_clips = cached.measured_clips(5), plain.measured_clips(5)
    assert [len(block) for block in clips.blocks] == [4, 1] and pixel_clips.pixels([0]) is None
    loader = clips.pixels([1, 0])
    assert loader is not None
    for latents, pixels, whole in zip(clips.inputs([1, 0]), loader, pixel_clips.inputs([1, 0]), strict=True):
        assert latents.space == "latents" and pixels.space == "pixels" and not len(pixels.images)
        assert torch.equal(pixels.videos, whole.videos) and latents.captions == pixels.captions == whole.captions
        assert torch.equal(latents.videos, FakeVAE().encode(pixels.videos).mean.half().float())
        assert latents.low_res_videos is not None and len(latents.low_res_videos) == len(pixels.videos)
    assert pixels.captions == [f"video {number}" for number in range(4)] and pixels.global_batch_index.tolist() == [0, 1, 2, 3]


def test_joint_data_measured_clips_of_images_alone_are_clips_of_one_frame(index: str) -> None:
    data = make(index, videos_per_batch=0, frames=1, low_res_size=8)
    (batch,) = data.measured_clips(4).inputs([0])
    made = images_as_videos(batch)
    assert made.videos.shape == (4, 3, 1, 16, 16) and torch.equal(made.videos, batch.images) and not len(made.images)
    assert made.low_res_videos is batch.low_res_images and made.captions == [f"image {number}" for number in range(4)]
