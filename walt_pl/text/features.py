"""Features of frozen text encoders: which encoder an artifact was trained with, and its tokens computed once a caption.

A cache is a folder `text-HASH` of shards that nobody changes once they are written, so that any number of processes add to it:

    sha256  [n 32]   of each caption
    start   [n + 1]  where its tokens begin
    crc32   [n]      of its tokens
    tokens  [sum e]  in the encoder's dtype, words only

Ten million captions of 20 words at width 2048 are 0.8 TB in bfloat16; padded to 128 words they would be 5.2 TB.

The key (files of the encoder, length, dtype) names the folder and stands in every shard; a shard with another key is not read.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import shutil
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

from walt_pl.files import file_sha256, write_whole
from walt_pl.runs.artifact import Artifact
from walt_pl.text.pretrained_encoder import PretrainedTextEncoder, files_of
from walt_pl.text.small_encoder import PretrainedTextConfig

SECTION = "pretrained_text"
"""Section of model.yaml: the config and identity of the frozen encoder that a base model was trained with."""
HASHES = "encoders.json"
"""File beside the caches that remembers the hashes of encoders' files."""
SHARD_CAPTIONS = 1024
BATCH = 64
"""Captions encoded together."""
_FORMAT = 1


# ---- Which encoder ---------------------------------------------------------------------------------------------------


def encoder_sha256(config: PretrainedTextConfig, memory: Path | None = None, download: bool = True) -> str:
    """Hash over names, sizes and bytes of an encoder's files.

    Args:
        config: the encoder.
        memory: file that keeps the hashes by path, size and time of change, so that 10 GB are read once.
        download: see :func:`files_of`.

    Raises:
        ValueError: a file is missing.
    """
    known = _remembered(memory)
    before = dict(known)
    lines: list[str] = [config.kind]
    for name, path in sorted(files_of(config, download).items()):
        stat = path.stat()
        place, seen = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        if known.get(place, [])[:2] != seen:
            # As in file_sha256: a file changed just now may change again without a new time.
            settled = time.time_ns() - stat.st_mtime_ns > 2_000_000_000
            known[place] = [*(seen if settled else [0, 0]), file_sha256(path)]
        lines.append(f"{name} {stat.st_size} {known[place][2]}")
    if memory is not None and known != before:
        # Only a memory: where it cannot be written, the files are read again next time.
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_whole(memory, json.dumps(known, indent=1).encode())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _remembered(memory: Path | None) -> dict[str, list[Any]]:
    try:
        return dict(json.loads(memory.read_text(encoding="utf-8"))) if memory is not None else {}
    except (OSError, ValueError):
        return {}


def encoder_section(config: PretrainedTextConfig, sha256: str) -> dict[str, Any]:
    """What model.yaml says of an encoder."""
    return {SECTION: {**dataclasses.asdict(config), "sha256": sha256}}


def recorded_encoder(artifact: Artifact, path: str | None, option: str, memory: Path | None = None) -> PretrainedTextConfig | None:
    """The frozen encoder an artifact was trained with, after comparing its files; None where it has none.

    The name in the artifact may be a stranger's: only what lies on this machine already is read by it.

    Args:
        artifact: of a base model.
        path: where the encoder lies, if not where it lay in training.
        option: what to type to give another place.
        memory: see :func:`identity`.

    Raises:
        ValueError: the encoder's files are missing or others.
    """
    if SECTION not in artifact.config:
        if path is not None:
            raise ValueError(f"{option} {path}: {artifact.path} was not trained with a frozen text encoder; leave it out")
        return None
    fields = dict(artifact.config[SECTION])
    wanted = fields.pop("sha256")
    config = PretrainedTextConfig(**(fields | ({} if path is None else {"path": path})))
    try:
        found = encoder_sha256(config, memory, download=path is not None)
    except ValueError as error:
        raise ValueError(
            f"{artifact.path} needs its text encoder ({wanted[:12]}), but {error}; or give its place: {option} PATH"
        ) from error
    if found != wanted:
        raise ValueError(
            f"the text encoder {config.path} is not the one that {artifact.path} was trained with (found {found[:12]}, wanted "
            f"{wanted[:12]}): restore its files, or give the place of the right one: {option} PATH"
        )
    return config


# ---- Features on disk ------------------------------------------------------------------------------------------------


