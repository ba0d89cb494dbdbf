"""Compile Triton kernels for Hopper (sm_90a) as the program launches them, without a GPU."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch

SHARED_BYTES = 232_448
"""Most shared memory of a program on an H100 (CUDA C++ Programming Guide, compute capability 9.0)."""
POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class Launch:
    """A call of a kernel."""

    name: str
    kernel: Any
    arguments: dict[str, Any]
    """By name. Tensors may be on the meta device."""
    options: dict[str, int]
    """Warps and stages."""


def import_kernels(name: str) -> ModuleType:
    """Import a module of kernels. Skip the test where Triton has no package."""
    pytest.importorskip("triton", reason="compiles the kernels, and Triton is not installed")
    return import_module(f"walt_pl.blocks.{name}")


def record_launches(kernels: ModuleType, call: Callable[[], object]) -> list[Launch]:
    """Return the launches of a function of a module of kernels. None of them runs."""
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, name: str, kernel: Any) -> None:
            self.name = name
            self.kernel = kernel

        def __getitem__(self, grid: object) -> Callable[..., None]:
            def record(*args: Any, **kwargs: Any) -> None:
                options = {key: kwargs.pop(key) for key in ("num_warps", "num_stages") if key in kwargs}
                bound = inspect.signature(self.kernel.fn).bind(*args, **kwargs)
                launches.append(Launch(self.name, self.kernel, dict(bound.arguments), options))

            return record

    with pytest.MonkeyPatch.context() as patch:
        for name, kernel in list(vars(kernels).items()):
            if name.endswith("_kernel"):
                patch.setattr(kernels, name, Recorder(name, kernel))
        call()
    return launches


def compile_for_hopper(launch: Launch) -> tuple[str, int]:
    """Return the assembly and the bytes of shared memory of a kernel, as Triton compiles it for the arguments of a launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    given = launch.arguments
    constants = {p.name: given[p.name] for p in launch.kernel.params if p.is_constexpr or given[p.name] is None}
    signature = {name: "constexpr" if name in constants else _type_of(given[name]) for name in launch.kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    places = {(launch.kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(launch.kernel, signature, places, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch.options)
    return compiled.asm["ptx"], compiled.metadata.shared


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"
