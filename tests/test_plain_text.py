"""Text that people write: encoding, line ends, Unicode form."""

import unicodedata

import pytest

from walt_pl.plain_text import clean_caption, decode_text, is_one_line, split_lines, unify
from walt_pl.untrusted import UntrustedError

INNER = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""Characters within a line at which str.splitlines breaks."""


def test_split_lines_breaks_at_line_ends_alone() -> None:
    assert split_lines(f"a{INNER}b\nc\r\nd\re") == [f"a{INNER}b", "c", "d", "e"]
    assert split_lines("a\n\nb\n") == ["a", "", "b"] and split_lines("") == [] and split_lines("\n") == [""]
    for text in ("a\nb", "a\r\nb\r\n", "a\rb", "\n\r", "a\n\r\nb"):
        assert split_lines(text) == text.splitlines(), text


def test_is_one_line_refuses_a_line_end_behind_the_text() -> None:
    assert is_one_line(f"a{INNER}b") and is_one_line("")
    assert not any(is_one_line(text) for text in ("a\n", "a\rb", "\r\n"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a dog".encode("utf-16"), "not UTF-8 but UTF-16; .*iconv -f utf-16 -t utf-8 OLD > NEW"),
        ("a dog".encode("utf-16-be").join([b"\xfe\xff", b""]), "not UTF-8 but UTF-16"),
        ("a dog".encode("utf-32"), "not UTF-8 but UTF-32; .*iconv -f utf-32"),
        ("a dog".encode("utf-16-le"), "null bytes, .*iconv -f utf-16le"),
        ("caf\xe9".encode("latin1"), r"not UTF-8 \(byte 0xe9 at 3\); .*iconv -f latin1"),
    ],
)
def test_decode_text_refuses_other_encodings_with_the_command_that_converts(content: bytes, said: str) -> None:
    with pytest.raises(UntrustedError, match=said):
        decode_text(content)


def test_decode_text_reads_utf8_with_and_without_a_mark() -> None:
    assert decode_text("caf\xe9".encode()) == decode_text("caf\xe9".encode("utf-8-sig")) == "caf\xe9"


def test_clean_caption_is_one_line_in_composed_form() -> None:
    assert clean_caption(unicodedata.normalize("NFD", " caf\xe9\r\nnoir\u2028 et\tbon ")) == "caf\xe9 noir et bon"
    assert clean_caption("a dog runs, slowly") == unify("a dog runs, slowly") == "a dog runs, slowly"
