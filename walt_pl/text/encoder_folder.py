"""Folders of pretrained text encoders, as transformers may read them: only the hashed files, and nothing that they refer to elsewhere.

A folder may come from a stranger. Beside weights it may hold code, adapters and templates. Its descriptions may name other files,
hub repositories of weights, or kernels that transformers downloads and imports.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from walt_pl.files import write_whole
from walt_pl.untrusted import MAX_JSON_BYTES, UntrustedError, parse_json, read_bytes

REDIRECTIONS = ("transformers_weights", "backbone", "pretrained_backbone", "_attn_implementation", "attn_implementation")
"""Keys of a configuration whose text selects a file, a hub repository or a kernel."""


@contextmanager
def closed_folder(files: Mapping[str, Path]) -> Iterator[Path]:
    """Yield a temporary folder with exactly these files, and let the hub's library open no connection meanwhile.

    Weights and tokenizers are links. `tokenizer_config.json` is copied without the names of other files in it.

    Args:
        files: files of an encoder by name, with `config.json`.

    Raises:
        ValueError: a description cannot be read, or refers to something outside of the folder.
    """
    import huggingface_hub.constants  # a part of transformers, which few runs need

    _check_configuration(files["config.json"])
    for name in (name for name in files if name.endswith(".index.json")):
        _check_weight_index(files[name], files)
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    with tempfile.TemporaryDirectory(prefix="walt-encoder-") as temporary:
        folder = Path(temporary)
        for name, path in files.items():
            if name == "tokenizer_config.json":
                described = {key: value for key, value in _read_description(path).items() if not key.endswith(("_file", "_files"))}
                write_whole(folder / name, json.dumps(described).encode())
            else:
                (folder / name).symlink_to(path.resolve())
        try:
            huggingface_hub.constants.HF_HUB_OFFLINE = True
            yield folder
        finally:
            huggingface_hub.constants.HF_HUB_OFFLINE = offline


def _read_description(path: Path) -> dict[str, Any]:
    """Return a JSON file of an encoder. The file may be a link: snapshots of the hub are made of links."""
    try:
        value = parse_json(read_bytes(path.resolve(), MAX_JSON_BYTES), str(path))
    except (UntrustedError, OSError) as error:
        raise ValueError(f"text.path: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"text.path: {path} holds a {type(value).__name__}, not a JSON object")
    return value


def _check_weight_index(index: Path, files: Mapping[str, Path]) -> None:
    """Check that an index of weight files names only files of its own folder."""
    named = _read_description(index).get("weight_map")
    if not isinstance(named, dict):
        raise ValueError(f"text.path: {index} has no weight_map, which names the file of each weight")
    for file in named.values():
        if not isinstance(file, str) or file not in files:
            raise ValueError(f"text.path: {index} names {file!r}, which is no file of this folder; copy it there")


def _check_configuration(config: Path) -> None:
    """Check that a model's `config.json` selects no hub repository, kernel or file."""
    values: list[Any] = [_read_description(config)]
    while values:
        value = values.pop()
        if isinstance(value, list):
            values += value
        elif isinstance(value, dict):
            values += value.values()
            for key in REDIRECTIONS:
                named = value.get(key)
                if isinstance(named, str) and ("/" in named or not key.endswith("implementation")):
                    raise ValueError(f"text.path: {config} refers to {key} {named!r}, which is no part of the folder; remove this key")
