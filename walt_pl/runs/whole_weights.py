"""Gathered weights from a checkpoint of any strategy: ZeRO's shards are merged, and averages may replace the weights."""

import contextlib
import io
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from walt_pl.runs.checkpoint import (
    TAG,
    Checkpoint,
    CheckpointError,
    check_floating,
    check_pickle,
    checked_averages,
    read_state,
    tensors_only,
)


def weights(checkpoint: Checkpoint, ema: bool = True) -> dict[str, Tensor]:
    """Return the parameters and buffers of the trained module by name, on the CPU; floating point as float32.

    Args:
        checkpoint: checkpoint of one device, of DDP, or of ZeRO 1, 2 or 3 with any number of ranks. Shards need DeepSpeed, and memory for
            all of them.
        ema: replace the weights by their averages, if the checkpoint has averages.

    Raises:
        UnsafePickle: reading it would run code.
        CheckpointError: it is damaged, a weight is not a floating-point number, the averages are of another model, or DeepSpeed is not
            installed and the weights are in shards.
    """
    found = _merge_shards(checkpoint.state) if checkpoint.strategy.startswith("zero") else read_state(checkpoint.state).get("state_dict")
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{checkpoint.state} has no weights by name; use another checkpoint")
    whole = {name: value.float() if value.is_floating_point() else value for name, value in found.items()}
    if ema and checkpoint.ema is not None:
        with checked_averages(checkpoint.ema) as path:
            averages = load_file(path)
        check_floating(averages, checkpoint.ema)
        strangers = sorted(name for name in averages if name not in whole or averages[name].shape != whole[name].shape)
        if strangers:
            raise CheckpointError(f"{checkpoint.ema} is of another model than {checkpoint.state} ({strangers[0]}); use another checkpoint")
        whole.update(averages)
    return whole


def _merge_shards(folder: Path) -> dict[str, Tensor]:
    """Merge the shards of every rank into float32 weights."""
    check_pickle(folder)
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise CheckpointError(
            f"{folder} is in DeepSpeed's shards, and there is no DeepSpeed here ({error}); export it where it is"
        ) from None
    try:
        with tensors_only(folder.parent), contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints a line for each tensor
            found: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG)
    except CheckpointError:
        raise
    except Exception as error:  # DeepSpeed raises errors of every class at shards that do not fit each other
        raise CheckpointError(f"{folder} cannot be merged ({type(error).__name__}: {error}); use an older checkpoint") from None
    # Weights of one flat buffer are views of it. Without the copy the complete buffer would stay in memory and be written.
    return {name: torch.clone(value) for name, value in found.items()}
