"""Autoencoders beside each other in one process: ours, diffusers' Wan 2.1 and CogVideoX, with random weights.

    python -m benchmarks.autoencoder [--size 17 128] [--rounds 3] [--only ours wan] [--quick] [--out DIR]

For each: GF/s and frames/s of encode, decode and both for one image, in autocast's dtype of this machine. Beside them the rate of a
matrix product, and the ceiling: every convolution of the pass alone, with its real input. Of each, the best round counts. The JSON and a
page go into DIR, benchmarks/results by default.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.gpu.experiments import vae_config
from benchmarks.gpu.report import FACTS, table
from benchmarks.gpu.results import find_facts, new_path, slug, write_with_page
from walt_pl.blocks.compute import compute_dtype
from walt_pl.evaluation.program import machine
from walt_pl.models.vae import VAE, VAEConfig

FORMAT = "autoencoder 1"
"""Kind and version of the JSON. Those of benchmarks/gpu have a number alone."""
NAMES = {"ours": "ours, the paper's size", "ours_light": "ours, light", "wan": "Wan 2.1", "cogvideox": "CogVideoX"}
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


def convolution_seconds(found: Convolutions, device: torch.device, rounds: int) -> float:
    """Return the seconds of the convolutions alone, the best round of each, with their inputs as they were and weights already cast."""
    total = 0.0
    for function, args, kwargs in found.calls:
        call = partial(function, *(x.to(compute_dtype(device)) if isinstance(x, Tensor) else x for x in args), **kwargs)
        call()
        total += min(seconds(call, device) for _ in range(rounds))
    return total


def measure(code: Coder, x: Tensor, frames: int, rounds: int, peak: float) -> dict[str, float]:
    """Return the figures of one direction of one autoencoder.

    Args:
        code: encoder or decoder.
        x: its input.
        frames: pixel frames of the clip.
        rounds: timed calls of the pass and of each of its convolutions; the best one counts.
        peak: GF/s of the matrix product.
    """
    with computing(x.device):
        with Convolutions() as found:
            code(x)
        ceiling = convolution_seconds(found, x.device, rounds)
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


def render(result: Mapping[str, Any]) -> str:
    """Return the page of a measurement in Markdown."""
    facts = result["facts"]
    frames, side = facts["size"]
    lines = [f"# Autoencoders on {facts['machine']}, {facts['date']}", ""]
    if facts["quick"]:
        lines += ["Tiny sizes (`--quick`): these figures only show that the code runs.", ""]
    known = ", ".join(f"{name} {facts[name]}" for name in FACTS if facts.get(name))
    lines += [
        f"`python -m benchmarks.autoencoder`: one clip of {frames} x {side} x {side} and one image, {facts['dtype']}, random weights, "
        f"all in one process, best of {facts['rounds']}, load average {facts['load']:.1f} before it.",
        f"A matrix product reached {facts['matrix_product_gflop_per_s']} GF/s. The last column is the time of the convolutions alone over "
        "that of the pass.",
        *(line for line in (facts["note"], known) if line),
        "",
    ]
    head = ["autoencoder", "million weights", "pass", "GF/s", "share of the matrix product", "frames/s", "share of its convolutions"]
    columns = ("gflop_per_s", "share_of_matrix_product", "frames_per_s", "share_of_convolutions_alone")
    rows = [
        [NAMES[name], str(found["million_parameters"]), key.replace("_", ", "), *(str(one[column]) for column in columns)]
        for name, found in result["autoencoders"].items()
        for key, one in (found or {}).items()
        if key != "million_parameters"
    ]
    missing = [f"- {NAMES[name]}: skipped, diffusers is not installed" for name, found in result["autoencoders"].items() if found is None]
    return "\n".join([*lines, *table(head, rows), *["", *missing] * bool(missing), ""])


def main() -> None:
    """Measure each autoencoder, and write and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(17, 128), metavar=("FRAMES", "SIDE"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(NAMES), default=list(NAMES), metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="small models, a clip of 5x32x32, one round, on the CPU: a test of the code")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR", help="folder of the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.rounds = (5, 32), 1
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.quick else "cpu")
    facts = find_facts(arguments.quick)
    facts |= {"machine": facts["card"] if device.type == "cuda" else machine(), "load": os.getloadavg()[0]}
    facts |= {"dtype": str(compute_dtype(device)).removeprefix("torch."), "size": list(arguments.size), "rounds": arguments.rounds}
    peak = matrix_rate(device, 512 if arguments.quick else 4096, arguments.rounds)
    facts["matrix_product_gflop_per_s"] = round(peak)
    measured = {name: figures(name, arguments, device, peak) for name in arguments.only}
    result = {"format": FORMAT, "facts": facts, "autoencoders": measured}
    path = new_path(arguments.out, f"autoencoder_{slug(facts['card'])}{'_quick' if arguments.quick else ''}", facts["date"])
    page = render(result)
    write_with_page(path, result, page)
    print(f"{page}\n{path}\n{path.with_suffix('.md')}")


if __name__ == "__main__":
    main()
