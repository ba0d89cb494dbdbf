"""Prompts of `sample`: one a line, in the form that captions have."""

import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest

from walt_pl.cli import sample as command
from walt_pl.cli.sample import _read_prompts, sample


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


def test_sample_negative_prompt_has_the_form_of_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.Cascade, "open", lambda *_: SimpleNamespace(stages=[]))
    monkeypatch.setattr(command, "stage_guidance", lambda *_: 1.0)
    monkeypatch.setattr(command, "warn_of_unseen_words", lambda _, texts: pytest.fail(repr(texts)))
    with pytest.raises(pytest.fail.Exception, match=r"\['a dog', 'caf\xe9 noir'\]"):
        sample(prompt="a dog", negative_prompt=unicodedata.normalize("NFD", "caf\xe9\n noir"), device="cpu")
