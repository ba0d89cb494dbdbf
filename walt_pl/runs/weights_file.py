"""Read the weights of an artifact. Names, types and shapes in the header are compared with the model before any weight is read.

safetensors itself checks that the tensors fill the file without a gap or an overlap, and that each has as many bytes as its shape and type
take. So a header cannot ask for more memory than the file has bytes, or twice as much where bfloat16 becomes float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from walt_pl.runs.card import CONFIG, ArtifactError, shorten
from walt_pl.runs.finite import non_finite_weights

MAX_HEADER_BYTES = 16 << 20
"""Bytes of the header of a safetensors file: about 100 for each tensor. The library's own limit is 100 MB."""
DTYPES = {torch.int64: ("I64",), torch.bool: ("BOOL",)}
"""Names of the types that `save_artifact` writes beside floating ones."""
FLOATING = ("F32", "BF16")
"""Names of the types of floating weights. Those of bfloat16 become float32 when they are read."""


def read_weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a safetensors file that has exactly these tensors.

    Args:
        path: path of the file. It is a plain file, see `plain_files`.
        wanted: tensors of the models by name; their values are not used and may lie on the meta device.

    Returns:
        Tensors by name, on the CPU: float32, and the integer and boolean buffers of the models. Weights in bfloat16 take twice the bytes of
        the file.

    Raises:
        ArtifactError: the file is damaged, or a tensor is missing, not wanted, of another type or shape, nan or infinite.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if MAX_HEADER_BYTES < length <= path.stat().st_size:
        raise ArtifactError(f"{path} has a header of {length:,} bytes, wanted at most {MAX_HEADER_BYTES:,}; export the stage again")
    try:
        with safe_open(path, framework="pt") as file:
            _compare(path, {name: file.get_slice(name) for name in file.keys()}, wanted)  # noqa: SIM118
            weights = {name: _read(file, name) for name in wanted}
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a whole safetensors file ({error})") from error
    if found := non_finite_weights(weights):
        raise ArtifactError(f"{path} is not loaded: {found}; export the stage again from an earlier checkpoint")
    return weights


def _compare(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> None:
    """Compare the header of a weights file with a model.

    Raises:
        ArtifactError: they differ.
    """
    both = [name for name in wanted if name in found]
    shapes = {name: (list(found[name].get_shape()), list(wanted[name].shape)) for name in both}
    types = {name: (found[name].get_dtype(), _dtype_names(wanted[name])) for name in both}
    differences = {
        "missing": wanted.keys() - found.keys(),
        "not wanted": [ascii(name)[1:-1] for name in found.keys() - wanted.keys()],
        "of another shape": [f"{name} (found {one}, wanted {other})" for name, (one, other) in shapes.items() if one != other],
        "of another type": [f"{name} (found {one}, wanted {' or '.join(able)})" for name, (one, able) in types.items() if one not in able],
    }
    if any(differences.values()):
        told = "; ".join(f"{what}: {shorten(names)}" for what, names in differences.items() if names)
        raise ArtifactError(f"{path.parent}: {path.name} does not fit {CONFIG} ({told}); export the stage again")


def _read(file: Any, name: str) -> Tensor:
    """Return a tensor of an open file; floating ones in float32."""
    tensor: Tensor = file.get_tensor(name)
    return tensor.float() if tensor.is_floating_point() else tensor


def _dtype_names(tensor: Tensor) -> tuple[str, ...]:
    return FLOATING if tensor.is_floating_point() else DTYPES.get(tensor.dtype, (str(tensor.dtype),))
