"""DeepSpeed's reader and writer of shards, in place of its own: each shard is hashed as it is written, and checked as it is read."""

from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from walt_pl.runs.checkpoint import load_file, write_state


class ShardFiles(TorchCheckpointEngine):  # type: ignore[misc]  # DeepSpeed has no types
    """Write shards with their hashes, and load each from the one open file that was hashed and scanned."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """Forget the result of the last checkpoint."""
        self.failure: OSError | None = None
        self.hashes: dict[str, str] = {}

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Write a shard; an error of the file system is kept in `failure`, not raised: the other ranks would wait."""
        written = write_state(state_dict, path)
        if isinstance(written, OSError):
            self.failure = written
        else:
            self.hashes[str(path)] = written

    def load(self, path: str, map_location: Any = None) -> Any:
        """Load a shard of CHECKPOINT/state.ckpt/checkpoint/.

        Raises:
            UnsafePickle: reading it would run code.
            CheckpointError: it is damaged, see `load_file`.
        """
        shard = Path(path)
        return load_file(shard, shard.parents[2], map_location)
