"""The program: its commands, its help, and the words of a command line before a command gets them."""

import gc
import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.environment import ROOT
from tests.helpers.tiny_stages import write_stages
from walt_pl import __version__
from walt_pl.cli.function_command import _expand
from walt_pl.cli.index import index
from walt_pl.cli.main import COMMANDS, GROUPS, main, module_of
from walt_pl.runs.manifest import Manifest

QUICK = {
    *("jsonargparse", "docstring_parser", "typeshed_client", "importlib_resources", "typing_extensions", "attr", "attrs"),
    *("rich", "yaml", "_distutils_hack"),
}
"""Packages that a command may import that must answer at once."""
PACKAGES = """
def packages():
    files = {name: str(getattr(module, '__file__', '')) for name, module in sys.modules.items()}
    return {name.partition('.')[0] for name, file in files.items() if 'site-packages' in file}
"""
"""Code of a function that returns the names of the imported packages that are not Python's own."""


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
    assert callable(importlib.import_module(module_of(name)).run)


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


@pytest.mark.parametrize("words", ["--help", "--version", "status", "status --json", "verify", "index --help", "status --help"])
def test_main_quick_commands_import_few_packages_and_take_a_second(words: str, tmp_path: Path) -> None:
    """Imports of torch and Lightning cost seconds of a core, which a status or a help must not."""
    check = (
        "import os, sys\nfrom walt_pl.cli.main import main\ntry: main(sys.argv[2:])\nexcept SystemExit: pass\n"
        f"{PACKAGES}\nwith open(sys.argv[1], 'w') as file: print(sum(os.times()[:2]), *packages(), file=file)"
    )
    command = [sys.executable, "-c", check, str(tmp_path / "found"), *words.split()]
    for _ in range(3):  # the first one may have to compile the modules, and another process may share the core
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        seconds, *names = (tmp_path / "found").read_text().split()
        assert set(names) <= QUICK
        if float(seconds) < 1.0:
            break
    assert float(seconds) < 1.0


@pytest.mark.parametrize("name", ["status", "verify"])
def test_main_quick_commands_of_a_finished_run_import_neither_torch_nor_lightning(name: str, tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    manifest = Manifest.open(root)
    for stage, folder in write_stages(root).items():
        manifest.finish(stage, folder)
    check = (
        "import sys\nfrom walt_pl.cli.main import main\nmain(sys.argv[1:])\n"
        "sys.exit(', '.join({'torch', 'lightning', 'numpy', 'pyarrow', 'av'} & set(sys.modules)) or 0)"
    )
    command = [sys.executable, "-c", check, name, "--run", str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "vae" in done.stdout


def test_commands_of_training_import_few_packages_beside_those_of_lightning() -> None:
    """Lightning's own import takes seconds. Optional packages (timm, deepspeed, lpips) are imported where they are used."""
    check = (
        f"import sys\nimport lightning.pytorch.cli\n{PACKAGES}\nbefore = packages()\n"
        "import walt_pl.cli.fit, walt_pl.cli.plan, walt_pl.cli.validate, walt_pl.cli.cache\nprint(*packages() - before)"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {
        *("attr", "attrs", "braceexpand", "einops", "google", "pyarrow", "safetensors", "tensorboard", "webdataset", "xxhash"),
    }


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


@pytest.mark.parametrize("collects", [True, False])
def test_main_collects_garbage_again_after_the_import_of_a_command(collects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    during: list[bool] = []

    def import_module(name: str) -> SimpleNamespace:
        during.append(gc.isenabled())
        return SimpleNamespace(run=lambda words: during.append(gc.isenabled()))

    monkeypatch.setattr("walt_pl.cli.main.importlib", SimpleNamespace(import_module=import_module))
    was = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        main(["status"])
    finally:
        (gc.enable if was else gc.disable)()
    assert during == [False, collects]
