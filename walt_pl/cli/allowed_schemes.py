"""Take `data.allow_schemes` only from what a person typed, never from a configuration that is stored with a run or an artifact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from walt_pl.cli.config_syntax import read_config

KEY = "allow_schemes"
_MARKS = ("card.json", "checkpoint.json", "manifest.json")
"""Files in the folders of an artifact, a checkpoint and a run."""


def check_allowed_schemes(words: Sequence[str], configs: Sequence[Path]) -> None:
    """Refuse `data.allow_schemes` in the files of a command line if one of them is stored with a run, a checkpoint or an artifact.

    A stored configuration may come from a stranger, and so may the files that it extends.

    Args:
        words: of the command line. Schemes that they allow replace those of the files.
        configs: files of the command line and those that they extend.

    Raises:
        ValueError: with the option to type.
    """
    if any(word.partition("=")[0] == f"--data.{KEY}" for word in words):
        return
    stored = next((config for config in configs if _is_stored(config)), None)
    if stored is None:
        return
    for config in configs:
        data = read_config(config).get("data")
        schemes = data.get(KEY) if isinstance(data, dict) else None
        if schemes:
            raise ValueError(
                f"{config}: data.{KEY} {schemes!r} is not taken from {stored}, which is stored with a run or an artifact: "
                f"shards may run commands or read from other machines. If you want that, type --data.{KEY} '[pipe]' (the schemes you allow)"
            )


def without_allowed_schemes(options: Any) -> Any:
    """Return a copy of the options of a training, to be stored, that allows no scheme."""
    stored = options.clone()
    stored.data[KEY] = ()
    return stored


def _is_stored(config: Path) -> bool:
    # A start's configuration is RUN/training/STAGE/logs/version_0/config.yaml.
    folders = config.resolve().parents[:5]
    return any((folder / name).exists() for folder in folders for name in _MARKS)
