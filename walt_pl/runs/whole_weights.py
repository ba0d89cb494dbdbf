"""The weights in a checkpoint of any strategy, whole: ZeRO's shards put together, averages in the place of what they are averages of."""

import contextlib
import io
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from walt_pl.runs.checkpoint import TAG, Checkpoint, CheckpointError, check_pickle, read_state, tensors_only


def weights(checkpoint: Checkpoint, ema: bool = True) -> dict[str, Tensor]:
    """Parameters and buffers of the module that trained, by name, on the CPU; floating point as float32.

    Args:
        checkpoint: of one device, DDP or ZeRO 1, 2, 3 of any number of ranks. Shards need DeepSpeed, and memory for all of them.
        ema: averages in place of the weights, where the checkpoint has averages.

    Raises:
        UnsafePickle: reading it would run code.
        CheckpointError: it is damaged, or averages are of another model; or there is no DeepSpeed for its shards.
    """
    found = _put_together(checkpoint.state) if checkpoint.strategy.startswith("zero") else read_state(checkpoint.state)["state_dict"]
    whole = {name: value.float() if value.is_floating_point() else value for name, value in found.items()}
    if ema and checkpoint.ema is not None:
        averages = load_file(checkpoint.ema)
        strangers = sorted(name for name in averages if name not in whole or averages[name].shape != whole[name].shape)
        if strangers:
            raise CheckpointError(f"{checkpoint.ema} is of another model than {checkpoint.state} ({strangers[0]}); use another checkpoint")
        whole.update(averages)
    return whole


def _put_together(folder: Path) -> dict[str, Tensor]:
    """Float32 weights from the shards of every rank."""
    check_pickle(folder)
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise CheckpointError(
            f"{folder} is in DeepSpeed's shards, and there is no DeepSpeed here ({error}); export it where it is"
        ) from None
    with tensors_only(folder), contextlib.redirect_stdout(io.StringIO()):  # a line for each tensor
        found: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG)
    # Weights of one flat buffer are views of it, which would be kept, and written, as a whole.
    return {name: torch.clone(value) for name, value in found.items()}
