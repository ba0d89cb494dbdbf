"""W.A.L.T video diffusion: the library. `walt_pl.load(folder)` loads the artifact of a finished stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from walt_pl.runs.artifact import load

__version__ = "0.2.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # The import is lazy, so that `import walt_pl` (help, version, index tools) does not import torch.
    if name == "load":
        from walt_pl.runs.artifact import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
