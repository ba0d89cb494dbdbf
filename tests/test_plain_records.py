"""Records of plain values: a value of another type never becomes a field."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from walt_pl.plain_records import build_record, check_plain, shown
from walt_pl.terminal_text import printable
from walt_pl.untrusted import UntrustedError


@dataclass(frozen=True)
class Inner:
    size: int

    def __post_init__(self) -> None:
        if 10 % self.size > 5:
            raise ValueError("size is odd")


@dataclass(frozen=True)
class Record:
    name: str
    count: int = 0
    rate: float | None = None
    on: bool = False
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] = (0, "")
    inner: Inner | None = None
    many: dict[str, Inner] = field(default_factory=dict)
    free: Any = None


def test_build_record_reads_every_type() -> None:
    plain = {"name": "x", "count": 2, "rate": 3, "on": True, "kind": "b", "sizes": [1, 2], "pair": [1, "y"], "inner": {"size": 2}}
    record = build_record(Record, {**plain, "many": {"z": {"size": 5}}, "free": [1, {"a": None}]}, "file")
    assert record == Record("x", 2, 3, True, "b", (1, 2), (1, "y"), Inner(2), {"z": Inner(5)}, [1, {"a": None}])
    assert build_record(Record, {"name": "x", "rate": None}, "file") == Record("x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("name", value) for value in (7, None, ["x"], "a\nb", "\x1b[31m", "\u202e", "x" * 20_000)),
        *(("count", value) for value in ("3", True, 1.0, [1], None, 2**63, -(2**63) - 1, 16**5000)),
        *(("rate", value) for value in ("3", True, float("nan"), float("inf"), 2**70, [1.0])),
        *(("on", value) for value in (1, "true", None)),
        *(("kind", value) for value in ("c", 7, None, ["a"])),
        *(("sizes", value) for value in (3, "12", [True], ["1"], {"a": 1}, [[1]])),
        *(("pair", value) for value in ([1], [1, "x", 2], [1, 2])),
        *(("inner", value) for value in ([], 7, {}, {"size": "x"}, {"size": 1, "more": 2}, {"size": 0}, {"size": 6.0})),
        *(("many", value) for value in ([], {"a": 1}, {1: {"size": 2}}, {"\n": {"size": 2}})),
        *(("free", value) for value in ({"a": float("nan")}, [2**64], {"\x00": 1}, ["\ud800"])),
        ("unknown", 1),
    ],
    ids=lambda value: shown(value)[:30],
)
def test_build_record_refuses_a_value_of_another_type(name: str, value: Any) -> None:
    with pytest.raises(UntrustedError) as error:
        build_record(Record, {"name": "x", name: value}, "file")
    assert str(error.value).startswith("file") and str(error.value).isprintable() and len(str(error.value)) < 300


def test_build_record_names_a_missing_entry() -> None:
    with pytest.raises(UntrustedError, match="file has no entry name"):
        build_record(Record, {}, "file")


def test_check_plain_allows_what_cards_have() -> None:
    check_plain({"psnr": {"value": 30.5, "clips": 64}, 3: ["π", None, True]}, "file")


def test_printable_escapes_control_characters_and_keeps_lines() -> None:
    assert printable("a\x1b[2J\nb\t\x07\u202eπ\u3000") == "a\\x1b[2J\nb\t\\x07\\u202eπ\u3000"
