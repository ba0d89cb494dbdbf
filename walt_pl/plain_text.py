"""Read text that people write: captions, lists and prompts, in one encoding, one Unicode form and with one rule for line ends."""

import codecs
import re
import unicodedata

from walt_pl.untrusted import UntrustedError

_MARKS = {
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks of encodings that editors write and that are refused, such as "Unicode" of Windows Notepad."""


def decode_text(content: bytes) -> str:
    """Return UTF-8 text, without the byte order mark that some editors write.

    Raises:
        UntrustedError: It is no UTF-8, or has null bytes. The message says how to convert it.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UntrustedError(describe_encoding(error, f"at {error.start}")) from None
    if "\0" in text:
        raise UntrustedError(f"null bytes, as of UTF-16 without its mark; {_advise('utf-16le')}")
    return text


def describe_encoding(error: UnicodeDecodeError, place: str) -> str:
    """Return why a text is no UTF-8, and how to convert it. `place` says where in the file the wrong byte is."""
    found = next((name for mark, name in _MARKS.items() if error.object.startswith(mark)), None)
    if found:
        return f"not UTF-8 but {found}; {_advise(found.lower())}"
    return f"not UTF-8 (byte {error.object[error.start]:#04x} {place}); {_advise('latin1')}"


def _advise(encoding: str) -> str:
    return f"save it as UTF-8, for example: iconv -f {encoding} -t utf-8 OLD > NEW"


def split_lines(text: str) -> list[str]:
    r"""Return the lines of a text without their ends: \n, \r\n or \r.

    str.splitlines also breaks at U+2028, U+0085, form feeds and others, which text may hold within a line.
    """
    lines = re.split("\r\n|\r|\n", text)
    return lines if lines[-1] else lines[:-1]


def is_one_line(text: str) -> bool:
    """Return whether a text has no line end, not even behind it."""
    return not re.search("[\r\n]", text)


def unify(text: str) -> str:
    """Return a text in Unicode's composed form (NFC): "é" is one character. macOS writes names with two, "e" and an accent."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def clean_caption(text: str) -> str:
    """Return a caption or prompt in the one form that training and sampling know: NFC, one line, single spaces."""
    return unify(" ".join(text.split()))
