"""The kernels of `norm_silu_pad` compiled for Hopper, in the widths of the autoencoders of experiments/common."""

import re

import pytest
import torch

from benchmarks.gpu.experiments import vae_config
from tests.helpers.hopper import SHARED_BYTES, Launch, compile_for_hopper, import_kernels, record_launches

WIDTHS = sorted({width for name in ("vae", "vae_light") for width in vae_config(f"ucf101/{name}", quick=False).widths})
OFTEN = (192, 512)
"""The widest, and one that is no power of two. The others take a second each, and are slow tests."""
KERNELS = {f"_{name}_kernel" for name in ("sums", "statistics", "apply", "gradient_sums", "gradient_means", "input_gradient")}


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launches(width: int, modulated: bool) -> list[Launch]:
    """Return the launches of a norm, forward and backward, of a clip in bfloat16 with the parameters of autocast in float32."""
    kernels = import_kernels("norm_silu_pad_triton")
    x, y = empty(1, width, 5, 16, 16), empty(1, width, 7, 16, 16)
    weight, bias, conv_bias = (empty(width, dtype=torch.float32) for _ in range(3))
    scale_shift = empty(1, 2 * width, 2, 2, 2)
    vectors = (None, None, conv_bias, scale_shift) if modulated else (weight, bias, conv_bias, None)
    settings = (32, 1e-6, [4, 8, 8, 3] if modulated else [1, 1, 1, 0], True, 2, True)

    def call() -> None:
        statistics = kernels.forward(x, *vectors, *settings, y)
        kernels.backward(y, x, statistics, *vectors, *settings, x, scale_shift if modulated else None)

    return record_launches(kernels, call)


def test_norm_silu_pad_widths_of_the_autoencoders_are_tested() -> None:
    assert WIDTHS == [64, 128, 192, 256, 384, 512]


@pytest.mark.parametrize("modulated", [False, True], ids=["affine", "modulated"])
@pytest.mark.parametrize("width", [width if width in OFTEN else pytest.param(width, marks=pytest.mark.slow) for width in WIDTHS])
def test_norm_silu_pad_compiles_for_hopper_without_atomics(width: int, modulated: bool) -> None:
    found = launches(width, modulated)
    assert {launch.name for launch in found} == KERNELS | ({"_modulation_gradient_kernel"} if modulated else set())
    for launch in found:
        assembly, shared = compile_for_hopper(launch)
        assert ".target sm_90a" in assembly
        assert not re.search(r"\b(atom|red)\.", assembly), f"{launch.name}: atomic additions change the bits from run to run"
        assert shared <= SHARED_BYTES, f"{launch.name}: an H100 has no more shared memory for a program"
