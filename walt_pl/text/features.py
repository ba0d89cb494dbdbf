"""Features of frozen text encoders: identity of an artifact's encoder, and a cache of tokens that computes each caption once.

A cache is a folder `text-HASH` of shards. A written shard never changes, so any number of processes can add shards:

    sha256  [n 32]   of each caption
    start   [n + 1]  row of its first token
    crc32   [n]      of its tokens
    tokens  [sum e]  in the encoder's dtype, words only

Ten million captions of 20 words at width 2048 are 0.8 TB in bfloat16; padded to 128 words they would be 5.2 TB.

The key (files of the encoder, length, dtype) names the folder, and every shard contains it. A shard with another key is not read.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import re
import shutil
import sys
import time
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from walt_pl.blocks.transfer import to_device
from walt_pl.files import file_sha256, remove_left_overs, write_whole
from walt_pl.plain_records import build_record, check_range, check_sha256
from walt_pl.runs.artifact import Artifact
from walt_pl.runs.card import PRETRAINED_TEXT
from walt_pl.text.pretrained_encoder import PretrainedTextEncoder, files_of
from walt_pl.text.small_encoder import PretrainedTextConfig
from walt_pl.untrusted import read_json

MAX_ENCODER_SIZE = 1 << 16
"""Largest width and number of tokens of an encoder that an artifact names."""
HASHES = "encoders.json"
"""File beside the caches with the hashes of encoders' files."""
SHARD_CAPTIONS = 1024
BATCH = 64
"""Captions in one call of the encoder."""
_FORMAT = 1


# ---- Identity of the encoder -----------------------------------------------------------------------------------------


def encoder_sha256(config: PretrainedTextConfig, memory: Path | None = None, download: bool = True) -> str:
    """Return the hash of the names, sizes and bytes of an encoder's files.

    Args:
        config: the encoder.
        memory: file that stores the hashes by path, size and modification time, so that 10 GB are read once; None for no file.
        download: see `files_of`.

    Raises:
        ValueError: a file is missing.
    """
    known = _read_hashes(memory)
    before = dict(known)
    lines: list[str] = [config.kind]
    for name, path in sorted(files_of(config, download).items()):
        stat = path.stat()
        place, seen = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        if known.get(place, [])[:2] != seen:
            # As in file_sha256: a file that changed a moment ago may change again without a new modification time.
            settled = time.time_ns() - stat.st_mtime_ns > 2_000_000_000
            known[place] = [*(seen if settled else [0, 0]), file_sha256(path)]
        lines.append(f"{name} {stat.st_size} {known[place][2]}")
    if memory is not None and known != before:
        # If the file cannot be written, the next call hashes the encoder's files again.
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_whole(memory, json.dumps(known, indent=1).encode())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _read_hashes(memory: Path | None) -> dict[str, list[Any]]:
    try:
        known = read_json(memory) if memory is not None else {}
    except (OSError, ValueError):
        return {}
    return {place: found for place, found in known.items() if _is_hash(found)} if isinstance(known, dict) else {}


def _is_hash(found: Any) -> bool:
    """Return whether a value of the memory is size, modification time and hash of a file."""
    return isinstance(found, list) and [type(part) for part in found] == [int, int, str]


def encoder_section(config: PretrainedTextConfig, sha256: str) -> dict[str, Any]:
    """Return the section of model.yaml for an encoder, from its config and hash."""
    return {PRETRAINED_TEXT: {**dataclasses.asdict(config), "sha256": sha256}}


@dataclasses.dataclass(frozen=True)
class _RecordedEncoder(PretrainedTextConfig):
    """An encoder in model.yaml, with the hash of its files."""

    sha256: str = ""

    def __post_init__(self) -> None:
        check_sha256(self.sha256, "sha256")
        check_range(self.width, "width", MAX_ENCODER_SIZE, 1)
        check_range(self.max_length, "max_length", MAX_ENCODER_SIZE, 1)


def recorded_encoder(artifact: Artifact, path: str | None, option: str, memory: Path | None = None) -> PretrainedTextConfig | None:
    """Return the frozen encoder that an artifact was trained with, after a comparison of its files' hash.

    An artifact may come from a stranger. The path in it therefore selects only files that are on this machine already.

    Args:
        artifact: of a base model.
        path: of the encoder, if not that of training.
        option: command-line option for another path, for the messages.
        memory: see `encoder_sha256`.

    Returns:
        Config of the encoder; None for an artifact without one.

    Raises:
        ValueError: the encoder's files are missing or differ, or there is a `path` for an artifact without a frozen encoder.
    """
    if PRETRAINED_TEXT not in artifact.config:
        if path is not None:
            raise ValueError(f"{option} {path}: {artifact.path} was not trained with a frozen text encoder; leave it out")
        return None
    where = f'{artifact.path}: section "{PRETRAINED_TEXT}" of model.yaml'
    section = artifact.config[PRETRAINED_TEXT]
    recorded = build_record(_RecordedEncoder, {"sha256": "", **section} if isinstance(section, dict) else section, where)
    fields = {field.name: getattr(recorded, field.name) for field in dataclasses.fields(PretrainedTextConfig)}
    wanted, config = recorded.sha256, PretrainedTextConfig(**(fields | ({} if path is None else {"path": path})))
    try:
        found = encoder_sha256(config, memory, download=path is not None)
    except ValueError as error:
        raise ValueError(
            f"{artifact.path} needs its text encoder ({wanted[:12]}), but {error}; or give its place: {option} PATH"
        ) from error
    if found != wanted:
        raise ValueError(
            f"the text encoder {config.path} is not the one that {artifact.path} was trained with ("
            f"{wanted[:12]}): restore its files, or give the place of the right one: {option} PATH"
        )
    return config


