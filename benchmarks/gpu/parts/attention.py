"""Window attention alone, forward and backward with the gradient of the bias table, 16 heads of 64.

`ms` is the time of the device. A call is captured as a CUDA graph, and its replays are timed: to launch the kernels of one layer from
Python takes longer than their work, and training hides that behind other layers. `timed` says `calls` where a capture failed.
`table_error` is the largest error of the table's gradient over its largest value, against float32 matrix products. Flash without bias is
a floor and not the model.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.bench import Bench, Figure
from benchmarks.gpu.clock import time_replays
from benchmarks.gpu.denoiser_pass import check_attention
from walt_pl.blocks.attention import AttentionName, RelativePositionBias, Window, attend

HEADS, WIDTH = 16, 64
WINDOWS: dict[str, tuple[Window, int]] = {
    "SW 1x16x16": ((1, 16, 16), 160),
    "STW 5x8x8": ((5, 8, 8), 128),
    "448 tokens": ((7, 8, 8), 64),
    "560 tokens": ((5, 8, 14), 64),
    "1,024 tokens": ((1, 32, 32), 32),
}
"""Row -> window, and number of windows. The first two are those of 32 videos of the L model."""
WAYS = ("sdpa", "math", "flex", "flash without bias", "triton")
"""Triton is last: a kernel that faults leaves a context that can do nothing more."""
BLOCKS = {f"BLOCK_{side}": 64 for side in ("M", "N", "M1", "N1", "M2", "N2")}
"""Blocks of FlexAttention; its own choice wants more shared memory than an H200 has."""
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def measure(bench: Bench) -> None:
    for way in WAYS:
        for row, (window, windows) in WINDOWS.items():
            bench.attempt(f"{row}: {way}", lambda window=window, windows=windows, way=way: _measure(bench, window, windows, way))


def _measure(bench: Bench, window: Window, windows: int, way: str) -> dict[str, Figure]:
    attention = _find(way, bench)
    window, windows = ((2, 2, 4), 2) if bench.quick else (window, windows)
    n = window[0] * window[1] * window[2]
    with bench.device:
        bias = RelativePositionBias(window, HEADS)
        torch.nn.init.normal_(bias.table)
        q, k, v, gradient = (torch.randn(windows, n, HEADS, WIDTH, dtype=bench.dtype).transpose(1, 2) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()

    def call() -> None:
        for x in (q, k, v, bias.table):
            x.grad = None
        attention(q, k, v, bias()).backward(gradient)

    seconds, timed = time_replays(call, bench.device, bench.quick)
    # Forward 4 b h n^2 e, backward twice that; what a kernel computes again does not count.
    figures = {**bench.peak_gb(), **bench.speed(seconds, 12 * windows * HEADS * n * n * WIDTH), "timed": timed}
    if bias.table.grad is None:
        return figures
    found = bias.table.grad.float()
    bias.table.grad = None
    attend(*(x.detach().float() for x in (q, k, v)), bias(), "math").backward(gradient.float())
    return {**figures, "table_error": float((found - bias.table.grad).abs().max() / bias.table.grad.abs().max())}


def _find(way: str, bench: Bench) -> Attention:
    if way == "flash without bias":
        return _flash
    if way == "flex":
        bench.require_gpu()  # it has no backward pass on CPUs
        return _flex()
    check_attention(way, bench)
    name = cast(AttentionName, way)
    return lambda q, k, v, bias: attend(q, k, v, bias, name)


def _flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


def _flex() -> Attention:
    from torch.nn.attention.flex_attention import flex_attention

    torch.compiler.reset()  # code of a row before would count towards the limit of recompilations
    compiled = torch.compile(flex_attention)

    def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        low = bias.to(q.dtype)
        return compiled(q, k, v, score_mod=lambda score, b, h, i, j: score + low[h, i, j], kernel_options=BLOCKS)

    return attention
