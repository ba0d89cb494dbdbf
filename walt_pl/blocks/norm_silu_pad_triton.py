"""Triton kernels of `norm_silu_pad`, forward and backward, over channels-last memory.

A frame is a matrix [p c] of its positions and channels. A program reads whole rows of it, so every access is contiguous, also for
GroupNorm. No kernel uses atomics: a program adds up the rows of one slab in order, and a sum over the slabs in fixed order follows. The
same input therefore gives the same bits on a card. The slabs depend on the shape alone. The backward pass reads x and GroupNorm's
statistics; all else is computed again. (The scheme of channels-last GroupNorm by sums per channel: github.com/latentCall145/
channels-last-groupnorm; the difference: LayerNorm, one frame as the unit, padding, modulation, sums around a pivot.)
"""
# Triton has no type stubs, and its kernels take pointers and compile-time constants.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, import-untyped"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

PROGRAMS = 1056
"""Programs wanted of a kernel that adds up slabs: 8 for each multiprocessor of an H100, a constant so that bits do not depend on it."""
MOST_SLABS = 64
FORWARD_TILE, BACKWARD_TILE = 4096, 2048
"""Values a program holds at once (4 warps). Larger ones spill registers on Hopper."""


SIZES = ["S", "ROWS", "T", "P", "W", "ST", "SH", "SW", "SKIP"]
"""Sizes that no kernel is compiled for: each clip length and level would want its own."""


@triton.jit
def _load(base, rows, cols, P, C: constexpr):
    """Load rows and channels of a [p c] matrix in float32, zero outside."""
    return tl.load(base + rows[:, None] * C + cols[None, :], mask=(rows[:, None] < P) & (cols[None, :] < C), other=0.0).to(tl.float32)


