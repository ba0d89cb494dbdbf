"""Ceilings of the card: products of the L model's shapes, the convolutions of the paper's autoencoder, a copy in memory."""

import torch

from benchmarks.gpu.autoencoders import CLIPS, QUICK_CLIPS, make_clips
from benchmarks.gpu.bench import Bench, Figure
from benchmarks.gpu.clock import count_flops, time_call
from benchmarks.gpu.convolutions import record, time_convolutions
from benchmarks.gpu.experiments import vae_config
from walt_pl.models.vae import VAE

PRODUCTS = ((8192, 8192, 8192), (40960, 1024, 3072), (40960, 1024, 1024), (40960, 1024, 4096), (40960, 4096, 1024))
"""Rows, inner and columns. 40,960 tokens are 32 videos of 5 x 16 x 16."""
COPIED, QUICK_COPIED = 1 << 30, 1 << 20
"""Values of bfloat16."""


def measure(bench: Bench) -> None:
    for m, k, n in PRODUCTS:
        bench.attempt(f"GEMM {m} x {k} by {k} x {n}", lambda m=m, k=k, n=n: _product(bench, m, k, n))
    for way in ("encode", "decode"):
        bench.attempt(f"convolutions of the autoencoder, {way}", lambda way=way: _convolutions(bench, way))
    bench.attempt("copy", lambda: _copy(bench))


def _product(bench: Bench, m: int, k: int, n: int) -> dict[str, Figure]:
    m, k, n = (size // 64 if bench.quick else size for size in (m, k, n))
    a, b = (torch.randn(*shape, device=bench.device, dtype=bench.dtype) for shape in ((m, k), (k, n)))
    seconds = time_call(lambda: a @ b, bench.device, bench.quick)
    return {"ms": 1e3 * seconds, "tflops": 2 * m * k * n / seconds / 1e12}


@torch.no_grad()
def _convolutions(bench: Bench, way: str) -> dict[str, Figure]:
    with bench.device:
        vae = VAE(vae_config("ucf101/vae", bench.quick)).eval()
    x = make_clips(QUICK_CLIPS if bench.quick else CLIPS, bench)
    with bench.autocast():
        z = vae.encode(x).mean
        call = (lambda: vae.encode(x)) if way == "encode" else (lambda: vae.decode(z))
        flops, calls = count_flops(call), record(call)
    seconds = time_convolutions(calls, bench.device, bench.quick)
    return {"ms": 1e3 * seconds, "tflops": flops / seconds / 1e12}


def _copy(bench: Bench) -> dict[str, Figure]:
    source = torch.empty(QUICK_COPIED if bench.quick else COPIED, dtype=torch.bfloat16, device=bench.device)
    target = torch.empty_like(source)
    seconds = time_call(lambda: target.copy_(source), bench.device, bench.quick)
    return {"ms": 1e3 * seconds, "gb_per_second": 2 * source.nbytes / seconds / 1e9}
