"""Compile the layers of a denoiser one by one, so that equal layers share their kernels, in training and in sampling."""

import logging
import warnings
from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from walt_pl.diffusion.condition import Condition
from walt_pl.plain_text import split_lines

RECOMPILE_LIMIT = 64
"""Graphs of one function. Spatial and spatiotemporal layers need one each in training, in the self-conditioning pass, in validation and
in sampling, and again for each other layout of a batch. Torch's limit of 8 is reached by two layouts: further ones then run uncompiled."""

TEXT_TOKENS = 64
"""Captions are padded to a multiple of these tokens. A batch is as long as its longest caption, and each length would be compiled."""


def find_obstacle(device: torch.device) -> str | None:
    """Compile a small function for a device; return the first line of its error, None if it works."""
    try:
        torch.compile(lambda x: x * x + 1, dynamic=False)(torch.zeros(16, device=device))
    except Exception as error:  # Triton, its C compiler and the driver raise errors of many types; all mean that layers run uncompiled
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return None


def compile_blocks(blocks: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compile modules in place, so that checkpoints keep their keys. Each compiles when it is first run.

    Every shape gets kernels of its own. Torch's other choice, kernels for any shape, makes all of them slower after the second shape.

    Args:
        blocks: layers of a denoiser.
        backend: torch.compile's; tests take those that compile no kernels.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    # DDP would cut each block's graph at the edges of its buckets. A block is small enough to overlap with the sums of the next one.
    config.optimize_ddp = False
    logging.getLogger("torch._dynamo.convert_frame").addFilter(explain_limit)
    for block in blocks:
        block.compile(backend=backend, dynamic=False)


def explain_limit(record: logging.LogRecord) -> bool:
    """Replace torch's message that a function has reached the limit of graphs by a warning with its cause; return whether to show it."""
    message = record.getMessage()
    if "hit config." not in message or "recompile_limit" not in message:
        return True
    parts = dict(line.strip().partition(": ")[::2] for line in split_lines(message))
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        return False
    warnings.warn(
        f"model.compile: {parts.get('function', 'a function')} has as many graphs as torch allows (torch._dynamo.config.recompile_limit "
        f"{torch._dynamo.config.recompile_limit}), and runs uncompiled for further shapes, at about half the speed (last cause: "
        f"{parts.get('last reason', message)}). Give batches fewer different numbers of videos, images and words, or set model.compile to "
        'false; TORCH_LOGS="recompiles" lists all causes',
        stacklevel=2,
    )
    return False


def are_compiled(blocks: Iterable[nn.Module]) -> bool:
    """Return whether `compile_blocks` has compiled any of these modules."""
    return any(block._compiled_call_impl is not None for block in blocks)


def pad_text(condition: Condition) -> Condition:
    """Return the condition with its text padded to a multiple of `TEXT_TOKENS`. The mask excludes the padding from the attention."""
    if condition.text is None or condition.text_mask is None:
        return condition
    more = -condition.text.shape[1] % TEXT_TOKENS
    return replace(condition, text=F.pad(condition.text, (0, 0, 0, more)), text_mask=F.pad(condition.text_mask, (0, more)))