# ---- Features on disk ------------------------------------------------------------------------------------------------


class FeatureCache:
    """Cache on disk of the tokens of captions, for one encoder.

    Args:
        folder: of the shards; it need not exist.
        key: everything that the features depend on.
    """

    def __init__(self, folder: Path, key: Mapping[str, object]) -> None:
        self.folder = folder
        self.key = json.dumps({**key, "format": _FORMAT}, sort_keys=True)
        self._shards: list[Path] = []
        self._seen: set[str] = set()
        # First 8 bytes of each caption's hash, sorted, with shard and row: 16 bytes a caption.
        self._hashes = np.zeros(0, np.uint64)
        self._places = np.zeros((0, 2), np.int32)

    def look(self) -> None:
        """Find the shards that any process has written since the last call. A damaged or stale shard warns."""
        hashes, places = [self._hashes], [self._places]
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            try:
                shard = _open_shard(path)
                key = (shard.metadata() or {}).get("key")
                _check_layout(shard)
                sums = shard.get_tensor("sha256").numpy()
            except (SafetensorError, OSError, ValueError) as error:
                warnings.warn(f"{path} is damaged ({error}): its captions are encoded anew", stacklevel=2)
                continue
            if key != self.key:
                warnings.warn(f"{path} is stale (of another text encoder): not used", stacklevel=2)
                continue
            hashes.append(_prefixes(sums))
            places.append(np.stack([np.full(len(sums), len(self._shards)), np.arange(len(sums))], axis=1).astype(np.int32))
            self._shards.append(path)
        every = np.concatenate(hashes)
        order = np.argsort(every, kind="stable")
        self._hashes = every[order]
        self._places = np.concatenate(places)[order]

    def missing(self, captions: Iterable[str]) -> list[str]:
        """Return the captions that no shard has, without repeats, sorted."""
        wanted = sorted(set(captions))
        if not wanted:
            return []
        known = np.isin(_prefixes(_sums(wanted)), self._hashes)
        return [caption for caption, there in zip(wanted, known, strict=True) if not there]

    def read(self, caption: str) -> Tensor | None:
        """Return the tokens [n e] of a caption; None where no shard has them. Damaged tokens warn and count as missing."""
        digest = _sums([caption])
        first, last = (int(np.searchsorted(self._hashes, _prefixes(digest)[0], side)) for side in ("left", "right"))
        for number, row in self._places[first:last]:
            path = self._shards[number]
            try:
                shard = _open_shard(path)
                if not np.array_equal(shard.get_slice("sha256")[row : row + 1].numpy(), digest):
                    continue
                start, stop = shard.get_slice("start")[row : row + 2].tolist()
                if not 0 <= start <= stop:
                    raise OSError(f"rows {start} to {stop}")
                tokens: Tensor = shard.get_slice("tokens")[start:stop]
                whole = shard.get_slice("crc32")[row : row + 1].item() == _crc(tokens)
            except (SafetensorError, OSError):
                whole = False
            if whole:
                return tokens
            warnings.warn(f"{path}: row {row} is damaged: its caption is encoded anew", stacklevel=3)
        return None

    def write(self, captions: Sequence[str], rows: Sequence[Tensor]) -> None:
        """Add a shard with the tokens of captions. The write is atomic.

        Args:
            captions: the captions.
            rows: tokens [n e] of each caption.

        Raises:
            OSError: the shard cannot be written; for a full disk, the message has the sizes.
        """
        starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
        tensors = {
            "sha256": torch.from_numpy(_sums(captions)),
            "start": starts,
            "crc32": torch.tensor([_crc(row) for row in rows]),
            "tokens": torch.cat(list(rows)),
        }
        data = save(tensors, {"key": self.key})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / f"{uuid.uuid4().hex}.safetensors", data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(self.folder.parent).free >> 20
            raise OSError(
                error.errno,
                f"{self.folder}: cannot write {len(data) >> 20} MiB of text features ({len(captions)} captions; {free} MiB free). Make "
                "room, or set data.cache_dir to another disk; the same command goes on from here",
            ) from error

    def remove_left_overs(self) -> None:
        """Delete temporary files of processes that died: incomplete shards."""
        for path in self.folder.glob(".*.safetensors.*.tmp"):
            if re.fullmatch(r"\.[0-9a-f]{32}\.safetensors\.[\d.]+.*\.tmp", path.name):
                remove_left_overs(self.folder / f"{path.name[1:33]}.safetensors")


