"""Window attention with a bias that learns, as operators that torch.compile takes as they are, and the check of their kernels.

The operators only launch Triton kernels: torch.compile has nothing to fuse there. `torch.library.custom_op` hides the launch from it. The
kernels are imported at the first launch, because not every machine has Triton.
"""

import functools
import warnings

import torch
from torch import Tensor

WIDEST_HEAD = 128
"""Largest width of a head that the kernels take: wider ones do not fit into shared memory."""
TOLERANCE = 2e-2
"""Largest relative error of outputs and gradients in `find_problem`; bfloat16 has 3e-3 to 6e-3 (FlexAttention and sdpa have the same)."""
_warned = False


@torch.library.custom_op("walt::window_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output [b heads n e] and the log-sum-exp to base 2 [b heads n]."""
    from walt_pl.blocks.window_attention_triton import forward

    o = _empty_merged(q)
    return o, forward(q, k, v, bias, o)


@torch.library.custom_op("walt::window_attention_backward", mutates_args=())
def _gradients(do: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, o: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dq, dk, dv [b heads n e] and dbias [heads n n]."""
    from walt_pl.blocks.window_attention_triton import backward

    return backward(do, q, k, v, bias, o, lse)


def _empty_merged(like: Tensor) -> Tensor:
    """Return empty memory [b heads n e] that is laid out as [b n heads e]."""
    b, heads, n, e = like.shape
    return like.new_empty(b, n, heads, e).transpose(1, 2)


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_merged(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@_gradients.register_fake
def _(do: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, o: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_merged(q), _empty_merged(q), _empty_merged(q), torch.empty_like(bias)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: torch.autograd.function.FunctionCtx, do: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    q, k, v, bias, o, lse = ctx.saved_tensors  # type: ignore[attr-defined]
    merged = do.to(q.dtype).transpose(1, 2).contiguous().transpose(1, 2)
    gradients: tuple[Tensor, ...] = _gradients(merged, q, k, v, bias, o, lse)
    return gradients


_attention.register_autograd(_backward, setup_context=_keep)


def compute_dtype_of(q: Tensor) -> torch.dtype:
    """Return the dtype that attention computes in: autocast's where it is on, else that of the queries."""
    kind = q.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else q.dtype


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(e) + bias) v, computed by the Triton kernels.

    The bias is passed in the dtype of the products: in float32 it would double the traffic of the L2 cache. The gradient has no gradient
    of its own: asked for it, torch says that `walt::window_attention_backward` has no formula. Type `attention: math` for that.

    Args:
        q: queries [b heads n e].
        k: keys [b heads n e].
        v: values [b heads n e].
        bias: [heads n n], equal for all windows.

    Returns:
        Attended values [b heads n e], laid out as [b n heads e].
    """
    dtype = compute_dtype_of(q)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q.to(dtype), k.to(dtype), v.to(dtype)))
    out: Tensor = _attention(q, k, v, bias.to(dtype).contiguous())[0]
    return out


def explain_refusal(q: Tensor) -> str | None:
    """Return why the kernels cannot run where the queries are; None if they can. It is for a person who typed `attention: triton`."""
    try:
        from walt_pl.blocks.window_attention_triton import INTERPRETED
    except ImportError as error:
        return f"needs Triton, which is not installed here ({error})"
    if q.shape[-1] > WIDEST_HEAD:
        return f"takes heads of at most {WIDEST_HEAD} channels, got {q.shape[-1]}"
    if INTERPRETED and compute_dtype_of(q) == torch.bfloat16:
        return "runs in Triton's interpreter here (TRITON_INTERPRET=1), which multiplies bfloat16 wrongly; use float32"
    if q.device.type != "cuda" and not INTERPRETED:
        return f"needs a CUDA GPU, and the model is on {q.device.type}"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def kernel_is_right(device: int, dtype: torch.dtype, heads: int, n: int, e: int) -> bool:
    """Return whether the kernels compile for these sizes and give right values; if not, warn once in a process.

    The first call compiles the kernels and runs them on a few windows. torch.compile calls it while it traces, and keeps the answer.

    Args:
        device: number of the GPU.
        dtype: of the products.
        heads: number of heads.
        n: tokens of a window.
        e: width of a head.
    """
    problem = find_problem(torch.device("cuda", device), dtype, heads, n, e)
    if problem:
        _warn_once(f"{heads} heads of {e} channels, windows of {n} tokens, {str(dtype).removeprefix('torch.')}: {problem}")
    return not problem


@functools.cache
def find_problem(device: torch.device, dtype: torch.dtype, heads: int, n: int, e: int) -> str:
    """Run the kernels on a few windows and compare them with matrix products. Return the problem in one line, or "".

    The windows make several groups of the bias gradient's sum, where these sizes ever do. The random state of a training is not
    advanced, and autocast does not reach the comparison.
    """
    generator = torch.Generator(device).manual_seed(0)
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            windows = _count_windows(heads, n, dtype)
            draws = [torch.randn(windows, n, 3, heads, e, generator=generator, device=device, dtype=dtype)]
            draws.append(torch.randn(windows, n, heads, e, generator=generator, device=device, dtype=dtype))
            bias = torch.randn(heads, n, n, generator=generator, device=device, dtype=dtype)
            q, k, v = (x.transpose(1, 2) for x in draws[0].unbind(2))
            # Norms of queries and keys return them contiguous, and strides are constants of a kernel: this compiles the ones in use.
            q, k, do = q.contiguous(), k.contiguous(), draws[1].transpose(1, 2)
            out, lse = _attention(q, k, v, bias)
            got = (out, *_gradients(do, q, k, v, bias, out, lse))
            want = _compute_by_window(do, q, k, v, bias)
            errors = [((a.float() - b).norm() / b.norm()).item() for a, b in zip(got, want, strict=True)]
    except torch.OutOfMemoryError:  # says nothing about the kernels, and must not be kept as their fault
        raise
    except Exception as error:  # of many classes: Triton, its compiler, the driver; sdpa computes the same, so training goes on
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    wrong = [f"{name} {error:.1e}" for name, error in zip(("out", "dq", "dk", "dv", "dbias"), errors, strict=True) if not error < TOLERANCE]
    return f"relative errors of {', '.join(wrong)}, wanted below {TOLERANCE}" if wrong else ""


def _count_windows(heads: int, n: int, dtype: torch.dtype) -> int:
    """Return the fewest of 3 to 16 windows that make several groups of several windows; 3 where these sizes always make one group."""
    from walt_pl.blocks.window_attention_triton import group_dbias

    return next((windows for windows in range(3, 17) if 1 < group_dbias(windows, heads, n, dtype)[1] < windows), 3)


def _compute_by_window(do: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Return `attention_and_gradients` in float32. The matrices of one window at a time are in memory: a training may have filled it."""
    of_windows = zip(*(x.split(1) for x in (do, q, k, v)), strict=True)
    parts = [attention_and_gradients(*(x.float() for x in (*of_window, bias))) for of_window in of_windows]
    *by_window, dbias = zip(*parts, strict=True)
    return (*(torch.cat(x) for x in by_window), sum(dbias[1:], dbias[0]))


def attention_and_gradients(do: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Return out, dq, dk, dv and dbias by matrix products, without autograd: the twin of both operators.

    Args:
        do: gradient of the output [b heads n e].
        q: queries [b heads n e].
        k: keys [b heads n e].
        v: values [b heads n e].
        bias: [heads n n].
    """
    scale = q.shape[-1] ** -0.5
    p = ((q * scale) @ k.mT + bias).softmax(-1)
    dp = do @ v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True))
    return p @ v, ds @ k * scale, ds.mT @ q * scale, p.mT @ do, ds.sum(0)


def _warn_once(problem: str) -> None:
    """Warn of the first problem of the process. The layers of a model have several sizes, and one cause fails for all of them."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"attention: auto takes sdpa in place of the Triton kernel, which does not run here ({problem}). Results are right, and "
            "slower. Only a training has a choice: --model.denoiser.attention sdpa leaves out this check, and its artifact keeps that",
            RuntimeWarning,
            stacklevel=3,
        )
