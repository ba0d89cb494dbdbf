"""Published files of the extractors: names, hashes, where people get them, and figures that they are known to give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

I3D_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"


@dataclass(frozen=True)
class KnownFile:
    """A published file of an extractor. Nothing here downloads it."""

    name: str
    source: str
    """Place where people get it."""
    sha256: str | None = None
    """Its hash, or the first digits of it; None where nobody has published one."""
    size: int | None = None
    """Bytes."""

    def describe(self) -> str:
        """Return one phrase with name, size, hash and source."""
        size = f"{self.size:,} bytes, " if self.size else ""
        hashed = f"sha256 {self.sha256}{'...' if len(self.sha256) < 64 else ''}" if self.sha256 else "no published sha256"
        return f"{self.name} ({size}{hashed}), from {self.source}"


KNOWN_FILES: dict[str, KnownFile] = {
    # StyleGAN-V's torchscript of I3D. It gives 400 values: logits of Kinetics-400, averaged over time.
    "i3d": KnownFile(
        "i3d_torchscript.pt",
        "StyleGAN-V (https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt) or Hugging Face flateon/FVD-I3D-torchscript",
        I3D_SHA256,
        51_235_320,
    ),
    # StyleGAN-V's torchscript of C3D, finetuned on UCF-101.
    "c3d": KnownFile("c3d_ucf101.pt", "StyleGAN-V (https://www.dropbox.com/s/jxpu7avzdc9n97q/c3d_ucf101.pt)"),
    "inception": KnownFile(
        "weights-inception-2015-12-05-6726825d.pth",
        "torch-fidelity (https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0)",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    # torchvision writes the first eight digits into the name.
    "lpips": KnownFile("vgg16-397923af.pth", "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
    "clip": KnownFile("open_clip_model.safetensors of one tower", "Hugging Face, such as timm/vit_base_patch32_clip_224.openai"),
    "videomae": KnownFile("a folder with config.json and model.safetensors", "Hugging Face, such as MCG-NJU/videomae-base"),
}
"""Files by kind of extractor."""


@dataclass(frozen=True)
class GoldenNumber:
    """A Frechet distance that a file is known to give, with covariances divided by n - 1."""

    description: str
    value: float
    tolerance: float
    clips: int
    """Clips of each side."""
    clip: Callable[[int, int], Tensor]
    """Maps side (0 or 1) and position to a clip [t h w 3]: uint8, or float32 that is given to the network as it is.

    Sides and positions are asked for in order.
    """


def constant_clip(side: int, _: int) -> Tensor:
    """Return a black (0) or white (1) clip of 30 frames, uint8 [30 64 64 3]."""
    return torch.full((30, 64, 64, 3), 255 * side, dtype=torch.uint8)


class NoiseClips:
    """Uniform noise in 0..1, float32 [16 224 224 3], of numpy's RandomState(1) and RandomState(2).

    One draw of all clips equals draws of one clip after the other, which take less memory.
    """

    def __init__(self) -> None:
        self._states = [np.random.RandomState(1), np.random.RandomState(2)]

    def __call__(self, side: int, _: int) -> Tensor:
        """Return the next clip of a side."""
        return torch.from_numpy(self._states[side].rand(16, 224, 224, 3).astype(np.float32))


GOLDEN_NUMBERS: dict[str, Callable[[], tuple[GoldenNumber, ...]]] = {
    I3D_SHA256: lambda: (
        # Another version of torch moves it by about 1.
        GoldenNumber("black against white, 8 clips of 30x64x64, resized inside (StyleGAN-V)", 151.2565, 1.5, 8, constant_clip),
        # github.com/universome/fvd-comparison: 10.138085 of the TensorFlow original, too.
        GoldenNumber("noise against noise, 128 clips of 16x224x224, as they are", 10.138085, 0.01, 128, NoiseClips()),
    )
}
"""Figures by sha256 of the file. Each call begins the noise anew."""