@lru_cache(maxsize=256)
def _open_shard(path: Path) -> Any:
    """Map a shard into memory. The result can be cached, since a shard's bytes never change."""
    if not path.is_file():  # a pipe would wait for ever
        raise OSError("no plain file")
    return safe_open(path, framework="pt")


def _check_layout(shard: Any) -> None:
    """Check types and shapes of a shard's tensors.

    Raises:
        ValueError: they are not those of a shard.
    """
    parts = {name: shard.get_slice(name) for name in ("sha256", "start", "crc32", "tokens")}
    found = {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
    n = found["crc32"][1][0] if found["crc32"][1] else 0
    wanted = {"sha256": ("U8", [n, 32]), "start": ("I64", [n + 1]), "crc32": ("I64", [n])}
    if {name: found[name] for name in wanted} != wanted or len(found["tokens"][1]) != 2:
        raise ValueError(f"found tensors {found}")


def _sums(captions: Sequence[str]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(hashlib.sha256(caption.encode()).digest() for caption in captions), np.uint8).reshape(-1, 32).copy()


def _prefixes(sums: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.ascontiguousarray(sums[:, :8]).view(np.uint64)[:, 0]


def _crc(tokens: Tensor) -> int:
    return zlib.crc32(tokens.contiguous().view(torch.uint8).numpy().tobytes())


# ---- Encoder with the cache ------------------------------------------------------------------------------------------


class CachedTextEncoder:
    """Frozen text encoder that reads its features from disk. It loads the model only for captions that the cache lacks.

    Args:
        config: of the encoder.
        sha256: of the encoder's files, see `encoder_sha256`.
        folder: of the caches, such as runs/EXP/cache.
        device: of the tokens and of the model.
    """

    def __init__(self, config: PretrainedTextConfig, sha256: str, folder: Path, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.sha256 = sha256
        self.width = config.width
        self.device = torch.device(device)
        key = {"encoder": sha256, "width": config.width, "length": config.max_length, "dtype": config.dtype}
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.cache = FeatureCache(folder / f"text-{name}", key)
        self.cache.look()
        self._encoder: PretrainedTextEncoder | None = None

    def to(self, device: torch.device | str) -> "CachedTextEncoder":
        """Move the encoder to a device, and return it."""
        if self.device != torch.device(device):
            self.device = torch.device(device)
            self._encoder = None
        return self

    def fill(self, captions: Iterable[str], rank: int = 0, ranks: int = 1, barrier: Callable[[], object] = lambda: None) -> None:
        """Compute the missing features of captions, each rank its share, then release the model.

        Shares and batches depend on the captions alone. An interrupted build therefore continues to equal bytes.

        Args:
            captions: all captions, on every rank.
            rank: of this process.
            ranks: number of processes that share the work.
            barrier: waits for the other ranks.
        """
        self.cache.look()
        missing = self.cache.missing(captions)
        # No rank may write before all ranks have listed the missing captions.
        barrier()
        if missing:
            if rank == 0:
                self.cache.remove_left_overs()
            shares = [missing[i : i + SHARD_CAPTIONS] for i in range(0, len(missing), SHARD_CAPTIONS)][rank::ranks]
            # Without a terminal, rich would print an empty line for the bar.
            hidden = rank > 0 or not sys.stdout.isatty()
            for share in track(shares, f"text features {self.cache.folder.name}", transient=True, disable=hidden):
                self._compute(share)
            cut = self._encoder.truncated if self._encoder else 0
            if cut:
                total = sum(map(len, shares))
                print(f"text: {cut} of {total} captions have more than {self.config.max_length} tokens and lost their end", flush=True)
        barrier()
        self.cache.look()
        self._encoder = None

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode captions. Those that the cache lacks are computed and added to it.

        Returns:
            Tokens [s l e] in the encoder's dtype, and their mask [s l] (true = a word).
        """
        if not captions:
            empty = torch.zeros(0, 1, self.width, dtype=getattr(torch, self.config.dtype), device=self.device)
            return empty, torch.zeros(0, 1, dtype=torch.bool, device=self.device)
        found = {caption: self.cache.read(caption) for caption in captions}
        absent = sorted(caption for caption, row in found.items() if row is None)
        if absent:
            found |= self._compute(absent)
            self.cache.look()
        rows = [row for row in map(found.__getitem__, captions) if row is not None]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = pad_sequence(rows, batch_first=True)
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        return to_device(tokens, self.device), to_device(mask, self.device)

    def _compute(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Encode captions, write their tokens to disk and return them. Captions of similar length share a batch."""
        self._encoder = self._encoder or PretrainedTextEncoder(self.config, self.device)
        ordered = sorted(captions, key=lambda caption: (len(caption), caption))
        rows: list[Tensor] = []
        for start in range(0, len(ordered), BATCH):
            tokens, mask = self._encoder.encode(ordered[start : start + BATCH])
            rows += [row[words].cpu() for row, words in zip(tokens, mask, strict=True)]
        self.cache.write(ordered, rows)
        return dict(zip(ordered, rows, strict=True))
