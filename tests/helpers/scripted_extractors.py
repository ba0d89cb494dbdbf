"""Tiny torchscripts with the calls of the published extractors, written and hashed by the tests that use them."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn


class TinyI3D(nn.Module):
    """The call of I3D: rows of some width, from the mean, the motion and the contrast of a video."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(9, width, generator=generator))

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        if rescale:
            x = x / 127.5 - 1
        if resize:
            b, c, t, h, w = x.shape
            x = x.transpose(1, 2).reshape(b * t, c, h, w)
            x = nn.functional.interpolate(x, size=[224, 224], mode="bilinear", align_corners=False)
            x = x.reshape(b, t, c, 224, 224).transpose(1, 2)
        motion = (x[:, :, 1:] - x[:, :, :-1]).abs().mean(dim=[2, 3, 4])
        rows = torch.cat([x.mean(dim=[2, 3, 4]), motion, x.square().mean(dim=[2, 3, 4])], dim=1) @ self.weight
        return rows if return_features else rows.softmax(dim=1)


class TinyC3D(nn.Module):
    """The call of C3D: probabilities of uint8 videos. The last class never occurs."""

    def forward(self, x: Tensor) -> Tensor:
        means = (x.float() / 255).mean(dim=[2, 3, 4])
        return torch.cat([means.softmax(dim=1), torch.zeros_like(means[:, :1])], dim=1)


def write_torchscript(module: nn.Module, path: Path) -> str:
    """Write a module as a torchscript, and return the sha256 of the file."""
    torch.jit.save(torch.jit.script(module), str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()