class FeatureCache:
    """Tokens of captions on disk, for one encoder.

    Args:
        folder: where the shards lie or will lie.
        key: what the features depend on.
    """

    def __init__(self, folder: Path, key: Mapping[str, object]) -> None:
        self.folder = folder
        self.key = json.dumps({**key, "format": _FORMAT}, sort_keys=True)
        self._shards: list[Path] = []
        self._seen: set[str] = set()
        # First 8 bytes of a caption's hash, in order, with shard and row: 16 bytes a caption.
        self._hashes = np.zeros(0, np.uint64)
        self._places = np.zeros((0, 2), np.int32)

    def look(self) -> None:
        """Find the shards written since, by any process."""
        hashes, places = [self._hashes], [self._places]
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            try:
                shard = _opened(path)
                key = (shard.metadata() or {}).get("key")
                sums = shard.get_tensor("sha256").numpy()
            except (SafetensorError, OSError) as error:
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
        self._hashes, self._places = every[order], np.concatenate(places)[order]

    def missing(self, captions: Iterable[str]) -> list[str]:
        """The captions that no shard has, each once, in order."""
        wanted = sorted(set(captions))
        if not wanted:
            return []
        known = np.isin(_prefixes(_sums(wanted)), self._hashes)
        return [caption for caption, there in zip(wanted, known, strict=True) if not there]

    def read(self, caption: str) -> Tensor | None:
        """Tokens [n e] of a caption; None where there are none, or where they are damaged."""
        digest = _sums([caption])
        first, last = (int(np.searchsorted(self._hashes, _prefixes(digest)[0], side)) for side in ("left", "right"))
        for number, row in self._places[first:last]:
            path = self._shards[number]
            try:
                shard = _opened(path)
                if not np.array_equal(shard.get_slice("sha256")[row : row + 1].numpy(), digest):
                    continue
                start, stop = shard.get_slice("start")[row : row + 2].tolist()
                tokens: Tensor = shard.get_slice("tokens")[start:stop]
                whole = shard.get_slice("crc32")[row : row + 1].item() == _crc(tokens)
            except (SafetensorError, OSError):
                whole = False
            if whole:
                return tokens
            warnings.warn(f"{path}: row {row} is damaged: its caption is encoded anew", stacklevel=3)
        return None

    def write(self, captions: Sequence[str], rows: Sequence[Tensor]) -> None:
        """Add a shard with the tokens [n e] of captions; whole or not at all.

        Raises:
            OSError: the disk is full.
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
        """Free the space of shards that were half written when their process died."""
        for path in self.folder.glob(".*.tmp"):
            # Another process may be writing one right now.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()


@lru_cache(maxsize=256)
def _opened(path: Path) -> Any:
    """A shard, mapped into memory; its bytes never change."""
    return safe_open(path, framework="pt")


def _sums(captions: Sequence[str]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(hashlib.sha256(caption.encode()).digest() for caption in captions), np.uint8).reshape(-1, 32).copy()


def _prefixes(sums: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.ascontiguousarray(sums[:, :8]).view(np.uint64)[:, 0]


def _crc(tokens: Tensor) -> int:
    return zlib.crc32(tokens.contiguous().view(torch.uint8).numpy().tobytes())


# ---- An encoder that remembers ---------------------------------------------------------------------------------------


class CachedTextEncoder:
    """A frozen text encoder whose features are read from disk; it is loaded only for captions that are not there.

    Args:
        config: which encoder.
        sha256: its identity.
        folder: where caches lie, such as runs/EXP/cache.
        device: where tokens go and the encoder runs.
    """

    def __init__(self, config: PretrainedTextConfig, sha256: str, folder: Path, device: torch.device | str = "cpu") -> None:
        self.config, self.sha256, self.width = config, sha256, config.width
        self.device = torch.device(device)
        key = {"encoder": sha256, "width": config.width, "length": config.max_length, "dtype": config.dtype}
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.cache = FeatureCache(folder / f"text-{name}", key)
        self.cache.look()
        self._encoder: PretrainedTextEncoder | None = None

    def to(self, device: torch.device | str) -> "CachedTextEncoder":
        """The same on another device."""
        if self.device != torch.device(device):
            self.device, self._encoder = torch.device(device), None
        return self

    def fill(self, captions: Iterable[str], rank: int = 0, ranks: int = 1, barrier: Callable[[], object] = lambda: None) -> None:
        """Compute what is missing of these captions, each rank its share, and let go of the encoder.

        Shares and batches follow from the captions alone, so that an interrupted build goes on to the same bytes.

        Args:
            captions: all of them, on every rank.
            rank: of this process.
            ranks: how many work together.
            barrier: waits for the others.
        """
        self.cache.look()
        missing = self.cache.missing(captions)
        # Nobody writes before everybody has made the list.
        barrier()
        if missing:
            if rank == 0:
                self.cache.remove_left_overs()
            shares = [missing[i : i + SHARD_CAPTIONS] for i in range(0, len(missing), SHARD_CAPTIONS)][rank::ranks]
            for share in track(shares, f"text features {self.cache.folder.name}", transient=True, disable=rank > 0):
                self._compute(share)
            cut = self._encoder.truncated if self._encoder else 0
            if cut:
                total = sum(map(len, shares))
                print(f"text: {cut} of {total} captions have more than {self.config.max_length} tokens and lost their end", flush=True)
        barrier()
        self.cache.look()
        self._encoder = None

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions to tokens [s l e] in the encoder's dtype and their mask [s l]; what the cache lacks is encoded and added to it."""
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
        return tokens.to(self.device), mask.to(self.device)

    def _compute(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Encode captions and put them on disk; captions of about one length share a batch."""
        self._encoder = self._encoder or PretrainedTextEncoder(self.config, self.device)
        ordered = sorted(captions, key=lambda caption: (len(caption), caption))
        rows: list[Tensor] = []
        for start in range(0, len(ordered), BATCH):
            tokens, mask = self._encoder.encode(ordered[start : start + BATCH])
            rows += [row[words].cpu() for row, words in zip(tokens, mask, strict=True)]
        self.cache.write(ordered, rows)
        return dict(zip(ordered, rows, strict=True))
