"""The words of a command line, before a command gets them."""

import sys

import pytest

from walt_pl.cli.main import COMMANDS, _expand_switches, main


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        ([], []),
        (["clips", "--report"], ["clips", "--report=true"]),
        (["--report", "clips", "--config", "a.yaml"], ["--report=true", "clips", "--config", "a.yaml"]),
        (["clips", "--report", "false", "--config=a.yaml"], ["clips", "--report", "false", "--config=a.yaml"]),
    ],
)
def test_main_switches_need_no_value(words: list[str], typed: list[str]) -> None:
    assert _expand_switches(words, COMMANDS["index"]) == typed


def test_main_help_shows_options_as_they_are_typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["walt_pl", "index", "--help"])
    with pytest.raises(SystemExit):
        main()
    text = capsys.readouterr().out
    assert "--config CONFIG" in text and "--config_" not in text
