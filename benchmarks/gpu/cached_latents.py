"""The files that a base stage starts from, without videos: an index, a small autoencoder's artifact, and latents in the project's cache."""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.gpu.synthetic_data import SyntheticSource
from datamodules.joint import TRAIN, JointData
from walt_pl.data.index import write_index
from walt_pl.models.vae import VAE, VAEConfig
from walt_pl.runs.artifact_writing import save_artifact

CLIPS, CLASSES, SIZE = 512, 101, 128
LATENT = (8, 5, 16, 16)
SMALL_VAE = VAEConfig(width=8, channel_multipliers=(1, 1, 1, 1), num_res_blocks=(0, 0, 0, 0), num_middle_blocks=0, norm="layer")
"""An autoencoder with the factors of the paper's; nothing is coded with it."""


def write_inputs(folder: Path, videos: int, device: torch.device) -> list[str]:
    """Write index, autoencoder and latents of ucf101, and return the options of a `fit` that reads them.

    Args:
        folder: for the files.
        videos: of a batch.
        device: of the training; the key of the cache has the dtype that the device computes in.
    """
    torch.manual_seed(0)
    index, vae = folder / "index.parquet", folder / "vae"
    common = {"kind": "video", "frames": 100, "fps": 25.0, "width": 320, "height": 240, "caption": "", "split": "train", "bytes": 1}
    write_index([{**common, "path": f"{number}.avi", "label": number % CLASSES} for number in range(CLIPS)], index)
    statistics = {"mean": [0.0] * LATENT[0], "std": [1.0] * LATENT[0]}
    save_artifact(vae, kind="vae", models={"vae": VAE(SMALL_VAE)}, sampling_config={}, card={"latents": statistics}, train_config="")
    data = JointData(str(index), SIZE, videos_per_batch=videos, vae=str(vae), val_videos=0, num_classes=CLASSES)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=device))  # type: ignore[assignment]
    source = SyntheticSource((1, 1, 1, 1), "pixels", CLASSES, False)
    for kind, cache in data._caches(TRAIN, 0, data._whole_transform(TRAIN, SIZE, SIZE)).items():
        cache.build(source, kind, lambda: _noise, batch_size=64)
    chosen = {"data.index": index, "data.vae": vae, "model.vae": vae, "data.views": 1, "data.videos_per_batch": videos}
    return [word for key, value in chosen.items() for word in (f"--{key}", str(value))]


def _noise(x: Tensor) -> Tensor:
    return torch.randn(len(x), *LATENT)