@triton.jit
def _vector(base, cols, C: constexpr):
    """Load channels [1 c] in float32, zero outside."""
    return tl.load(base + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _normalise(x, conv_bias, statistics, f, rows, cols, P, eps, C: constexpr, G: constexpr):
    """Return normalised rows of frame f and 1 / standard deviation; G = 0 is LayerNorm."""
    v = _load(x + f * P * C, rows, cols, P, C)
    if conv_bias is not None:
        v += _vector(conv_bias, cols, C)
    if G > 0:
        at = statistics + (f * G + cols // (C // G)) * 2
        mean = tl.load(at, mask=cols < C, other=0.0)[None, :]
        rstd = tl.load(at + 1, mask=cols < C, other=0.0)[None, :]
        d = v - mean
    else:
        mean = tl.sum(v, 1)[:, None] / C
        d = tl.where(cols[None, :] < C, v - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(d * d, 1)[:, None] / C + eps)
    return d * rstd, rstd


@triton.jit
def _gain_and_shift(weight, bias, scale_shift, f, rows, cols, T, P, W, ST, SH, SW, SKIP, C: constexpr):
    """Return factor and summand of the normalised rows of frame f: the latent's scale and shift, else weight and bias."""
    if scale_shift is not None:
        frame = (f // T) * ((T + SKIP) // ST) + (f % T + SKIP) // ST
        cell = (frame * (P // W // SH) + rows // W // SH) * (W // SW) + rows % W // SW
        at = scale_shift + cell[:, None] * (2 * C) + cols[None, :]
        inside = (rows[:, None] < P) & (cols[None, :] < C)
        gain = 1 + tl.load(at, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(at + C, mask=inside, other=0.0).to(tl.float32)
    elif weight is not None:
        gain, shift = _vector(weight, cols, C), _vector(bias, cols, C)
    else:
        gain, shift = tl.full([1, cols.shape[0]], 1.0, tl.float32), tl.zeros([1, cols.shape[0]], tl.float32)
    return gain, shift


@triton.jit
def _output_gradient(g, u, f, rows, cols, T, P, PAST: constexpr, C: constexpr, ACTIVATION: constexpr, COPIES: constexpr):
    """Return the gradient of u, the values before SiLU, of frame f. The first frame's includes that of its copies in front."""
    first = g + (f // T) * (T + PAST) * P * C
    du = _load(first + (PAST + f % T) * P * C, rows, cols, P, C)
    if COPIES:  # noqa: SIM102  # decided at compile time, unlike the next line
        if f % T == 0:
            for k in range(PAST):
                du += _load(first + k * P * C, rows, cols, P, C)
    if ACTIVATION:
        s = tl.sigmoid(u)
        du *= s * (1 + u * (1 - s))
    return du


@triton.jit(do_not_specialize=["S", "ROWS", "P"])
def _sums_kernel(x, partial, P, S, ROWS, C: constexpr, CP: constexpr, BP: constexpr):
    """Add up one slab of a frame, [f s 2 c]: x minus the channel's first value, and its square.

    The first value lies within the data, so that a large mean costs no digits.
    """
    f, s = (tl.program_id(0) // S).to(tl.int64), tl.program_id(0) % S
    cols = tl.arange(0, CP)
    pivot = _vector(x + f * P * C, cols, C)
    total, squares = tl.zeros([BP, CP], tl.float32), tl.zeros([BP, CP], tl.float32)
    for start in range(s * ROWS, tl.minimum(P, s * ROWS + ROWS), BP):
        rows = start + tl.arange(0, BP)
        d = tl.where(rows[:, None] < P, _load(x + f * P * C, rows, cols, P, C) - pivot, 0.0)
        total += d
        squares += d * d
    at = partial + (f * S + s) * 2 * C + cols
    tl.store(at, tl.sum(total, 0), mask=cols < C)
    tl.store(at + C, tl.sum(squares, 0), mask=cols < C)


@triton.jit
def _slabs(partial, f, cols, inside, S, SP: constexpr, C: constexpr):
    """Add up the slabs of some channels of a frame: both sums."""
    slabs = tl.arange(0, SP)
    at = partial + (f * S + slabs[:, None]) * 2 * C + cols[None, :]
    mask = (slabs[:, None] < S) & inside[None, :]
    return tl.sum(tl.load(at, mask=mask, other=0.0), 0), tl.sum(tl.load(at + C, mask=mask, other=0.0), 0)


@triton.jit(do_not_specialize=["S", "P"])
def _statistics_kernel(
    x, conv_bias, partial, statistics, P, eps, S, SP: constexpr, C: constexpr, G: constexpr, GP: constexpr):  # fmt: skip
    """Store mean and 1 / standard deviation of one group of one frame, [f g 2]."""
    f, g = (tl.program_id(0) // G).to(tl.int64), tl.program_id(0) % G
    inside = tl.arange(0, GP) < C // G
    cols = g * (C // G) + tl.arange(0, GP)
    total, squares = _slabs(partial, f, cols, inside, S, SP, C)
    means = tl.load(x + f * P * C + cols, mask=inside, other=0.0).to(tl.float32) + total / P
    if conv_bias is not None:
        means += tl.load(conv_bias + cols, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(means, 0) / (C // G)
    d = tl.where(inside, means - mean, 0.0)
    variance = (tl.sum(squares - total * total / P, 0) / P + tl.sum(d * d, 0)) / (C // G)
    tl.store(statistics + (f * G + g) * 2, mean)
    tl.store(statistics + (f * G + g) * 2 + 1, tl.rsqrt(variance + eps))


@triton.jit(do_not_specialize=["T", "P", "W", "ST", "SH", "SW", "SKIP"])
def _apply_kernel(
    x, weight, bias, conv_bias, scale_shift, statistics, y, eps, T, P, W, ST, SH, SW, SKIP,
    C: constexpr, CP: constexpr, BP: constexpr, G: constexpr, PAST: constexpr, ACTIVATION: constexpr, COPIES: constexpr):  # fmt: skip
    """Store the output of one block of rows of one frame, and its copies in front."""
    blocks = tl.cdiv(P, BP)
    f = (tl.program_id(0) // blocks).to(tl.int64)
    rows, cols = (tl.program_id(0) % blocks) * BP + tl.arange(0, BP), tl.arange(0, CP)
    n, _ = _normalise(x, conv_bias, statistics, f, rows, cols, P, eps, C, G)
    gain, shift = _gain_and_shift(weight, bias, scale_shift, f, rows, cols, T, P, W, ST, SH, SW, SKIP, C)
    u = n * gain + shift
    if ACTIVATION:
        u *= tl.sigmoid(u)
    at = y + (f // T) * (T + PAST) * P * C + rows[:, None] * C + cols[None, :]
    mask = (rows[:, None] < P) & (cols[None, :] < C)
    u = u.to(y.dtype.element_ty)
    tl.store(at + (PAST + f % T) * P * C, u, mask=mask)
    if COPIES:  # noqa: SIM102  # decided at compile time, unlike the next line
        if f % T == 0:
            for k in range(PAST):
                tl.store(at + k * P * C, u, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _gradient_sums_kernel(
    g, x, weight, bias, conv_bias, scale_shift, statistics, partial, eps, S, ROWS, T, P, W, ST, SH, SW, SKIP,
    C: constexpr, CP: constexpr, BP: constexpr, G: constexpr, PAST: constexpr, ACTIVATION: constexpr, COPIES: constexpr):  # fmt: skip
    """Add up one slab of a frame, [f s 2 c]: the gradient behind weight and bias, and its product with the normalised x."""
    f, s = (tl.program_id(0) // S).to(tl.int64), tl.program_id(0) % S
    cols = tl.arange(0, CP)
    total, products = tl.zeros([BP, CP], tl.float32), tl.zeros([BP, CP], tl.float32)
    for start in range(s * ROWS, tl.minimum(P, s * ROWS + ROWS), BP):
        rows = start + tl.arange(0, BP)
        n, _ = _normalise(x, conv_bias, statistics, f, rows, cols, P, eps, C, G)
        gain, shift = _gain_and_shift(weight, bias, scale_shift, f, rows, cols, T, P, W, ST, SH, SW, SKIP, C)
        du = _output_gradient(g, n * gain + shift, f, rows, cols, T, P, PAST, C, ACTIVATION, COPIES)
        if scale_shift is not None:
            du *= gain
        total += du
        products += du * n
    at = partial + (f * S + s) * 2 * C + cols
    tl.store(at, tl.sum(total, 0), mask=cols < C)
    tl.store(at + C, tl.sum(products, 0), mask=cols < C)


@triton.jit(do_not_specialize=["S", "P"])
def _gradient_means_kernel(partial, weight, means, P, S, SP: constexpr, C: constexpr, G: constexpr, GP: constexpr):
    """Store the means over one group of one frame, [f g 2]: the gradient of the normalised x, and its product with it."""
    f, g = (tl.program_id(0) // G).to(tl.int64), tl.program_id(0) % G
    inside = tl.arange(0, GP) < C // G
    cols = g * (C // G) + tl.arange(0, GP)
    total, products = _slabs(partial, f, cols, inside, S, SP, C)
    if weight is not None:
        gain = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
        total, products = total * gain, products * gain
    tl.store(means + (f * G + g) * 2, tl.sum(total, 0) / (P * (C // G)))
    tl.store(means + (f * G + g) * 2 + 1, tl.sum(products, 0) / (P * (C // G)))


@triton.jit(do_not_specialize=SIZES)
def _input_gradient_kernel(
    g, x, weight, bias, conv_bias, scale_shift, statistics, means, dx, partial, eps, S, ROWS, T, P, W, ST, SH, SW, SKIP,
    C: constexpr, CP: constexpr, BP: constexpr, G: constexpr, PAST: constexpr, ACTIVATION: constexpr, COPIES: constexpr):  # fmt: skip
    """Store the gradient of x of one slab of a frame, and its sums [f s 3 c].

    The sums are those of conv_bias, and for LayerNorm those of bias and weight.
    """
    f, s = (tl.program_id(0) // S).to(tl.int64), tl.program_id(0) % S
    cols = tl.arange(0, CP)
    inside = cols[None, :] < C
    own = tl.zeros([BP, CP], tl.float32)
    total, products = tl.zeros([BP, CP], tl.float32), tl.zeros([BP, CP], tl.float32)
    for start in range(s * ROWS, tl.minimum(P, s * ROWS + ROWS), BP):
        rows = start + tl.arange(0, BP)
        n, rstd = _normalise(x, conv_bias, statistics, f, rows, cols, P, eps, C, G)
        gain, shift = _gain_and_shift(weight, bias, scale_shift, f, rows, cols, T, P, W, ST, SH, SW, SKIP, C)
        du = _output_gradient(g, n * gain + shift, f, rows, cols, T, P, PAST, C, ACTIVATION, COPIES)
        dn = du * gain
        if G > 0:
            at = means + (f * G + cols // (C // G)) * 2
            mean = tl.load(at, mask=cols < C, other=0.0)[None, :]
            product = tl.load(at + 1, mask=cols < C, other=0.0)[None, :]
        else:
            mean = tl.sum(dn, 1)[:, None] / C
            product = tl.sum(dn * n, 1)[:, None] / C
        d = rstd * (dn - mean - n * product)
        mask = (rows[:, None] < P) & inside
        tl.store(dx + f * P * C + rows[:, None] * C + cols[None, :], d.to(dx.dtype.element_ty), mask=mask)
        if conv_bias is not None:
            own += tl.where(rows[:, None] < P, d, 0.0)
        if G == 0 and weight is not None:
            total += du
            products += du * n
    at = partial + (f * S + s) * 3 * C + cols
    if conv_bias is not None:
        tl.store(at, tl.sum(own, 0), mask=cols < C)
    if G == 0 and weight is not None:
        tl.store(at + C, tl.sum(total, 0), mask=cols < C)
        tl.store(at + 2 * C, tl.sum(products, 0), mask=cols < C)


@triton.jit(do_not_specialize=["T", "P", "W", "ST", "SH", "SW", "SKIP"])
def _modulation_gradient_kernel(
    g, x, conv_bias, scale_shift, statistics, out, eps, T, P, W, ST, SH, SW, SKIP,
    C: constexpr, CP: constexpr, BP: constexpr, G: constexpr, PAST: constexpr, ACTIVATION: constexpr, COPIES: constexpr):  # fmt: skip
    """Store the gradient of scale and shift of one cell of the latent, summed over the frames, rows and columns that share it."""
    cell = tl.program_id(0).to(tl.int64)
    columns, lines, frames = W // SW, P // W // SH, (T + SKIP) // ST
    column, line, frame, b = cell % columns, cell // columns % lines, cell // (columns * lines) % frames, cell // (columns * lines * frames)
    cols = tl.arange(0, CP)
    scales, shifts = tl.zeros([BP, CP], tl.float32), tl.zeros([BP, CP], tl.float32)
    for t in range(tl.maximum(0, frame * ST - SKIP), tl.minimum(T, frame * ST - SKIP + ST)):
        for start in range(0, SH * SW, BP):
            at = start + tl.arange(0, BP)
            rows = tl.where(at < SH * SW, (line * SH + at // SW) * W + column * SW + at % SW, P)
            f = b * T + t
            n, _ = _normalise(x, conv_bias, statistics, f, rows, cols, P, eps, C, G)
            gain, shift = _gain_and_shift(None, None, scale_shift, f, rows, cols, T, P, W, ST, SH, SW, SKIP, C)
            du = _output_gradient(g, n * gain + shift, f, rows, cols, T, P, PAST, C, ACTIVATION, COPIES)
            scales += du * n
            shifts += du
    at = out + cell * 2 * C + cols
    tl.store(at, tl.sum(scales, 0).to(out.dtype.element_ty), mask=cols < C)
    tl.store(at + C, tl.sum(shifts, 0).to(out.dtype.element_ty), mask=cols < C)


def _meta(channels: int, groups: int, tile: int) -> dict[str, Any]:
    width = triton.next_power_of_2(channels)
    return {"C": channels, "CP": width, "BP": max(1, tile // width), "G": groups}


def _split(frames: int, positions: int, block: int) -> tuple[int, int]:
    """Return the slabs of a frame and the rows of each, a multiple of `block`."""
    slabs = min(MOST_SLABS, triton.cdiv(positions, block), triton.cdiv(PROGRAMS, frames))
    rows = triton.cdiv(triton.cdiv(positions, slabs), block) * block
    return triton.cdiv(positions, rows), rows


def _statistics(x: Tensor, conv_bias: Tensor | None, groups: int, eps: float) -> Tensor:
    """Return mean and 1 / standard deviation of each frame's groups, [f g 2]."""
    (b, c, t, h, w), meta = x.shape, _meta(x.shape[1], groups, FORWARD_TILE)
    frames, p = b * t, h * w
    slabs, rows = _split(frames, p, meta["BP"])
    partial = x.new_empty(frames, slabs, 2, c, dtype=torch.float32)
    _sums_kernel[(frames * slabs,)](x, partial, p, slabs, rows, c, meta["CP"], meta["BP"])
    statistics = x.new_empty(frames, groups, 2, dtype=torch.float32)
    width = triton.next_power_of_2(c // groups)
    _statistics_kernel[(frames * groups,)](x, conv_bias, partial, statistics, p, eps, slabs, MOST_SLABS, c, groups, width)
    return statistics


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_bias: Tensor | None,
    scale_shift: Tensor | None,
    groups: int,
    eps: float,
    repeats: list[int],
    activation: bool,
    past: int,
    copies: bool,
    y: Tensor,
) -> Tensor:
    """Fill the output y [b c past+t h w], but for frames in front that are no copies. Return GroupNorm's statistics [f g 2].

    All tensors lie in channels-last memory.
    """
    b, c, t, h, w = x.shape
    statistics = _statistics(x, conv_bias, groups, eps) if groups else x.new_empty(0, dtype=torch.float32)
    meta = _meta(c, groups, FORWARD_TILE)
    flags = {"PAST": past, "ACTIVATION": activation, "COPIES": copies}
    grid = (b * t * triton.cdiv(h * w, meta["BP"]),)
    _apply_kernel[grid](x, weight, bias, conv_bias, scale_shift, statistics, y, eps, t, h * w, w, *repeats, **meta, **flags)
    return statistics


def backward(
    g: Tensor,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_bias: Tensor | None,
    scale_shift: Tensor | None,
    groups: int,
    eps: float,
    repeats: list[int],
    activation: bool,
    past: int,
    copies: bool,
    dx: Tensor,
    dscale_shift: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fill dx and dscale_shift. Return the gradients of weight, bias and conv_bias, empty for those not given.

    All tensors lie in channels-last memory.
    """
    (b, c, t, h, w), meta = x.shape, _meta(x.shape[1], groups, BACKWARD_TILE)
    frames, p = b * t, h * w
    slabs, rows = _split(frames, p, meta["BP"])
    inputs = (weight, bias, conv_bias, scale_shift, statistics)
    sizes = (eps, slabs, rows, t, p, w, *repeats)
    flags = meta | {"PAST": past, "ACTIVATION": activation, "COPIES": copies}
    sums, means = x.new_empty(0), None
    if groups:
        sums = x.new_empty(frames * slabs, 2, c, dtype=torch.float32)
        _gradient_sums_kernel[(frames * slabs,)](g, x, *inputs, sums, *sizes, **flags)
        means, width = torch.empty_like(statistics), triton.next_power_of_2(c // groups)
        _gradient_means_kernel[(frames * groups,)](sums, weight, means, p, slabs, MOST_SLABS, c, groups, width)
    own = x.new_empty(frames * slabs, 3, c, dtype=torch.float32)
    _input_gradient_kernel[(frames * slabs,)](g, x, *inputs, means, dx, own, *sizes, **flags)
    if not groups:
        sums = own[:, 1:]
    dweight, dbias, dconv_bias = (x.new_empty(0) for _ in range(3))
    if weight is not None:
        dbias, dweight = (part.clone() for part in sums.sum(0).to(weight.dtype))
    if conv_bias is not None:
        dconv_bias = own[:, 0].sum(0).to(conv_bias.dtype)
    if dscale_shift is not None:
        cells = dscale_shift.numel() // (2 * c)
        arguments = (g, x, conv_bias, scale_shift, statistics, dscale_shift, eps, t, p, w, *repeats)
        _modulation_gradient_kernel[(cells,)](*arguments, **flags)
    return dweight, dbias, dconv_bias
