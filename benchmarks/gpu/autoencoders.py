"""Encoding, decoding and training of an autoencoder, beside its convolutions alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.bench import Bench, Figure
from benchmarks.gpu.clock import count_flops, time_call
from benchmarks.gpu.convolutions import record, time_convolutions

CLIPS, FRAMES, SIDE, IMAGES = 2, 17, 128, 32
QUICK_CLIPS, QUICK_FRAMES, QUICK_SIDE, QUICK_IMAGES = 1, 5, 16, 2


def make_clips(count: int, bench: Bench, images: bool = False) -> Tensor:
    """Return clips or images of random pixels, [b 3 t h w] in -1..1."""
    frames, side = (QUICK_FRAMES, QUICK_SIDE) if bench.quick else (FRAMES, SIDE)
    return torch.rand(count, 3, 1 if images else frames, side, side, device=bench.device) * 2 - 1


def measure_coding(
    bench: Bench, name: str, build: Callable[[], nn.Module], encode: Callable[[Any, Tensor], Tensor], decode: Callable[[Any, Tensor], Any]
) -> None:
    """Add rows of encoding and decoding clips and images.

    Args:
        bench: surroundings.
        name: of the autoencoder, the beginning of the rows' names.
        build: returns it, on the device.
        encode: from pixels to latents.
        decode: from latents to pixels.
    """
    clips, images = (QUICK_CLIPS, QUICK_IMAGES) if bench.quick else (CLIPS, IMAGES)
    for row, count, of_images in (("", clips, False), (" images", images, True)):
        for way in ("encode", "decode"):

            @torch.no_grad()
            def work(count: int = count, of_images: bool = of_images, way: str = way) -> dict[str, Figure]:
                # Without gradients, as an artifact is loaded: an autoencoder keeps sums of weights that do not train.
                model, x = build().eval().requires_grad_(False), make_clips(count, bench, of_images)
                with bench.autocast():
                    z = encode(model, x)
                    call = (lambda: encode(model, x)) if way == "encode" else (lambda: decode(model, z))
                    return {**_measure(bench, call, x.shape[0] * x.shape[2]), "clips": count}

            bench.attempt(f"{name}: {way}{row}", work)


def measure_training(bench: Bench, name: str, build: Callable[[], Any]) -> None:
    """Add a row of forward and backward of two clips: reconstruction and KL, without optimiser and discriminator."""

    def work() -> dict[str, Figure]:
        vae, x = build(), make_clips(QUICK_CLIPS if bench.quick else CLIPS, bench)

        def step() -> None:
            with bench.autocast():
                posterior = vae.encode(x)
                y = vae.decode(posterior.sample(torch.zeros_like(posterior.mean)))
                loss = (y - x).square().mean() + 1e-6 * posterior.kl().mean()
            loss.backward()
            vae.zero_grad(set_to_none=True)

        return {**_measure(bench, step, x.shape[0] * x.shape[2]), "clips": len(x)}

    bench.attempt(f"{name}: train", work)


def _measure(bench: Bench, call: Callable[[], Any], frames: int) -> dict[str, Figure]:
    flops, calls = count_flops(call), record(call)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = time_call(call, bench.device, bench.quick)
    peak = bench.peak_gb()
    share = time_convolutions(calls, bench.device, bench.quick) / seconds
    return {**bench.speed(seconds, flops), **peak, "frames_per_second": frames / seconds, "convolution_share": share}
