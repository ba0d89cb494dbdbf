"""Kernels of window attention against matrix products in float64: in Triton's interpreter, and on a GPU where there is one."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.helpers.attention_errors import NAMES, errors, results
from tests.helpers.environment import ROOT
from tests.helpers.hopper import SHARED_BYTES, Launch, compile_for_hopper, import_kernels, record_launches
from walt_pl.blocks.attention import Window

WINDOWS: dict[int, Window] = {256: (1, 16, 16), 320: (5, 8, 8), 448: (7, 8, 8), 560: (5, 8, 14), 1024: (1, 32, 32)}
"""Tokens of the windows of the experiments."""
HEADS = (64, 72, 88, 112)
"""Widths of the heads of the paper's models."""
TOLERANCE = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 1e-2}
"""Largest relative error (norm) of each output. Seen: 7e-7 in float32, 3.1e-4 in float16."""
RAGGED = [(20, 1, (2, 5, 5), 24), (2, 2, (1, 3, 3), 16)]
"""Windows, heads, window and width. Blocks are not filled; 20 windows make groups of three, of which the last has two."""
COVERING = [(1, 1, 256, 112), (1, 1, 320, 88), (1, 1, 448, 72), (1, 1, 560, 64), (1, 1, 1024, 64)]
"""Windows, heads, tokens and width: every number of tokens and every width is there."""

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="runs the kernels on a CUDA GPU, and there is none")


def interpret(cases: list[tuple[int, int, Window, int, str]]) -> dict[str, Any]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.helpers.attention_errors", json.dumps(cases)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert not ended.returncode, ended.stderr[-5000:]
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def check(cases: list[tuple[int, int, Window, int, str]], found: list[dict[str, Any]]) -> None:
    assert len(found) == len(cases)
    for case, measured in zip(cases, found, strict=True):
        wrong = {name: measured[name] for name in NAMES if not measured[name] < TOLERANCE[case[-1]]}
        assert not wrong, f"{case}: {wrong}"
        assert measured.get("repeats", True), f"{case}: a repeat has other bits"


def test_window_attention_triton_equals_float64_compiles_and_refuses_in_the_interpreter() -> None:
    cases = [(*case, dtype) for case in RAGGED for dtype in ("float32", "float16")]
    cases += [(b, heads, WINDOWS[n], e, dtype) for b, heads, n, e in COVERING for dtype in ("float32", "float16")]
    found = interpret(cases)
    check(cases, found["errors"])
    assert [20, 3] in found["groups"], "the sum over groups, of which the last is not full, took no part"
    assert sum("repeats" in measured for measured in found["errors"]) >= 4
    assert max(found["compiled"]) == 0, "traced by torch.compile, a layer has other bits"
    right, lost = found["problems"]
    assert right == "" and lost.startswith("relative errors of dbias "), "the check of the kernels sees every group"
    bfloat16, wide, twice = found["refusals"]
    assert "interpreter" in bfloat16 and "bfloat16" in bfloat16 and "type --model.denoiser.attention auto" in bfloat16
    assert "at most 128 channels, got 129" in wide
    assert "walt.window_attention_backward" in twice, "a second gradient is refused by name"


@pytest.mark.slow
@pytest.mark.parametrize("n", WINDOWS)
def test_window_attention_triton_equals_float64_at_every_size(n: int) -> None:
    cases = [(1, 1, WINDOWS[n], e, dtype) for e in HEADS for dtype in ("float32", "float16")]
    check(cases, interpret(cases)["errors"])


def test_window_attention_triton_test_set_covers_every_size() -> None:
    assert {n for _, _, n, _ in COVERING} == set(WINDOWS) and {e for _, _, _, e in COVERING} == set(HEADS)
    assert all(t * h * w == n for n, (t, h, w) in WINDOWS.items())


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_window_attention_triton_equals_float64_on_a_gpu_and_repeats_its_bits(dtype: str) -> None:
    # Each window and each width is there once: a kernel compiles for a second or two, and a part of benchmarks.gpu has two minutes.
    sizes = [*((window, 64) for window in WINDOWS.values()), *((WINDOWS[256], e) for e in HEADS if e != 64)]
    sizes = sizes if dtype == "bfloat16" else [(WINDOWS[256], 64), (WINDOWS[320], 112)]
    cases = [*((2, 2, window, e, dtype) for window, e in sizes), *((*case, dtype) for case in RAGGED), (40, 16, WINDOWS[320], 64, dtype)]
    check(cases, [errors(*case[:-1], getattr(torch, dtype), "cuda") for case in cases])


@pytest.mark.gpu
@gpu
def test_window_attention_triton_is_as_exact_as_sdpa_on_a_gpu() -> None:
    case: tuple[Any, ...] = (4, 16, WINDOWS[320], 64, torch.bfloat16, "cuda")
    kernel, fused, exact = (results(name, *case) for name in ("triton", "sdpa", "math"))
    for name, a, b, c in zip(NAMES, kernel, fused, exact, strict=True):
        ours, theirs = ((x.double() - c).norm() / c.norm() for x in (a, b))
        assert ours < 1.5 * theirs + 1e-4, f"{name}: error {ours:.1e} of the kernel, {theirs:.1e} of sdpa"


def launches(n: int, e: int) -> dict[str, Launch]:
    """Return the launch of each kernel for two windows of 16 heads in bfloat16."""
    kernels = import_kernels("window_attention_triton")
    q, o = (torch.empty(2, n, 16, e, dtype=torch.bfloat16, device="meta").transpose(1, 2) for _ in range(2))
    v = torch.empty(2, n, 3, 16, e, dtype=torch.bfloat16, device="meta")[:, :, 2].transpose(1, 2)
    bias = torch.empty(16, n, n, dtype=torch.bfloat16, device="meta")
    found = record_launches(kernels, lambda: kernels.backward(o, q, q, v, bias, o, kernels.forward(q, q, v, bias, o)))
    return {launch.name.strip("_").removesuffix("_kernel"): launch for launch in found}


ALL = [(kernel, n, e) for kernel in ("forward", "dq", "dkv", "dbias") for n, e in ((320, 64), (256, 112))]


@pytest.mark.parametrize(
    ("kernel", "n", "e"), [case if case == ("dbias", 320, 64) else pytest.param(*case, marks=pytest.mark.slow) for case in ALL]
)
def test_window_attention_triton_compiles_for_hopper_with_tensor_cores_and_without_atomics(kernel: str, n: int, e: int) -> None:
    assembly, shared = compile_for_hopper(launches(n, e)[kernel])
    assert "wgmma.mma_async" in assembly
    assert not re.search(r"\b(atom|red)\.", assembly), "atomic additions change the bits from run to run"
    assert shared <= SHARED_BYTES, "an H100 has no more shared memory for a program"
