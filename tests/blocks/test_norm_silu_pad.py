"""Norm, SiLU and causal padding: one function of PyTorch's operations on CPUs, and Triton kernels on CUDA."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tests.helpers.environment import ROOT
from tests.helpers.norm_silu_pad_cases import CASES, Case, check_case
from walt_pl.blocks import norm_silu_pad as module
from walt_pl.blocks.norm_silu_pad import Modulation, NormName, kernels_are_right, norm_silu_pad, triton_norm_silu_pad

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton's compiled kernels run on a GPU only")


def separate_layers(x: Tensor, norm: NormName, weight: Tensor, bias: Tensor, past: int) -> Tensor:
    if norm == "layer":
        y = F.layer_norm(x.movedim(1, -1), (x.shape[1],), weight, bias, 1e-6).movedim(-1, 1)
    else:
        y = rearrange(F.group_norm(rearrange(x, "b c t h w -> (b t) c h w"), 32, weight, bias, 1e-6), "(b t) c h w -> b c t h w", b=len(x))
    y = F.silu(y)
    return torch.cat([y[:, :, :1].expand(-1, -1, past, -1, -1), y], dim=2)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_norm_silu_pad_on_a_cpu_equals_separate_layers_to_the_bit(norm: NormName, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(64).requires_grad_(), torch.randn(64).requires_grad_()
    x = draw(2, 64, 3, 4, 6).to(dtype).requires_grad_()
    found = norm_silu_pad(x, norm=norm, weight=weight, bias=bias, past=2)
    wanted = separate_layers(x, norm, weight, bias, past=2)
    g = torch.randn_like(found)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    gradients = [torch.autograd.grad(y, [x, weight, bias], g) for y in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("past", [0, 1, 2])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_norm_silu_pad_returns_channels_last(norm: NormName, frames: int, past: int) -> None:
    x = torch.randn(2, 32, frames, 4, 6)
    y = norm_silu_pad(x, norm=norm, past=past)
    assert y.shape == (2, 32, past + frames, 4, 6) and y.is_contiguous(memory_format=torch.channels_last_3d)


def test_norm_silu_pad_puts_the_cached_frames_in_front() -> None:
    x, before = draw(1, 8, 3, 4, 6), draw(1, 8, 2, 4, 6)
    y = norm_silu_pad(x, norm="layer", past=2, before=before)
    assert torch.equal(y[:, :, :2], before) and torch.equal(y[:, :, 2:], norm_silu_pad(x, norm="layer"))


def test_norm_silu_pad_adds_the_bias_of_the_convolution() -> None:
    x, conv_bias = draw(1, 8, 3, 4, 6), torch.randn(8)
    added = x + conv_bias[:, None, None, None]
    torch.testing.assert_close(norm_silu_pad(x, norm="layer", conv_bias=conv_bias), norm_silu_pad(added, norm="layer"))


@pytest.mark.parametrize(("skip", "latents"), [(3, [0, 1, 1, 1, 1]), (0, [0, 0, 0, 0, 1, 1, 1, 1])])
def test_norm_silu_pad_modulates_each_position_with_its_latent(skip: int, latents: list[int]) -> None:
    x, latent = draw(1, 8, len(latents), 4, 6), draw(1, 16, 2, 2, 2)
    y = norm_silu_pad(x, norm="layer", modulation=Modulation(latent, (4, 2, 3), skip), activation=False)
    plain = norm_silu_pad(x, norm="layer", activation=False)
    for frame, cell in enumerate(latents):
        scale, shift = latent[:, :, cell, 3 // 2, 4 // 3].chunk(2, dim=1)
        torch.testing.assert_close(y[:, :, frame, 3, 4], plain[:, :, frame, 3, 4] * (1 + scale) + shift)


def test_norm_silu_pad_has_the_dtype_of_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert norm_silu_pad(draw(1, 32, 1, 2, 2), norm="group", past=2).dtype == torch.bfloat16
    assert norm_silu_pad(draw(1, 32, 1, 2, 2), norm="group", past=2).dtype == torch.float32


def test_norm_silu_pad_frames_do_not_see_each_other() -> None:
    x = draw(1, 32, 3, 4, 6)
    changed = torch.cat([x[:, :, :2], 5 * x[:, :, 2:] + 1], dim=2)
    torch.testing.assert_close(norm_silu_pad(changed, norm="group")[:, :, :2], norm_silu_pad(x, norm="group")[:, :, :2])


def test_norm_silu_pad_kernels_equal_float64_in_the_interpreter() -> None:
    """In a process of its own: Triton decides when a kernel is defined, and other tests of this process must not see it."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.helpers.norm_silu_pad_cases"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-1500:] + ended.stderr[-3000:]


