"""List tar shards as webdataset writes them, with the position of every clip and image."""

import re
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from walt_pl.data.tar_members import MAX_TEXT_BYTES, BoundedTarInfo, join_words, read_words, unused_words
from walt_pl.indexing.class_numbers import FirstLabels
from walt_pl.indexing.isolated_pool import LostJob, give_sign, run_isolated
from walt_pl.indexing.listing import SourceItem, SourceListing, note_unread, split_of
from walt_pl.indexing.shard_names import expand
from walt_pl.media.extensions import NOT_READ, ending_of, kind_of
from walt_pl.untrusted import UntrustedError

_SHARD_SECONDS = 360.0  # from one member to the next: an hour by the clock on a slow network disk


def list_shards(source: str, workers: int) -> SourceListing:
    """List the samples of webdataset shards. A sample is the members that share their name up to the first dot of its last part.

    Args:
        source: A folder, a shard or a pattern of shards.
        workers: Processes that read shards.

    Raises:
        ValueError: A shard is packed or missing.
    """
    path = Path(source)
    names = [str(shard) for shard in sorted(path.rglob("*.tar"))] if path.is_dir() else expand(source)
    others = [name for name in names if not Path(name).is_file()] if path.is_dir() else []
    names = [name for name in names if name not in set(others)]
    if packed := [str(shard) for ending in ("*.tar.gz", "*.tgz", "*.tar.zst") for shard in path.glob(ending)] if path.is_dir() else []:
        raise ValueError(f"{packed[0]}: packed shards cannot be read at random places; unpack them first: gunzip {packed[0]}")
    if missing := [name for name in names if not Path(name).is_file()]:
        raise ValueError(f"{source}: {len(missing)} of {len(names)} shards are not there, the first: {missing[0]}")
    found: dict[str, list[SourceItem]] = {}
    unread = Counter[str]()
    notes = [f"{len(others)} shards are no plain files and are left out, the first: {others[0]}"] if others else []
    for name, shard in run_isolated(list_shard, names, min(workers, max(1, len(names))), _SHARD_SECONDS):
        if isinstance(shard, LostJob):
            notes.append(f"{name}: {shard.finding}: {shard.reason}")
            continue
        found[name], broken, skipped = shard
        unread.update(skipped)
        notes += [f"{name}: {broken}"] if broken else []
    items, first = [item for name in names for item in found.get(name, [])], FirstLabels()
    for item in items:
        first.add(item.label, f"{item.file}: sample {item.family.partition('/')[2].lstrip('/')}")
    return SourceListing("webdataset", items, [*sorted(notes), *note_unread(unread)], mixture=first.describe_mixture())


def list_shard(name: str) -> tuple[list[SourceItem], str, Counter[str]]:
    """List the clips and images in a tar shard, each with the position of its bytes.

    The caption of a sample is its `.txt`, or "caption" or "text" of its `.json`, which may list several.
    Its class is its `.cls`, or "label" of its `.json`. The shard's name or folder may name the split: "train-0001.tar", "val/0001.tar".

    Returns:
        The items, why the rest of the shard could not be read ("" if all could), and the number of pictures that are not read, by ending.
    """
    split = split_of([*Path(name).parts[-2:-1], *re.split(r"[^A-Za-z]+", Path(name).stem)])
    media: list[tuple[str, tarfile.TarInfo]] = []
    said: dict[str, dict[str, dict[str, Any]]] = {}
    broken, unread = "", Counter[str]()
    try:
        with tarfile.open(name, "r:", tarinfo=BoundedTarInfo) as shard:
            for member in shard:
                give_sign()
                key, ending = _sample(member.name)
                if not member.isreg() or member.issparse() or key.endswith("/"):
                    continue
                if kind_of(ending):
                    media.append((key, member))
                elif ending_of(ending) in NOT_READ:
                    unread[ending_of(ending)] += 1
                elif ending in ("txt", "cls", "json"):
                    said.setdefault(key, {})[ending] = _said(shard, member, ending)
    # tarfile raises many more on hostile headers, and MemoryError and RecursionError among them.
    except Exception as error:
        broken = f"can be read as far as {len(media)} clips and images: {str(error)[:300] or type(error).__name__}"
    items = []
    for key, member in media:
        words = join_words(said.get(key, {}))
        item = SourceItem(
            name, kind_of(member.name) or "", words.get("caption", ""), words.get("label", -1), words.get("split", "") or split
        )
        family = f"{Path(name).name}/{key}"
        item = replace(
            item,
            offset=member.offset_data,
            bytes=member.size,
            family=family,
            finding="; ".join(f"{k}: {v}" for k, v in words["findings"].items()),
        )
        items.append(replace(item, more_captions=words.get("more_captions", ())))
    return items, broken, unread


def _sample(member: str) -> tuple[str, str]:
    """Split a member's name into key and ending, as webdataset does: "a/b.c.jpg" is ("a/b", "c.jpg")."""
    folder, _, name = member.rpartition("/")
    stem, _, ending = name.partition(".")
    return f"{folder}/{stem}", ending.lower()


def _said(shard: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> dict[str, Any]:
    """Return the metadata of a sample that a small member holds, and the "findings" that say what cannot be used."""
    file = shard.extractfile(member)
    assert file is not None
    try:
        words = read_words(file.read(MAX_TEXT_BYTES + 1), ending)
    except UntrustedError as error:
        words = unused_words(ending, str(error))
    return words | {"findings": {field: f"{member.name[:200]!a}: {reason}" for field, reason in words.get("findings", {}).items()}}
