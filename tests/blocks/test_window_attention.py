"""The choice of the kernel: by itself where it is right, and never in silence where it is not."""

import re
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from walt_pl.blocks import window_attention
from walt_pl.blocks.window_attention import attention_and_gradients, find_problem, kernel_is_right

group_dbias = pytest.importorskip("walt_pl.blocks.window_attention_triton", reason="needs Triton, which is not everywhere").group_dbias


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_attention_and_gradients_equals_autograd() -> None:
    inputs = [draw(3, 2, 7, 8, seed=seed).requires_grad_() for seed in range(3)] + [draw(2, 7, 7, seed=3).requires_grad_()]
    do = draw(3, 2, 7, 8, seed=4)
    q, k, v, bias = inputs
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(3, -1, -1, -1))
    want = (out, *torch.autograd.grad(out, inputs, do))
    for got, expected in zip(attention_and_gradients(do, *inputs), want, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.fixture
def twin_as_kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Let matrix products stand for the kernel, with a factor on the gradient of the bias."""
    factor = {"dbias": 1.0}

    def gradients(do: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        *rest, dbias = attention_and_gradients(do, q, k, v, bias)[1:]
        return (*rest, dbias * factor["dbias"])

    monkeypatch.setattr(window_attention, "_attention", lambda *args: (attention_and_gradients(args[0], *args)[0], args[0]))
    monkeypatch.setattr(window_attention, "_gradients", gradients)
    return factor


def test_find_problem_accepts_a_right_kernel_and_names_a_wrong_gradient(twin_as_kernel: dict[str, float]) -> None:
    sizes = (torch.device("cpu"), torch.bfloat16, 2, 16, 8)
    state = torch.get_rng_state()
    find_problem.cache_clear()
    assert find_problem(*sizes) == ""
    twin_as_kernel["dbias"] = 1.1
    find_problem.cache_clear()
    assert re.fullmatch(r"relative errors of dbias (9\.\d|1\.0)e-0\d, wanted below 0.02", find_problem(*sizes))
    twin_as_kernel["dbias"] = float("nan")
    find_problem.cache_clear()
    assert "errors of dbias nan" in find_problem(*sizes)
    find_problem.cache_clear()
    assert torch.equal(torch.get_rng_state(), state), "the check moves the random state of a training"


def test_find_problem_finds_a_wrong_second_group_of_the_bias_gradient(monkeypatch: pytest.MonkeyPatch, twin_as_kernel: Any) -> None:
    """The kernel adds the windows of a group, and then the groups; a training has several of both."""
    factors = [1.0, 1.0]
    seen: list[tuple[int, int]] = []

    def gradients(do: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        size = group_dbias(len(q), *q.shape[1:3], q.dtype)[1]
        seen.append((len(q), size))
        dq, dk, dv = attention_and_gradients(do, q, k, v, bias)[1:4]
        groups = [attention_and_gradients(*(x[start : start + size] for x in (do, q, k, v)), bias)[4] for start in range(0, len(q), size)]
        return dq, dk, dv, sum(factor * group for factor, group in zip(factors, groups, strict=True))  # type: ignore[return-value]

    monkeypatch.setattr(window_attention, "_gradients", gradients)
    sizes = (torch.device("cpu"), torch.bfloat16, 4, 16, 8)
    find_problem.cache_clear()
    assert find_problem(*sizes) == "" and seen == [(5, 3)], "two groups, of which the first has several windows"
    factors[1] = 0.9
    find_problem.cache_clear()
    assert re.fullmatch(r"relative errors of dbias \d\.\de-02, wanted below 0.02", find_problem(*sizes))
    find_problem.cache_clear()


@pytest.mark.parametrize(("heads", "n"), [(16, 256), (16, 320), (4, 320), (16, 448), (2, 16), (4, 16), (16, 1024)])
def test_find_problem_takes_several_groups_where_a_training_has_them(heads: int, n: int) -> None:
    windows = window_attention._count_windows(heads, n, torch.bfloat16)
    several = [of for of in range(3, 65) if 1 < group_dbias(of, heads, n, torch.bfloat16)[1] < of]
    assert windows == (several[0] if several else 3) and 3 <= windows <= 16


def test_kernel_is_right_warns_once_over_two_sizes_and_names_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_attention, "find_problem", lambda device, dtype, heads, n, e: f"cause {n}" if n > 1 else "")
    monkeypatch.setattr(window_attention, "_warned", False)
    with pytest.warns(RuntimeWarning) as told:
        answers = [kernel_is_right(0, torch.bfloat16, 2, n, 8) for n in (1, 20, 20, 30, 20, 30)]
    assert answers == [True, *[False] * 5]
    (message,) = (str(one.message) for one in told)
    assert "auto takes sdpa in place of the Triton kernel" in message
    assert "2 heads of 8 channels, windows of 20 tokens, bfloat16: cause 20)" in message
    assert "Only a training has a choice: --model.denoiser.attention sdpa" in message, "sample and evaluate have no such option"


def test_kernel_is_right_falls_back_where_triton_or_a_gpu_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "walt_pl.blocks.window_attention_triton", None)
    find_problem.cache_clear()
    assert "window_attention_triton" in find_problem(torch.device("cpu"), torch.float32, 1, 16, 8)
    find_problem.cache_clear()


def test_kernel_is_right_is_a_constant_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(window_attention, "find_problem", lambda device, dtype, heads, n, e: calls.append(n) or "")  # type: ignore[func-returns-value]

    def scale(x: Tensor) -> Tensor:
        return 2 * x if kernel_is_right(0, x.dtype, *x.shape[1:]) else x

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(scale, backend="eager", fullgraph=True)
        x = torch.ones(2, 3, 4, 5)
        assert torch.equal(compiled(x), 2 * x) and torch.equal(compiled(x), 2 * x)
    assert calls == [4], "it runs once, while the function is traced"
