"""Build the models that `model.yaml` describes, with limits that are checked before any memory is taken. It may come from a stranger.

The plain numbers are limited first. Then the models are built on torch's meta device, which has shapes and no values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from walt_pl.plain_records import build_record, shown
from walt_pl.untrusted import UntrustedError

MAX_SIZE = 1 << 20
"""Largest number in the configuration of a model: a width, a vocabulary, a number of classes."""
MAX_LEVELS = 32
"""Most values of a list in the configuration of a model: the levels of an autoencoder."""
MAX_LAYERS = 256
"""Most layers of a model."""
MAX_BUFFER_BYTES = 4 << 30
"""Most bytes of the tensors of all models that are computed instead of read: tables of positions within a window."""
LAYERS = ("depth", "num_res_blocks", "num_middle_blocks")
"""Fields that are numbers of layers."""


def read_config(config: type[Any], fields: Mapping[str, Any], where: str) -> Any:
    """Build the config dataclass of a model from plain fields.

    Raises:
        UntrustedError: a field has another type or lies beyond the limits, or the dataclass refuses it.
    """
    for name, value in fields.items():
        _limit(value, f"{where}: {name}")
    layers = sum(_total(fields.get(name)) for name in LAYERS)
    if layers > MAX_LAYERS:
        raise UntrustedError(f"{where} has {layers:,} layers, wanted at most {MAX_LAYERS:,}")
    return build_record(config, fields, where)


def build_on_meta(model: type[nn.Module], config: Any, where: str) -> nn.Module:
    """Build a model without memory for its weights.

    Raises:
        UntrustedError: the configuration does not make a model.
    """
    try:
        with torch.device("meta"):
            return model(config)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, AssertionError) as error:
        raise UntrustedError(f"{where} makes no model ({shown(str(error).partition(chr(10))[0])})") from error


def check_buffers(models: Mapping[str, nn.Module], where: str) -> None:
    """Check the size of the tensors that are computed when the models are built and that no weights file has.

    Args:
        models: the models on the meta device.
        where: file that they come from.

    Raises:
        UntrustedError: they are larger than `MAX_BUFFER_BYTES`.
    """
    size = sum(buffer.nbytes for model in models.values() for buffer in model.buffers())
    if size > MAX_BUFFER_BYTES:
        raise UntrustedError(f"{where}: the windows of its models take {size:,} bytes of tables, wanted at most {MAX_BUFFER_BYTES:,}")


def _limit(value: Any, where: str) -> None:
    if isinstance(value, (list, tuple)):
        if len(value) > MAX_LEVELS:
            raise UntrustedError(f"{where} has {len(value):,} values, wanted at most {MAX_LEVELS}")
        for one in value:
            _limit(one, where)
    elif type(value) is int and not 0 <= value <= MAX_SIZE:
        raise UntrustedError(f"{where} is {shown(value)}, wanted 0 .. {MAX_SIZE:,}")


def _total(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return sum(map(_total, value))
    return value if type(value) is int else 0
