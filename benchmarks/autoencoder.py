"""Autoencoders beside each other in one process: ours, diffusers' Wan 2.1 and CogVideoX, with random weights.

    python -m benchmarks.autoencoder [--size 17 128] [--rounds 3] [--only ours wan] [--quick]

For each: GF/s and frames/s of encode, decode and both for one image, in autocast's dtype of this machine. Beside them the rate of a
matrix product, and the ceiling: every convolution of the pass alone, with its real input. Rounds alternate; the best one counts.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.gpu.experiments import vae_config
from walt_pl.blocks.compute import compute_dtype
from walt_pl.evaluation.program import machine
from walt_pl.models.vae import VAE, VAEConfig

QUICK = VAEConfig(32, (1, 1, 2), ((1, 2, 2), (2, 2, 2)), (1, 1, 1), 1, 4)
Coder = Callable[[Tensor], Tensor]


class Convolutions(TorchFunctionMode):
    """Keep the arguments of every convolution that runs inside it, and count its operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        self.operations = 0

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function in (F.conv2d, F.conv3d):
            self.calls.append((function, args, kwargs or {}))
            self.operations += 2 * out.numel() * args[1][0].numel()
        return out


@contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """Compute without gradients in the dtype of the machine."""
    dtype = compute_dtype(device)
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def matrix_rate(device: torch.device, side: int, rounds: int) -> float:
    """Return the GF/s of a square matrix product, the best of some rounds."""
    a = torch.randn(side, side, dtype=compute_dtype(device), device=device)
    return max(2e-9 * side**3 / seconds(lambda: a @ a, device) for _ in range(rounds + 1))


def convolution_seconds(found: Convolutions, device: torch.device) -> float:
    """Return the seconds of the convolutions alone, with their inputs as they were and weights already cast."""
    total = 0.0
    for function, args, kwargs in found.calls:
        call = partial(function, *(x.to(compute_dtype(device)) if isinstance(x, Tensor) else x for x in args), **kwargs)
        call()
        total += seconds(call, device)
    return total


def measure(code: Coder, x: Tensor, frames: int, rounds: int, peak: float) -> dict[str, float]:
    """Return the figures of one direction of one autoencoder.

    Args:
        code: encoder or decoder.
        x: its input.
        frames: pixel frames of the clip.
        rounds: timed calls; the best one counts.
        peak: GF/s of the matrix product.
    """
    with computing(x.device):
        with Convolutions() as found:
            code(x)
        ceiling = convolution_seconds(found, x.device)
        best = min(seconds(lambda: code(x), x.device) for _ in range(rounds))
    rate = found.operations / best / 1e9
    return {
        "gflop": round(found.operations / 1e9, 1),
        "seconds": round(best, 4),
        "gflop_per_s": round(rate),
        "frames_per_s": round(frames / best, 1),
        "share_of_matrix_product": round(rate / peak, 2),
        "share_of_convolutions_alone": round(ceiling / best, 2),
    }


def build(name: str, quick: bool) -> nn.Module | None:
    """Return an autoencoder with random weights; None where its package is missing, and say so."""
    if name == "ours":
        return VAE(QUICK if quick else VAEConfig())
    if name == "ours_light":
        return VAE(QUICK if quick else vae_config("ucf101/vae_light", quick=False))
    try:
        import diffusers
    except ImportError:
        print(f"{name}: skipped, diffusers is not installed")
        return None
    if name == "wan":
        small = {"base_dim": 32, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1}
        return diffusers.AutoencoderKLWan(**(small if quick else {}))
    small = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1}
    return diffusers.AutoencoderKLCogVideoX(**(small if quick else {}))


def coders(model: nn.Module) -> tuple[Coder, Coder]:
    """Return functions of pixels to mean latents, and of latents to pixels."""
    any_model: Any = model
    if isinstance(model, VAE):
        return lambda x: model.encode(x).mean, lambda z: model.decode(z)
    return lambda x: any_model.encode(x).latent_dist.mean, lambda z: any_model.decode(z).sample


def figures(name: str, arguments: argparse.Namespace, device: torch.device, peak: float) -> dict[str, Any] | None:
    """Return the figures of one autoencoder: clip and image, both directions."""
    torch.manual_seed(0)
    model = build(name, arguments.quick)
    if model is None:
        return None
    model = model.to(device).eval().requires_grad_(False)
    encode, decode = coders(model)
    found: dict[str, Any] = {"million_parameters": round(sum(p.numel() for p in model.parameters()) / 1e6, 1)}
    for kind, frames in (("clip", arguments.size[0]), ("image", 1)):
        x = torch.randn(1, 3, frames, arguments.size[1], arguments.size[1], device=device)
        with computing(device):
            z = encode(x).float()
        found[f"encode_{kind}"] = measure(encode, x, frames, arguments.rounds, peak)
        found[f"decode_{kind}"] = measure(decode, z, frames, arguments.rounds, peak)
    return found


def main() -> None:
    """Print the figures of each autoencoder as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(17, 128), metavar=("FRAMES", "SIDE"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["ours", "ours_light", "wan", "cogvideox"])
    parser.add_argument("--quick", action="store_true", help="small models, a clip of 5x32x32, one round: a test of the code")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.rounds = (5, 32), 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = matrix_rate(device, 512 if arguments.quick else 4096, arguments.rounds)
    report: dict[str, Any] = {"machine": machine(), "dtype": str(compute_dtype(device)), "size": arguments.size}
    report |= {"matrix_product_gflop_per_s": round(peak), "load": os.getloadavg()[0]}
    for name in arguments.only:
        report[name] = figures(name, arguments, device, peak)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
