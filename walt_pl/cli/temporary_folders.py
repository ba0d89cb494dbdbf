"""Leave nothing in the system's folder for temporary files."""

import contextlib
import os
import sys


def remove_empty_compile_cache() -> None:
    """Remove torch's folder of compiled kernels if it is empty. torchvision makes it at import, whether or not anything is compiled."""
    # torch notes the folder in this variable. Without torch, nothing has been made.
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if folder and "torch" in sys.modules:
        with contextlib.suppress(OSError):  # it has kernels, or another process has removed it
            os.rmdir(folder)
