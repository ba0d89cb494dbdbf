"""Autoencoders of diffusers with random weights, in bfloat16, on the clips and images of the part autoencoder: Wan 2.1 and CogVideoX."""

from typing import Any

from torch import nn

from benchmarks.gpu.autoencoders import measure_coding
from benchmarks.gpu.bench import Bench, Missing, require

QUICK_WAN: dict[str, Any] = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [True, False]}
QUICK_COGVIDEOX: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("CogVideoXDownBlock3D",) * 2,
    "up_block_types": ("CogVideoXUpBlock3D",) * 2,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "temporal_compression_ratio": 2,
}


def measure(bench: Bench) -> None:
    try:
        require("diffusers")
    except Missing as missing:
        for name in ("Wan 2.1", "CogVideoX"):
            bench.skip(name, str(missing))
        return

    def wan() -> nn.Module:
        from diffusers import AutoencoderKLWan

        model = AutoencoderKLWan(**(QUICK_WAN if bench.quick else {}))
        return model.to(bench.device, bench.dtype)

    def cogvideox() -> nn.Module:
        from diffusers import AutoencoderKLCogVideoX

        model = AutoencoderKLCogVideoX(**(QUICK_COGVIDEOX if bench.quick else {}))
        return model.to(bench.device, bench.dtype)

    def encode(model: Any, x: Any) -> Any:
        return model.encode(x.to(bench.dtype)).latent_dist.mean

    for name, build in (("Wan 2.1", wan), ("CogVideoX", cogvideox)):
        measure_coding(bench, name, build, encode, lambda model, z: model.decode(z).sample)
