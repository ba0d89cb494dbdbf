"""Checkpoints that tests change: describe their files again, or damage them."""

import json
from pathlib import Path
from random import Random
from typing import Any

from walt_pl.runs.card import card_text
from walt_pl.runs.checkpoint import CARD
from walt_pl.runs.checkpoint_card import describe_files


def describe_again(folder: Path, **changes: Any) -> None:
    """Write checkpoint.json for the present files of a checkpoint, with other values where they are given."""
    card = json.loads((folder / CARD).read_text())
    card.pop("checksum", None)
    (folder / CARD).write_text(card_text({**card, "files": describe_files(folder, {}), **changes}))


def without_hashes(folder: Path) -> None:
    """Write checkpoint.json as programs of format 2 did."""
    card = json.loads((folder / CARD).read_text())
    del card["checksum"]
    files = {name: record["bytes"] for name, record in card["files"].items()}
    (folder / CARD).write_text(json.dumps({**card, "format": 2, "files": files}, indent=2) + "\n")


def flip_bit(path: Path, random: Random) -> str:
    """Flip one bit of a file, and return which one in words."""
    data = bytearray(path.read_bytes())
    byte, bit = random.randrange(len(data)), random.randrange(8)
    data[byte] ^= 1 << bit
    path.write_bytes(data)
    return f"{path.name}: bit {bit} of byte {byte:,} of {len(data):,}"
