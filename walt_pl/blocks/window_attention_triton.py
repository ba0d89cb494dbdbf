# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"
"""Triton kernels of window attention with a bias that learns: softmax(q k^T / sqrt(e) + bias) v, forward and backward.

All windows share the bias [heads n n]. The kernels follow FlashAttention-2 (arXiv 2307.08691): online softmax, a kept log-sum-exp, scores
computed again in the backward pass. The gradient of the bias is the sum of dS over the windows. A program owns one tile of one head and
adds the windows of one group in registers, in order. The groups' partial sums [groups heads n n] are then added in order. No kernel uses
atomic additions. Equal inputs give equal bits while blocks and groups stay, so both come from a fixed table and not from a search.

Programs run head slowest, then window, then block. The blocks of a window read its keys and values at about the same time. All programs
in flight belong to one or two heads, so the L2 cache holds their bias. Strides are constants of the compilation: this saves 30 to 60
registers. The output is laid out as [b n heads e], so merging the heads copies nothing.

Differences to FlashAttention-2: the bias and its gradient; the kernel of dq also computes delta; a window has few blocks, so the order
of programs counts more than their number. A batch of another size compiles nothing again: the number of windows is never specialised.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Triton's interpreter runs the kernels on the CPU: TRITON_INTERPRET=1 was set. Its products of bfloat16 are wrong."""
LOG2E = constexpr(1.4426950408889634)
LOWEST = constexpr(-1e30)  # finite: a row of padding has logits of minus infinity alone, and inf - inf would be NaN

Blocks = tuple[int, int, int, int]
BLOCKS: dict[str, tuple[Blocks, ...]] = {
    "forward": ((128, 64, 8, 3), (64, 64, 4, 2)),
    "dq": ((64, 32, 4, 3),),
    "dkv": ((32, 64, 4, 3),),
    "dbias": ((64, 64, 4, 3),),
}
"""Queries a block, keys a block, warps and stages, for Hopper. The first that pads the window least is taken.

Chosen on an H200 among 7 to 17 candidates a kernel, in bfloat16 with 16 heads of 64, by replays of a CUDA graph. Microseconds for SW (160
windows of 256 tokens) and STW (128 of 320): forward 178 and 217, dq 211 and 239, dkv 330 and 397, dbias 167 and 230. In dq, dkv and dbias,
blocks of 128 with 8 warps take 1.1 to 2.1 times as long. None of these spills."""
BLOCKS_FLOAT32: Blocks = (32, 32, 8, 1)
"""Exact float32 products run outside the tensor cores. They are for tests of equality, not for speed.
The interpreter takes `BLOCKS`: it then tests the blocks of training."""
WARPS_AT_ONCE = 132 * 8
"""Warps of the dbias kernel that an H100 or H200 runs at once. A constant for all cards, because the groups decide the bits."""


@triton.jit
def _load_tile(base, rows, stride, N: constexpr, E: constexpr, EP: constexpr, EVEN: constexpr):
    """Load rows of a matrix [n e] as a tile [rows EP], with zeros beyond n and e."""
    columns = tl.arange(0, EP)
    at = base + rows[:, None] * stride + columns[None, :]
    if EVEN and E == EP:
        return tl.load(at)
    return tl.load(at, mask=(rows[:, None] < N) & (columns[None, :] < E), other=0.0)


@triton.jit
def _store_tile(base, rows, x, stride, N: constexpr, E: constexpr, EP: constexpr):
    """Store a tile [rows EP] where `_load_tile` reads it, in the dtype of the memory."""
    columns = tl.arange(0, EP)
    at = base + rows[:, None] * stride + columns[None, :]
    tl.store(at, x.to(base.dtype.element_ty), mask=(rows[:, None] < N) & (columns[None, :] < E))


@triton.jit
def _load_rows(base, rows, N: constexpr):
    """Load a number of each row, with zeros beyond n."""
    return tl.load(base + rows, mask=rows < N, other=0.0)


@triton.jit
def _logits(left, right, bias, inside, scale, EVEN: constexpr):
    """Return scores [l r] plus the bias at pointers `bias` [l r], times log2(e); minus infinity outside the window."""
    scores = tl.dot(left, tl.trans(right), input_precision="ieee") * (scale * LOG2E)
    added = tl.load(bias) if EVEN else tl.load(bias, mask=inside, other=float("-inf"))
    return scores + added.to(tl.float32) * LOG2E


