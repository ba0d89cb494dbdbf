"""Layout of a joint batch as frames: first the frames of all videos, then the images."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class FrameLayout:
    """Numbers of videos, frames and images in a joint batch.

    A *sample* is one video or one image: it has one caption, one timestep, one modulation. A tensor over samples is [s ...], videos
    first. A tensor over frames is [f ...] with f = videos x frames + images.
    """

    videos: int
    """Videos in the batch."""
    frames: int
    """Latent frames of each video."""
    images: int
    """Images in the batch."""

    @property
    def num_samples(self) -> int:
        """Number of videos and images."""
        return self.videos + self.images

    @property
    def video_frames(self) -> int:
        """Number of frames that belong to videos; the other frames are images."""
        return self.videos * self.frames

    @property
    def total_frames(self) -> int:
        """Number of all frames, f."""
        return self.video_frames + self.images

    def per_frame(self, x: Tensor) -> Tensor:
        """Repeat the value of each sample [s ...] for all of its frames, [f ...]."""
        if not self.videos:
            return x
        return torch.cat([x[: self.videos].repeat_interleave(self.frames, dim=0), x[self.videos :]])

    def per_sample(self, x: Tensor) -> Tensor:
        """Return the mean over the frames of each sample: [f] to [s]."""
        return torch.cat([x[: self.video_frames].view(self.videos, self.frames).mean(dim=1), x[self.video_frames :]])

    def doubled(self) -> "FrameLayout":
        """Return the layout of two batches of this layout in one: videos of both, then images of both."""
        return FrameLayout(2 * self.videos, self.frames, 2 * self.images)

    def double_samples(self, first: Tensor, second: Tensor) -> Tensor:
        """Put values over the samples of two batches of this layout [s ...] in the order of `doubled`, [2s ...]."""
        return _interleave(first, second, self.videos)

    def double_frames(self, first: Tensor, second: Tensor) -> Tensor:
        """Put values over the frames of two batches of this layout [f ...] in the order of `doubled`, [2f ...]."""
        return _interleave(first, second, self.video_frames)

    def halve_frames(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two batches in values over the frames of `doubled` [2f ...], [f ...] each: the inverse of `double_frames`."""
        counts = [self.video_frames, self.video_frames, self.images, self.images]
        first_videos, second_videos, first_images, second_images = x.split(counts)
        return torch.cat([first_videos, first_images]), torch.cat([second_videos, second_images])

    def join(self, videos: Tensor, images: Tensor) -> Tensor:
        """Join videos [v c t h w] and images [i c 1 h w] into frames [f c h w]."""
        return torch.cat([rearrange(videos, "v c t h w -> (v t) c h w"), images[:, :, 0]])

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split frames [f c h w] into videos [v c t h w] and images [i c 1 h w]."""
        # The numbers come from the layout: einops cannot infer a dimension of an empty tensor.
        videos = x[: self.video_frames].view(self.videos, self.frames, *x.shape[1:]).transpose(1, 2)
        return videos, x[self.video_frames :, :, None]


def _interleave(first: Tensor, second: Tensor, videos: int) -> Tensor:
    return torch.cat([first[:videos], second[:videos], first[videos:], second[videos:]])
