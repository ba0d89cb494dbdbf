"""Promises of files of cards: equal after reading, written whole, and harmless when a stranger has written them."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from walt_pl.evaluation.card import ErrorBar, MetricCard, read_cards, write_cards
from walt_pl.metrics.protocol import PRESETS
from walt_pl.untrusted import UntrustedError

CARD = MetricCard(
    metric="fvd",
    value=46.5,
    better="min",
    preset="tats",
    protocol=PRESETS["tats"].to_plain(),
    settings={},
    extractor={"kind": "i3d", "sha256": "ab" * 32},
    real={"kind": "index", "sha256": "cd" * 32, "clips": 2048, "left_out": {"too short": 3}},
    generated={"kind": "run", "clips": 2048, "steps": {"base": 50}},
    error=ErrorBar("disjoint folds", (50.0, 52.0), 1.0, 1.5),
    program={"code": "abc", "versions": {"torch": "2.14.1"}},
    seconds=12.5,
    date="2026-01-31T12:00:00+00:00",
)


def plain(**changes: Any) -> dict[str, Any]:
    """Return the entries of a card as they lie in a file."""
    found: dict[str, Any] = json.loads(json.dumps({**CARD.to_plain(), **changes}))
    return found


@pytest.mark.parametrize("count", [1, 3])
def test_card_file_reads_as_it_was_written(tmp_path: Path, count: int) -> None:
    cards = [replace(CARD, metric=name) for name in ("fvd", "kvd", "is")[:count]]
    path = tmp_path / "new" / "card.json"
    write_cards(path, cards)
    assert read_cards(path) == cards
    assert isinstance(json.loads(path.read_text()), dict if count == 1 else list)
    assert os.listdir(path.parent) == ["card.json"]


def test_card_file_replaces_cards_alone(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    write_cards(path, [CARD, CARD])
    write_cards(path, [CARD])
    assert read_cards(path) == [CARD]
    path.write_text('{"mine": 1}')
    with pytest.raises(ValueError, match=r"is no file of cards .*move it away, or name another file"):
        write_cards(path, [CARD])
    assert path.read_text() == '{"mine": 1}'


def test_card_file_follows_no_link(tmp_path: Path) -> None:
    other, link = tmp_path / "other.json", tmp_path / "card.json"
    write_cards(other, [CARD])
    link.symlink_to(other)
    with pytest.raises(UntrustedError, match="not a plain file"):
        read_cards(link)
    with pytest.raises(ValueError, match="is no file of cards"):
        write_cards(link, [replace(CARD, value=1.0)])
    assert read_cards(other) == [CARD]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_card_with_a_figure_that_is_no_number_is_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match=r"is not written: .*value is .*wanted a finite number"):
        write_cards(tmp_path / "card.json", [replace(CARD, value=value)])
    assert not list(tmp_path.iterdir())


def test_card_file_without_cards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found 0 cards"):
        write_cards(tmp_path / "card.json", [])


HOSTILE: dict[str, Any] = {
    "a list": [1],
    "a text": "fvd",
    "no format": {"metric": "fvd"},
    "another format": plain(format=2),
    "a format that equals 1": plain(format=True),
    "an unknown entry": plain(run="rm -rf"),
    "a metric with a path": plain(metric="../fvd"),
    "a metric of another type": plain(metric=["fvd"]),
    "a value as text": plain(value="46"),
    "a value of thousands of digits": plain(value=10**400),
    "a value of true": plain(value=True),
    "another better": plain(better="most"),
    "a preset with control characters": plain(preset="tats\x1b]0;x\x07"),
    "a protocol as list": plain(protocol=[1]),
    "a key with control characters": plain(protocol={"clips\x1b[2J": 1}),
    "a nested text with control characters": plain(real={"left_out": {"a": ["\u202egpj"]}}),
    "a text of 20,000 characters": plain(extractor={"kind": "x" * 20_000}),
    "a negative error": plain(error={"standard_error": -1.0}),
    "an error of another kind": plain(error={"kind": "bootstrap"}),
    "values that are texts": plain(error={"values": ["1"]}),
    "100,000 values": plain(error={"values": [1.0] * 100_000}),
    "negative seconds": plain(seconds=-1),
    "a date that is none": plain(date="yesterday"),
    "no value": {name: value for name, value in plain().items() if name != "value"},
    "2,000 cards": [plain()] * 2000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_card_of_a_stranger_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "card.json"
    path.write_text(json.dumps(HOSTILE[name]))
    with pytest.raises(UntrustedError) as error:
        read_cards(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"format": 1, "value": NaN}', json.dumps(plain()).replace("46.5", "NaN"), "\x00", " " * (17 << 20), '"\\ud800"'],
    ids=["deep", "nan alone", "nan", "null byte", "huge", "surrogate"],
)
def test_card_file_of_a_stranger_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "card.json"
    path.write_text(text)
    with pytest.raises(UntrustedError):
        read_cards(path)


def test_card_file_that_waits_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "card.json")
    with pytest.raises(UntrustedError, match="not a plain file"):
        read_cards(tmp_path / "card.json")
