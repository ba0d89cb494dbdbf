"""The program: its commands, its help, and the words of a command line before a command gets them."""

import importlib
import subprocess
import sys

import pytest

from tests.helpers.environment import ROOT
from walt_pl import __version__
from walt_pl.cli.function_command import _expand, parser_of
from walt_pl.cli.index import index
from walt_pl.cli.main import COMMANDS, GROUPS, main
from walt_pl.cli.sample import sample


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        ([], []),
        (["clips", "--report"], ["clips", "--report=true"]),
        (["--report", "clips", "--config", "a.yaml"], ["--report=true", "clips", "--config", "a.yaml"]),
        (["clips", "--report", "false", "--config=a.yaml"], ["clips", "--report", "false", "--config=a.yaml"]),
    ],
)
def test_function_command_switches_need_no_value(words: list[str], typed: list[str]) -> None:
    assert _expand(words, index) == typed


@pytest.mark.parametrize("words", [["--continue", "clip.mp4"], ["--continue=clip.mp4"]])
def test_function_command_options_may_be_keywords_of_python(words: list[str]) -> None:
    assert parser_of(sample).parse_args(words).continue_ == "clip.mp4"


def test_main_help_shows_options_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["index", "--help"])
    text = capsys.readouterr().out
    assert "--config CONFIG" in text and "--config_" not in text


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_main_help_lists_every_command_in_its_group(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words)
    text = capsys.readouterr().out
    for group, commands in GROUPS.items():
        for name, summary in commands.items():
            assert f"  {name:<10}{summary}\n" in text.split(f"{group}:\n")[1].split("\n\n")[0] + "\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_main_commands_are_files_with_a_function_run(name: str) -> None:
    assert callable(importlib.import_module(f"walt_pl.cli.{name}").run)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("stauts", "did you mean status"), ("trian", "there are: index"), ("sampel", "sample"), ("test", "fit"), ("predict", "fit")],
)
def test_main_answers_a_typo_with_the_nearest_commands(typed: str, meant: str) -> None:
    with pytest.raises(SystemExit, match=f'there is no command "{typed}"; .*{meant}'):
        main([typed])


def test_main_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"walt {__version__}\n"


@pytest.mark.parametrize("words", ["--help", "--version", "status", "verify", "index --help", "status --help"])
def test_main_quick_commands_import_neither_torch_nor_lightning(words: str) -> None:
    """They cost seconds of a core, which a status or a help must not."""
    check = (
        "import sys\nfrom walt_pl.cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "sys.exit(', '.join({'torch', 'lightning', 'numpy', 'pyarrow', 'av'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", check, *words.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_main_errors_of_the_user_are_one_message_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, raised in ((ValueError("wrong"), SystemExit), (OSError("full"), SystemExit), (KeyError("bug"), KeyError)):
        monkeypatch.setattr("walt_pl.cli.status.run", _raise(error))
        with pytest.raises(raised, match=str(error.args[0])):
            main(["status"])
    monkeypatch.setattr("walt_pl.cli.status.run", _raise(ValueError("wrong")))
    monkeypatch.setenv("WALT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="wrong"):
        main(["status"])


def _raise(error: Exception):  # type: ignore[no-untyped-def]
    def run(_: object) -> None:
        raise error

    return run
