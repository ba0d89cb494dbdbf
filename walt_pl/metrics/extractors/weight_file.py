"""Read the file of an extractor once, compare its hash, and only then hand its bytes to whatever loads them."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from walt_pl.metrics.extractors.configured import ExtractorSettings
from walt_pl.metrics.extractors.known_files import KNOWN_FILES
from walt_pl.untrusted import read_bytes

MAX_WEIGHT_FILE_BYTES = 16 << 30
"""Bytes of a file of an extractor. The largest tower of open_clip has 10 GB."""


@dataclass(frozen=True)
class WeightFile:
    """Bytes of a file whose hash has been compared. The path is for messages: nothing is read from it again."""

    path: Path
    data: bytes
    sha256: str

    def identity(self) -> dict[str, Any]:
        """Return name and hash for a card. The folder is left out: it is another one on each machine."""
        return {"file": self.path.name, "sha256": self.sha256}


def read_weight_file(kind: str, settings: ExtractorSettings, *, is_code: bool) -> WeightFile:
    """Read the file of an extractor, and compare its hash with the one that was typed, else with the known one of its kind.

    Args:
        kind: of the extractor.
        settings: with the path and the hash that were typed.
        is_code: whether the file is code (a torchscript). Without a known hash, such a file needs `--extractor-sha256`.

    Raises:
        ValueError: there is no such file, or it has another hash. Nothing was loaded.
    """
    path = find_weight_file(kind, settings.file)
    place = path.resolve()  # snapshots of the hub are links
    data = read_bytes(place, min(place.stat().st_size, MAX_WEIGHT_FILE_BYTES))
    found = hashlib.sha256(data).hexdigest()
    check_hash(kind, path, found, settings.sha256, is_code=is_code)
    return WeightFile(path, data, found)


def find_weight_file(kind: str, file: str | None) -> Path:
    """Return the path of an extractor's file or folder.

    Raises:
        ValueError: there is none; the message says where people get it.
    """
    described = KNOWN_FILES[kind].describe()
    usage = f"""--extractor '{{"{kind}": "{"MODEL@FILE" if kind == "clip" else "FILE"}"}}'"""
    if file is None:
        raise ValueError(f"the extractor {kind} needs its file: {described}; nothing is downloaded here: {usage}")
    path = Path(file).expanduser()
    if not path.exists():
        raise ValueError(f"--extractor: there is no {path.absolute()} for {kind}; it is {described}; nothing is downloaded here: {usage}")
    return path


def check_hash(kind: str, path: Path, found: str, typed: str | None, *, is_code: bool) -> None:
    """Compare the hash of an extractor's file with the one that was typed, else with the known one of its kind.

    Raises:
        ValueError: it is another one; the message has both, and the option that accepts the file.
    """
    wanted = typed or KNOWN_FILES[kind].sha256
    if typed and not re.fullmatch(r"[0-9a-fA-F]{64}", typed):
        raise ValueError(f"--extractor-sha256 wants 64 hexadecimal digits, got {typed!r}; {path} has {found}")
    if found.startswith((wanted or "").lower()) and (wanted or not is_code):
        return
    expected = wanted or f"the one that you trust, since {KNOWN_FILES[kind].name} has no published one"
    code = "A torchscript is code. " if is_code else ""
    raise ValueError(
        f"--extractor: {path} has the sha256 {found}, wanted for {kind}: {expected}. It was not loaded. {code}"
        f"If you trust this file: --extractor-sha256 {found}"
    )


def read_state_dict(file: WeightFile) -> dict[str, Tensor]:
    """Return the tensors of a state dict, from safetensors or from a pickle of which only tensors are read.

    Raises:
        ValueError: the file is neither, or holds other values.
    """
    try:
        if file.path.suffix == ".safetensors":
            state: Any = safetensors.torch.load(file.data)
        else:
            state = torch.load(io.BytesIO(file.data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles and archives raise nearly everything
        raise ValueError(f"--extractor: {file.path} holds no state dict that can be read ({type(error).__name__}); get it again") from error
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise ValueError(f"--extractor: {file.path} holds other values than tensors by name; a state dict is wanted")
    return state
