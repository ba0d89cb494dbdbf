"""The record of what defines a training, which each checkpoint holds: keys of the configuration, and hashes of data and parents.

The record is JSON text beside its sha256. A checkpoint may be a stranger's, so the text is parsed with limits.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from walt_pl.runs.checkpoint import CheckpointError
from walt_pl.untrusted import UntrustedError, parse_json

TASK = "task"
"""Key of a checkpoint: the record, as `encode_task` returns it."""

Values = Mapping[str, Any]
"""Plain values by dotted key, as keys are typed on the command line: `model.denoiser.width`."""


def flatten(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a configuration with their values, as they are typed.

    Args:
        config: plain values. A class is the value of its own key, and its arguments are keys below that.
        above: key of the mapping itself.
    """
    for name, value in config.items():
        key = above if name in ("class_path", "init_args") else f"{above}.{name}".removeprefix(".")
        if isinstance(value, Mapping) and value:
            yield from flatten(value, key)
        else:
            yield key, value


def encode_task(values: Values) -> dict[str, str]:
    """Return the record of a checkpoint."""
    text = json.dumps(dict(sorted(values.items())))
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "values": text}


def read_task(state: Mapping[str, Any], where: str) -> Values | None:
    """Return the values that the record of a checkpoint holds; None if it has no record, as those of older versions.

    Args:
        state: of the checkpoint.
        where: name of the checkpoint, for the error message.

    Raises:
        CheckpointError: the record is damaged.
    """
    record = state.get(TASK)
    if record is None:
        return None
    text = record.get("values") if isinstance(record, Mapping) else None
    if not isinstance(text, str) or hashlib.sha256(text.encode(errors="replace")).hexdigest() != record.get("sha256"):
        raise CheckpointError(f'{where}: the record "{TASK}" is damaged (its sha256 is another); use an older checkpoint')
    try:
        values = parse_json(text, f'{where}: the record "{TASK}"')
    except UntrustedError as error:
        raise CheckpointError(f"{error}; use an older checkpoint") from None
    if not isinstance(values, dict):
        raise CheckpointError(f'{where}: the record "{TASK}" is no mapping; use an older checkpoint')
    return values