@triton.jit
def _score_gradient(q, k, v, do, lse, delta, bias, rows, columns, scale, N: constexpr, EVEN: constexpr):
    """Return dS [rows columns] = p (dp - delta) of loaded tiles; `bias` points to the head's matrix."""
    at = bias + rows[:, None] * N + columns[None, :]
    logits = _logits(q, k, at, (rows[:, None] < N) & (columns[None, :] < N), scale, EVEN)
    p = tl.exp2(logits - lse[:, None])
    return p * (tl.dot(do, tl.trans(v), input_precision="ieee") - delta[:, None])


@triton.jit
def _place(blocks, windows):
    """Return (block, window, head) of this program: the head changes slowest, then the window, then the block."""
    program = tl.program_id(0)
    return program % blocks, ((program // blocks) % windows).to(tl.int64), program // (blocks * windows)


@triton.jit(do_not_specialize=["windows"])
def _forward_kernel(
    q, k, v, bias, o, lse, scale, windows,
    Q: constexpr, K: constexpr, V: constexpr, H: constexpr, N: constexpr, E: constexpr, EP: constexpr,
    BM: constexpr, BN: constexpr, EVEN: constexpr,
):  # fmt: skip
    """Write o [b n heads e] and the log-sum-exp to base 2 [b heads n] of one block of queries."""
    block, b, h = _place(tl.cdiv(N, BM), windows)
    rows = block * BM + tl.arange(0, BM)
    queries = _load_tile(q + b * Q[0] + h * Q[1], rows, Q[2], N, E, EP, EVEN)
    top = tl.full([BM], LOWEST, tl.float32)
    total = tl.zeros([BM], tl.float32)
    sums = tl.zeros([BM, EP], tl.float32)
    for start in range(0, N, BN):
        columns = start + tl.arange(0, BN)
        keys = _load_tile(k + b * K[0] + h * K[1], columns, K[2], N, E, EP, EVEN)
        at = bias + h * N * N + rows[:, None] * N + columns[None, :]
        logits = _logits(queries, keys, at, (rows[:, None] < N) & (columns[None, :] < N), scale, EVEN)
        higher = tl.maximum(top, tl.max(logits, 1))
        p = tl.exp2(logits - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        values = _load_tile(v + b * V[0] + h * V[1], columns, V[2], N, E, EP, EVEN)
        sums = tl.dot(p.to(values.dtype), values, sums * shrink[:, None], input_precision="ieee")
        top = higher
    _store_tile(o + (b * N * H + h) * E, rows, sums / total[:, None], H * E, N, E, EP)
    tl.store(lse + (b * H + h) * N + rows, top + tl.log2(total), mask=rows < N)


@triton.jit(do_not_specialize=["windows"])
def _dq_kernel(
    q, k, v, bias, o, do, lse, delta, dq, scale, windows,
    Q: constexpr, K: constexpr, V: constexpr, H: constexpr, N: constexpr, E: constexpr, EP: constexpr,
    BM: constexpr, BN: constexpr, EVEN: constexpr,
):  # fmt: skip
    """Write dq [b n heads e] of one block of queries, and delta = rowsum(do o) [b heads n] for the kernels that follow."""
    block, b, h = _place(tl.cdiv(N, BM), windows)
    rows = block * BM + tl.arange(0, BM)
    merged = (b * N * H + h) * E
    queries = _load_tile(q + b * Q[0] + h * Q[1], rows, Q[2], N, E, EP, EVEN)
    given = _load_tile(do + merged, rows, H * E, N, E, EP, EVEN)
    out = _load_tile(o + merged, rows, H * E, N, E, EP, EVEN)
    shift = tl.sum(given.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta + (b * H + h) * N + rows, shift, mask=rows < N)
    scales = _load_rows(lse + (b * H + h) * N, rows, N)
    sums = tl.zeros([BM, EP], tl.float32)
    for start in range(0, N, BN):
        columns = start + tl.arange(0, BN)
        keys = _load_tile(k + b * K[0] + h * K[1], columns, K[2], N, E, EP, EVEN)
        values = _load_tile(v + b * V[0] + h * V[1], columns, V[2], N, E, EP, EVEN)
        ds = _score_gradient(queries, keys, values, given, scales, shift, bias + h * N * N, rows, columns, scale, N, EVEN)
        sums = tl.dot(ds.to(keys.dtype), keys, sums, input_precision="ieee")
    _store_tile(dq + merged, rows, sums * scale, H * E, N, E, EP)


@triton.jit(do_not_specialize=["windows"])
def _dkv_kernel(
    q, k, v, bias, do, lse, delta, dk, dv, scale, windows,
    Q: constexpr, K: constexpr, V: constexpr, H: constexpr, N: constexpr, E: constexpr, EP: constexpr,
    BM: constexpr, BN: constexpr, EVEN: constexpr,
):  # fmt: skip
    """Write dk and dv [b n heads e] of one block of keys. Its tiles are transposed, [keys queries]: no product needs a transposed p."""
    block, b, h = _place(tl.cdiv(N, BN), windows)
    columns = block * BN + tl.arange(0, BN)
    merged = (b * N * H + h) * E
    keys = _load_tile(k + b * K[0] + h * K[1], columns, K[2], N, E, EP, EVEN)
    values = _load_tile(v + b * V[0] + h * V[1], columns, V[2], N, E, EP, EVEN)
    sums_k = tl.zeros([BN, EP], tl.float32)
    sums_v = tl.zeros([BN, EP], tl.float32)
    for start in range(0, N, BM):
        rows = start + tl.arange(0, BM)
        queries = _load_tile(q + b * Q[0] + h * Q[1], rows, Q[2], N, E, EP, EVEN)
        given = _load_tile(do + merged, rows, H * E, N, E, EP, EVEN)
        scales = _load_rows(lse + (b * H + h) * N, rows, N)
        shift = _load_rows(delta + (b * H + h) * N, rows, N)
        at = bias + h * N * N + rows[None, :] * N + columns[:, None]
        logits = _logits(keys, queries, at, (columns[:, None] < N) & (rows[None, :] < N), scale, EVEN)
        p = tl.exp2(logits - scales[None, :])
        sums_v = tl.dot(p.to(given.dtype), given, sums_v, input_precision="ieee")
        ds = p * (tl.dot(values, tl.trans(given), input_precision="ieee") - shift[None, :])
        sums_k = tl.dot(ds.to(queries.dtype), queries, sums_k, input_precision="ieee")
    _store_tile(dk + merged, columns, sums_k * scale, H * E, N, E, EP)
    _store_tile(dv + merged, columns, sums_v, H * E, N, E, EP)


@triton.jit(do_not_specialize=["windows", "group_size"])
def _dbias_kernel(
    q, k, v, bias, do, lse, delta, partial, group_size, scale, windows,
    Q: constexpr, K: constexpr, V: constexpr, H: constexpr, N: constexpr, E: constexpr, EP: constexpr,
    BM: constexpr, BN: constexpr, EVEN: constexpr,
):  # fmt: skip
    """Write the sum of dS over the windows of one group, in order, for one tile of one head, to partial [groups heads n n]."""
    across = tl.cdiv(N, BN)
    tile, group, h = _place(tl.cdiv(N, BM) * across, tl.cdiv(windows, group_size))
    rows = tile // across * BM + tl.arange(0, BM)
    columns = tile % across * BN + tl.arange(0, BN)
    sums = tl.zeros([BM, BN], tl.float32)
    first = group * group_size
    for b in range(first, tl.minimum(windows, first + group_size)):
        queries = _load_tile(q + b * Q[0] + h * Q[1], rows, Q[2], N, E, EP, EVEN)
        given = _load_tile(do + (b * N * H + h) * E, rows, H * E, N, E, EP, EVEN)
        keys = _load_tile(k + b * K[0] + h * K[1], columns, K[2], N, E, EP, EVEN)
        values = _load_tile(v + b * V[0] + h * V[1], columns, V[2], N, E, EP, EVEN)
        scales = _load_rows(lse + (b * H + h) * N, rows, N)
        shift = _load_rows(delta + (b * H + h) * N, rows, N)
        sums += _score_gradient(queries, keys, values, given, scales, shift, bias + h * N * N, rows, columns, scale, N, EVEN)
    at = partial + (group * H + h) * N * N + rows[:, None] * N + columns[None, :]
    tl.store(at, sums, mask=(rows[:, None] < N) & (columns[None, :] < N))


def blocks_of(kernel: str, n: int, dtype: torch.dtype) -> Blocks:
    """Return (queries a block, keys a block, warps, stages) of a kernel for windows of `n` tokens."""
    if dtype == torch.float32 and not INTERPRETED:
        return BLOCKS_FLOAT32
    return min(BLOCKS[kernel], key=lambda blocks: triton.cdiv(n, blocks[0]) * blocks[0] * triton.cdiv(n, blocks[1]) * blocks[1])


def constants_of(kernel: str, q: Tensor, k: Tensor, v: Tensor) -> dict[str, object]:
    """Return the constants that a kernel is compiled for: strides of windows, heads and tokens, sizes, blocks, warps, stages."""
    n, e = q.shape[2:]
    m, r, warps, stages = blocks_of(kernel, n, q.dtype)
    strides = {"Q": q.stride()[:3], "K": k.stride()[:3], "V": v.stride()[:3]}
    sizes = {"H": q.shape[1], "N": n, "E": e, "EP": max(16, triton.next_power_of_2(e)), "BM": m, "BN": r, "EVEN": n % m == n % r == 0}
    return {**strides, **sizes, "num_warps": warps, "num_stages": stages}


def group_windows(windows: int, programs: int, at_once: int) -> int:
    """Return the number of windows in a group: the fewest groups, of at most 8, that leave few places of the chip idle.

    Args:
        windows: number of windows.
        programs: programs of one group.
        at_once: programs that run at once.
    """
    filled = [programs * groups / (triton.cdiv(programs * groups, at_once) * at_once) for groups in range(1, min(windows, 8) + 1)]
    groups = next(groups for groups, share in enumerate(filled, 1) if share >= max(filled) - 0.06)
    return int(triton.cdiv(windows, groups))


def group_dbias(windows: int, heads: int, n: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return the programs of one group of the dbias kernel, and the number of windows in a group."""
    rows, columns, warps, _ = blocks_of("dbias", n, dtype)
    programs = triton.cdiv(n, rows) * triton.cdiv(n, columns) * heads
    return programs, group_windows(windows, programs, WARPS_AT_ONCE // warps)


def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, o: Tensor) -> Tensor:
    """Run the forward kernel.

    Args:
        q: queries [b heads n e], the last axis contiguous.
        k: keys of the same form.
        v: values of the same form.
        bias: [heads n n], contiguous, in the dtype of q or float32.
        o: memory of the output [b heads n e], laid out as [b n heads e].

    Returns:
        Log-sum-exp to base 2, float32 [b heads n].
    """
    b, heads, n, e = q.shape
    lse = q.new_empty(b, heads, n, dtype=torch.float32)
    constants = constants_of("forward", q, k, v)
    _forward_kernel[(triton.cdiv(n, constants["BM"]) * b * heads,)](q, k, v, bias, o, lse, e**-0.5, b, **constants)
    return lse


def backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, o: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the three backward kernels and add the groups' sums.

    Args:
        do: gradient of the output [b heads n e], laid out as [b n heads e].
        q: as in `forward`.
        k: as in `forward`.
        v: as in `forward`.
        bias: as in `forward`.
        o: output of the forward kernel.
        lse: its log-sum-exp.

    Returns:
        dq, dk, dv, laid out as `o`, and dbias [heads n n] in the dtype of the bias.
    """
    b, heads, n, e = q.shape
    scale = e**-0.5
    dq, dk, dv, delta = torch.empty_like(do), torch.empty_like(do), torch.empty_like(do), torch.empty_like(lse)
    constants = constants_of("dq", q, k, v)
    _dq_kernel[(triton.cdiv(n, constants["BM"]) * b * heads,)](q, k, v, bias, o, do, lse, delta, dq, scale, b, **constants)
    constants = constants_of("dkv", q, k, v)
    _dkv_kernel[(triton.cdiv(n, constants["BN"]) * b * heads,)](q, k, v, bias, do, lse, delta, dk, dv, scale, b, **constants)
    programs, group_size = group_dbias(b, heads, n, q.dtype)
    groups = triton.cdiv(b, group_size)
    partial = q.new_empty(groups, heads, n, n, dtype=torch.float32)
    constants = constants_of("dbias", q, k, v)
    _dbias_kernel[(programs * groups,)](q, k, v, bias, do, lse, delta, partial, group_size, scale, b, **constants)
    return dq, dk, dv, partial.sum(0).to(bias.dtype)
