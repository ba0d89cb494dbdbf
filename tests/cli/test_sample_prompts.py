"""Prompts of `sample`: one a line, in the form that captions have."""

import unicodedata
from pathlib import Path

import pytest

from walt_pl.cli.sample import _read_prompts


def test_sample_prompts_are_split_at_line_ends_alone(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa dog\u2028runs\r\n\r\na\x85cat\x0bsits\ra  bird\n".encode())
    assert _read_prompts(None, str(file), None, optional=False) == (["a dog runs", "a cat sits", "a bird"], [])


def test_sample_prompts_have_the_unicode_form_of_captions(tmp_path: Path) -> None:
    typed = unicodedata.normalize("NFD", "caf\xe9")
    (tmp_path / "prompts.txt").write_text(typed, encoding="utf-8")
    assert _read_prompts(typed, None, None, optional=False) == (["caf\xe9"], [])
    assert _read_prompts(None, str(tmp_path / "prompts.txt"), None, optional=False) == (["caf\xe9"], [])


def test_sample_prompts_of_another_encoding_are_refused_with_the_command_that_converts(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("a dog".encode("utf-16"))
    with pytest.raises(ValueError, match=r"prompts\.txt: not UTF-8 but UTF-16; .*iconv -f utf-16 -t utf-8"):
        _read_prompts(None, str(tmp_path / "prompts.txt"), None, optional=False)
