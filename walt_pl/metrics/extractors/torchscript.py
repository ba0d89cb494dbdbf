"""Load and call networks that are published as torchscripts. A torchscript is code: its hash was compared before (weight_file.py)."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

from walt_pl.metrics.extractors.weight_file import WeightFile


def load_torchscript(file: WeightFile, device: torch.device) -> nn.Module:
    """Return the network of a torchscript, from the bytes whose hash was compared.

    Raises:
        ValueError: the bytes are no torchscript.
    """
    try:
        network: nn.Module = torch.jit.load(io.BytesIO(file.data), map_location=device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--extractor: {file.path} is no torchscript ({_cause(error)}); get it again") from error
    return network.eval()


def call_torchscript(network: nn.Module, kind: str, clips: Tensor, **arguments: bool) -> Tensor:
    """Return the rows [b d] that a torchscript gives for clips [b 3 t h w].

    Raises:
        ValueError: it does not take these arguments, or gives no row for each clip.
    """
    try:
        rows: Any = network(clips, **arguments)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        call = ", ".join(["clips", *(f"{name}={value}" for name, value in arguments.items())])
        shape = list(clips.shape)
        raise ValueError(f"the torchscript of {kind} fails at the call ({call}) with clips {shape}: {_cause(error)}") from error
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(clips) or not rows.is_floating_point():
        found = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"the torchscript of {kind} gives {found}, wanted floats [{len(clips)} d]; is it the right file?")
    return rows


def _cause(error: Exception) -> str:
    """Return the cause of an error of torchscript: the last line, since a trace of its code comes first."""
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
    return (lines[-1] if lines and "Traceback" in str(error) else lines[0] if lines else type(error).__name__)[:300]