@pytest.fixture
def unchecked() -> Iterator[None]:
    cached = (module.find_problem, module._warn_once)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_norm_silu_pad_warns_once_where_the_kernels_do_not_run(monkeypatch: pytest.MonkeyPatch, unchecked: None) -> None:
    monkeypatch.setattr(module, "find_problem", lambda *_: "no compiler")
    with pytest.warns(UserWarning, match=r"the autoencoder's norms do not run here \(no compiler\)"):
        assert not kernels_are_right(0, torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not kernels_are_right(0, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_silu_pad_check_works_in_inference_mode_and_compares_values(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    monkeypatch.setattr(module, "triton_norm_silu_pad", module.plain_norm_silu_pad)
    with torch.inference_mode():  # Lightning validates in it
        assert module.find_problem(torch.device("cpu"), dtype) == ""
    module.find_problem.cache_clear()
    monkeypatch.setattr(module, "triton_norm_silu_pad", lambda x, **case: 1.1 * module.plain_norm_silu_pad(x, **case))
    problem = module.find_problem(torch.device("cpu"), dtype)
    assert problem.count("group") == problem.count("layer") == 2, "output and gradient of both"


def test_norm_silu_pad_check_keeps_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch, unchecked: None) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(module, "triton_norm_silu_pad", full)
    with pytest.raises(torch.OutOfMemoryError):
        module.find_problem(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(module, "triton_norm_silu_pad", module.plain_norm_silu_pad)
    assert module.find_problem(torch.device("cpu"), torch.float32) == ""


def test_norm_silu_pad_counts_on_the_meta_device_without_triton() -> None:
    """A plan, and the first step of each training, pass the autoencoder over meta tensors on machines of all kinds."""
    program = """
import sys
sys.modules["triton"] = None
import torch
from walt_pl.models.vae import VAE, VAEConfig
with torch.device("meta"):
    model = VAE(VAEConfig(32, (1, 2), ((1, 2, 2),), (1, 1), 1, 4))
    model.decode(model.encode(torch.empty(1, 3, 3, 8, 8)).mean).sum().backward()
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_norm_silu_pad_on_a_gpu_equals_float64(case: Case, dtype: torch.dtype) -> None:
    assert all(kernels_are_right(0, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16))
    check_case(case, dtype, "cuda")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_norm_silu_pad_on_a_gpu_repeats_to_the_bit(norm: NormName) -> None:
    case = Case(norm, 128, 32, (2, 5, 128, 128), past=2, affine=True, conv_bias=True)
    named, g = case.inputs(torch.bfloat16, "cuda")
    first, second = (case.results(triton_norm_silu_pad, named, g) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@needs_cuda
def test_norm_silu_pad_on_a_gpu_is_traced_by_compile() -> None:
    x = torch.randn(1, 64, 3, 8, 8, device="cuda", dtype=torch.bfloat16)
    compiled = torch.compile(lambda x: norm_silu_pad(x, norm="group", past=2), fullgraph=True)
    torch.testing.assert_close(compiled(x), norm_silu_pad(x, norm="group", past=2), rtol=0, atol=0)
