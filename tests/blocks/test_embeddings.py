"""Embeddings of timesteps and positions, against their formulas."""

import math

import pytest
import torch
from torch import nn

from walt_pl.blocks.embeddings import PositionEmbedding, TimestepEmbedding


def test_timestep_embedding_sinusoids_follow_the_formula() -> None:
    """DiT (arXiv 2212.09748): cosines, then sines, of t * 10000^(-i / 128) for i = 0 .. 127."""
    embedding = TimestepEmbedding(256)
    embedding.mlp = nn.Sequential(nn.Linear(256, 256, bias=False))
    nn.init.eye_(embedding.mlp[0].weight)
    timesteps = [0, 1, 500, 998, 999]
    angles = [[t * 10_000 ** (-i / 128) for i in range(128)] for t in timesteps]
    wanted = [[math.cos(a) for a in row] + [math.sin(a) for a in row] for row in angles]
    torch.testing.assert_close(embedding(torch.tensor(timesteps)), torch.tensor(wanted), rtol=0, atol=1e-4)


def test_timestep_embedding_is_an_mlp_of_the_sinusoids() -> None:
    embedding = TimestepEmbedding(8)
    first, _, last = embedding.mlp
    sinusoids = torch.cat([torch.ones(128), torch.zeros(128)])  # of timestep 0
    wanted = last(nn.functional.silu(first(sinusoids)))
    torch.testing.assert_close(embedding(torch.tensor([0])), wanted[None])


@pytest.mark.parametrize("videos, images", [(2, 3), (2, 0), (0, 3)])
def test_position_embedding_adds_space_and_time(videos: int, images: int) -> None:
    embedding = PositionEmbedding(frames=3, tokens=4, width=5)
    frames = [*([0, 1, 2] * videos), *([0] * images)]  # an image takes the place of a first frame
    wanted = torch.stack([torch.stack([embedding.space[n] + embedding.time[f] for n in range(4)]) for f in frames])
    torch.testing.assert_close(embedding(videos, images), wanted)
