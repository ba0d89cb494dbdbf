"""Files from strangers end at once with an error, whatever is in them."""

import os
import time
from pathlib import Path

import pytest
import yaml

from walt_pl import untrusted
from walt_pl.untrusted import UntrustedError, parse_json, parse_yaml, read_bytes, read_json, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: &a [*a]",
        "[" * 10_000,
        "[" * 100_000,
        "- " * 5_000 + "x",
        "x: !!python/object/apply:os.system ['true']",
        "x: !!binary aGVsbG8=",
        "x: 2001-01-01",
        "x: 2001-99-99",
        "{[1, 2]: 3}",
        "x: " + "9" * 5000,
        "a: b: c",
        "\x00",
        "x: !!set {a, b}",
        b"\xff\xfe\x00",
        "? {a: b}\n: c",
        "%YAML 9.9\n---\n",
        "--- a\n--- b\n",
    ],
    ids=range(18),
)
def test_parse_yaml_refuses_hostile_text_at_once(text: str | bytes) -> None:
    started = time.process_time()
    with pytest.raises(UntrustedError, match=r"^stored"):
        parse_yaml(text, "stored")
    assert time.process_time() - started < 5


def test_parse_yaml_allows_few_aliases() -> None:
    shared = [1, 2]
    assert parse_yaml(yaml.safe_dump({"a": shared, "b": shared}), "stored") == {"a": [1, 2], "b": [1, 2]}
    assert parse_yaml("", "stored") is None


def test_parse_yaml_counts_each_use_of_an_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "MAX_YAML_VALUES", 20)
    with pytest.raises(UntrustedError, match="24 values"):
        parse_yaml("a: &a [1, 2, 3, 4]\nb: [*a, *a, *a]", "stored")


def test_parse_yaml_refuses_many_values_before_their_nodes_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes of a megabyte take seconds: a limit of time fails where the processor is busy."""
    monkeypatch.setattr(untrusted, "check_nodes", lambda *_: pytest.fail("nodes were made"))
    with pytest.raises(UntrustedError, match="more than 50,000 values"):
        parse_yaml("a: [" + "1, " * 50_000 + "1]", "stored")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "[" * 41 + "]" * 41, '{"a": "\\ud800"}', '{"\\udfff": 1}', "9" * 5000, "{", b"\xff", "NaN x"],
    ids=range(9),
)
def test_parse_json_refuses_hostile_text(text: str | bytes) -> None:
    with pytest.raises(UntrustedError, match=r"^row 3"):
        parse_json(text, "row 3")


def test_parse_json_allows_the_largest_depth() -> None:
    assert parse_json("[" * 40 + "]" * 40, "row 3")


def test_read_bytes_follows_no_link_and_waits_for_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(UntrustedError, match="more than 4 bytes"):
        read_bytes(tmp_path / "file", 4)
    for name in ("link", "loop", "pipe", "."):
        with pytest.raises(UntrustedError, match=r"not a plain file|cannot be read"):
            read_bytes(tmp_path / name, 5)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "missing", 5)
    with pytest.raises(UntrustedError, match="null"):
        read_bytes(tmp_path / "a\0b", 5)


def test_read_yaml_and_read_json_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [1]")
    (tmp_path / "a.json").write_text("[")
    assert read_yaml(tmp_path / "a.yaml") == {"a": [1]}
    with pytest.raises(UntrustedError, match=r"a\.json is not JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.yaml").write_bytes(b"#" * (untrusted.MAX_YAML_BYTES + 1))
    with pytest.raises(UntrustedError, match="1,048,576 bytes"):
        read_yaml(tmp_path / "a.yaml")
