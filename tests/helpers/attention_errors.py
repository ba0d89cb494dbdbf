"""Errors of window attention's kernels against float64.

As a program it runs in Triton's interpreter, whose switch must be set before the first import of Triton: a process of its own.
"""

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from walt_pl.blocks.attention import AttentionName, RelativePositionBias, Window, WindowAttention, attend
from walt_pl.blocks.frames import FrameLayout
from walt_pl.blocks.window_attention import find_problem

NAMES = ("out", "dq", "dk", "dv", "dbias", "dtable")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def draw(*shape: int, seed: int, device: str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def results(name: AttentionName, windows: int, heads: int, window: Window, e: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return the tensors of `NAMES`, all from inputs of `dtype`; for `math` in float64 from the rounded inputs."""
    n = window[0] * window[1] * window[2]
    exact = torch.float64 if name == "math" else dtype
    qkv = draw(windows, n, 3, heads, e, seed=0, device=device).to(dtype).to(exact).requires_grad_()
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    module = RelativePositionBias(window, heads).to(device)
    table = draw(heads, module.table.shape[1], seed=1, device=device).to(dtype).to(exact).requires_grad_()
    module.table = torch.nn.Parameter(table.detach())
    bias = module()
    do = draw(windows, heads, n, e, seed=2, device=device).to(dtype).to(exact)
    out = attend(q, k, v, bias, name)
    dqkv, dbias, dtable = torch.autograd.grad(out, (qkv, bias, module.table), do)
    return [out, *dqkv.unbind(2), dbias, dtable]


def errors(windows: int, heads: int, window: Window, e: int, dtype: torch.dtype, device: str) -> dict[str, float | bool]:
    """Return the relative error of each tensor of `NAMES`, and whether a repeat has equal bits."""
    case = (windows, heads, window, e, dtype, device)
    got, want = results("triton", *case), results("math", *case)
    pairs = [(a.detach().double(), b.detach()) for a, b in zip(got, want, strict=True)]
    found: dict[str, float | bool] = {name: float((a - b).norm() / b.norm()) for name, (a, b) in zip(NAMES, pairs, strict=True)}
    if got[4].numel() < 30_000 or device == "cuda":
        found["repeats"] = all(map(torch.equal, got, results("triton", *case)))
    return found


def compiled_differences() -> list[float]:
    """Return the largest difference of output and gradients between an attention layer and its traced form, for SW and STW windows."""
    found = []
    for window in ((1, 4, 4), (2, 2, 2)):
        layer = WindowAttention(16, 2, window, "layer", "triton")
        torch.nn.init.normal_(layer.bias.table)
        x, layout = draw(4, 16, 16, seed=4, device="cpu").requires_grad_(), FrameLayout(2, 2, 0)
        both = []
        for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
            y = run(x, layout, (4, 4))
            both.append([y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))])
        found += [float((a - b).detach().abs().max()) for a, b in zip(*both, strict=True)]
    return found


def refusals() -> list[str]:
    """Return the messages for bfloat16 in the interpreter, for a head that is too wide, and for a second gradient."""
    x, bias = draw(1, 1, 16, 16, seed=5, device="cpu").requires_grad_(), torch.zeros(1, 16, 16)
    (gradient,) = torch.autograd.grad(attend(x, x, x, bias, "triton").sum(), x, create_graph=True)
    wide = draw(1, 1, 16, 129, seed=5, device="cpu")
    found = []
    for call in (
        lambda: attend(x.bfloat16(), x.bfloat16(), x.bfloat16(), bias, "triton"),
        lambda: attend(wide, wide, wide, bias, "triton"),
        gradient.sum().backward,
    ):
        try:
            call()
        except (ValueError, RuntimeError) as error:
            found.append(str(error))
    return found


def problems() -> list[str]:
    """Return the answers of the check of the kernels: as they are, and with a second group of the bias gradient that is lost."""
    from walt_pl.blocks import window_attention_triton as kernels

    size = (torch.device("cpu"), torch.float16, 4, 16, 16)
    found, kernel = [find_problem(*size)], kernels._dbias_kernel

    class LosesGroups:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            def launch(*arguments: Any, **constants: Any) -> None:
                kernel[grid](*arguments, **constants)
                arguments[kernel.arg_names.index("partial")][1:] = 0

            return launch

    kernels._dbias_kernel = LosesGroups()
    find_problem.cache_clear()
    found.append(find_problem(*size))
    kernels._dbias_kernel = kernel
    return found


def report(cases: list[list[Any]]) -> dict[str, Any]:
    """Return the errors of each case [windows, heads, window, e, dtype], and the other findings."""
    groups = record_groups()
    measured = [errors(b, heads, tuple(window), e, DTYPES[dtype], "cpu") for b, heads, window, e, dtype in cases]
    return {"errors": measured, "groups": groups, "compiled": compiled_differences(), "refusals": refusals(), "problems": problems()}


def record_groups() -> list[tuple[int, int]]:
    """Return a list that gets windows and group size of each backward pass, of a chip so small that few windows make several groups."""
    from walt_pl.blocks import window_attention_triton as kernels

    sizes, group_windows = [], kernels.group_windows

    def record(windows: int, programs: int, at_once: int) -> int:
        sizes.append((windows, group_windows(windows, programs, at_once)))
        return sizes[-1][1]

    kernels.WARPS_AT_ONCE, kernels.group_windows = 32, record
    return sizes


if __name__ == "__main__":
    warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter divides rows of padding, which are never stored, by zero
    print(json.dumps(report(json.loads(sys.argv[1]))))
