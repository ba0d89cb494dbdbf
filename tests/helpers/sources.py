"""Files and tar shards that a source can hold."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def touch(folder: Path, *names: str) -> None:
    """Write files of one byte below a folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def shard(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar shard with the members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
