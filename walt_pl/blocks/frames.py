"""How a joint batch travels: as frames, those of all videos first, then the images."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class FrameLayout:
    """What the frames of a joint batch are.

    A *sample* is one video or one image: it has one caption, one noise level, one modulation. A tensor over samples is [s ...], videos
    first; a tensor over frames is [f ...] with f = videos x frames + images.
    """

    videos: int
    """Videos in the batch."""
    frames: int
    """Latent frames of each video."""
    images: int
    """Images in the batch."""

    @property
    def num_samples(self) -> int:
        """Videos and images."""
        return self.videos + self.images

    @property
    def video_frames(self) -> int:
        """Frames that belong to videos; the rest are images."""
        return self.videos * self.frames

    @property
    def total_frames(self) -> int:
        """All frames."""
        return self.video_frames + self.images

    def per_frame(self, x: Tensor) -> Tensor:
        """Repeat a value of each sample [s ...] for its frames [f ...]."""
        if not self.videos:
            return x
        return torch.cat([x[: self.videos].repeat_interleave(self.frames, dim=0), x[self.videos :]])

    def per_sample(self, x: Tensor) -> Tensor:
        """Mean over the frames of each sample: [f] to [s]."""
        return torch.cat([x[: self.video_frames].view(self.videos, self.frames).mean(dim=1), x[self.video_frames :]])

    def select(self, rows: Tensor) -> "FrameLayout":
        """The layout of the samples where ``rows`` [s] is true."""
        videos = int(rows[: self.videos].sum())
        return FrameLayout(videos, self.frames, int(rows.sum()) - videos)

    def join(self, videos: Tensor, images: Tensor) -> Tensor:
        """[v c t h w] and [i c 1 h w] to frames [f c h w]."""
        return torch.cat([rearrange(videos, "v c t h w -> (v t) c h w"), images[:, :, 0]])

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [f c h w] to videos [v c t h w] and images [i c 1 h w]."""
        # The numbers come from the layout: einops cannot infer a dimension of an empty tensor.
        videos = x[: self.video_frames].view(self.videos, self.frames, *x.shape[1:]).transpose(1, 2)
        return videos, x[self.video_frames :, :, None]
