"""The program: `walt COMMAND`, or `python -m walt_pl COMMAND`. A command is the function of its name in the file of its name.

A name that is a keyword of Python, such as `try`, has an underscore behind it there.
"""

import difflib
import gc
import importlib
import keyword
import os
import re
import sys
from collections.abc import Callable, Sequence

from walt_pl import __version__
from walt_pl.cli.quiet import silence_libraries
from walt_pl.cli.temporary_folders import remove_empty_compile_cache
from walt_pl.terminal_text import printable

GROUPS: dict[str, dict[str, str]] = {
    "data": {
        "index": "list a data set, decode every file, and report what is broken",
        "new": "look at a folder of videos or images, and write an experiment with sizes that fit it",
        "clips": "fetch four real videos with pip",
        "cache": "compute the latents and text features of a stage before training",
    },
    "train": {
        "plan": "say what a stage costs: parameters, FLOPs, memory, days",
        "fit": "train a stage, or go on where it stopped",
        "validate": "compute the validation figures of a stage",
        "demo": "paint the embedded set, train all its stages, sample and score",
        "paper": "train and measure the rows of the paper's tables on the embedded set",
    },
    "use": {
        "try": "make clips with the small trained model of the checkout",
        "sample": "make videos from prompts, labels, a picture or a clip",
        "evaluate": "measure the stages of a run: FVD, PSNR, ... against real clips",
        "metrics": "compare sets of clips by FVD and other metrics",
        "export": "make an artifact of a checkpoint, or round those of a run to bfloat16",
    },
    "look": {
        "report": "write one HTML file about a run: curves, previews, samples, metrics, incidents",
        "status": "show the stages of a run and their states",
        "ready": "check that the stages that a stage is trained from are finished; it takes the options of fit",
        "verify": "compare every byte of a run's artifacts with their cards",
        "clean": "remove the files of a run, and nothing else",
    },
}
"""Commands and their summaries, by what a user wants to do."""
COMMANDS = [name for group in GROUPS.values() for name in group]
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": (
        "braceexpand",
        "deepspeed",
        "jinja2",
        "lightning",
        "lpips",
        "matplotlib",
        "scipy",
        "tensorboard",
        "timm",
        "torchvision",
        "webdataset",
    ),
    "text": ("huggingface_hub", "open_clip", "transformers"),
    "metrics": ("torch_fidelity", "torchmetrics"),
}
"""Extras of the package (pyproject.toml), and the modules that they install. `pip install .` alone installs none of them."""
DEPENDENCIES = ("av", "einops", "jsonargparse", "numpy", "PIL", "pyarrow", "rich", "safetensors", "sentencepiece", "torch", "yaml")
"""Modules that the package cannot do without (pyproject.toml)."""
TRACEBACK = "WALT_TRACEBACK"
"""Environment variable; with 1, an error shows where in the code it arose."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line.

    Args:
        args: words after the program's name; those of the process when None.

    Raises:
        SystemExit: with the message of an error that the user can mend, or after help.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "help"):
        print(describe_commands())
        return
    name, *rest = words
    if name == "--version":
        print(f"walt {__version__}")
    elif name in COMMANDS:
        run_command(name, rest)
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=3, cutoff=0.6)
        meant = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(COMMANDS)}."
        raise SystemExit(f'error: there is no command "{name}"; {meant} (walt --help)')


def describe_commands() -> str:
    """Return the help of the program: every command with its summary."""
    lines = ["usage: walt COMMAND [options]     (or: python -m walt_pl COMMAND [options])", ""]
    for group, commands in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<10}{summary}" for name, summary in commands.items()), ""]
    lines.append("walt COMMAND --help lists the options of a command; make help lists the usual command lines.")
    return "\n".join(lines)


def run_command(name: str, words: Sequence[str]) -> None:
    """Run a command. Errors that a user can mend become one message."""
    silence_libraries()
    try:
        command = _import_command(name)
        command([re.sub(r"^--([^=]+)", lambda flag: f"--{flag[1].replace('-', '_')}", word) for word in words])
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
    except ImportError as error:
        extra = _missing_extra(error)
        if _misses_dependency(error) and os.environ.get(TRACEBACK) != "1":
            raise SystemExit(
                f"error: {error.name} is not installed in {sys.executable}; use the project's own Python, .venv/bin/python "
                "(make setup makes it), or pip install walt-pl"
            ) from None
        if extra is None or os.environ.get(TRACEBACK) == "1":
            raise
        raise SystemExit(
            f"error: walt {name} needs the {extra} extra, and {error.name} is not installed: pip install 'walt-pl[{extra}]' "
            "(in a checkout: make setup)"
        ) from None
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1" or not _is_mendable(error):
            raise
        raise SystemExit(printable(f"error: {_describe(error)}")) from None
    finally:
        remove_empty_compile_cache()


def _describe(error: Exception) -> str:
    """Return the message of an error, without the number that the system gives to a missing file."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"there is no {error.filename}" if isinstance(error, FileNotFoundError) else f"{error.filename}: {error.strerror}"
    return str(error)


def _misses_dependency(error: ImportError) -> bool:
    """Return whether an import did not find a package that every command needs."""
    return isinstance(error, ModuleNotFoundError) and error.name in DEPENDENCIES


def module_of(name: str) -> str:
    """Return the module of a command."""
    return f"walt_pl.cli.{name}{'_' if keyword.iskeyword(name) else ''}"


def _import_command(name: str) -> Callable[[list[str]], None]:
    """Return the function of a command."""
    collects = gc.isenabled()
    # The modules of torch and Lightning live to the end. To look for garbage among them takes a fifth of their import.
    gc.disable()
    try:
        return importlib.import_module(module_of(name)).run
    finally:
        if collects:
            gc.enable()


def _missing_extra(error: ImportError) -> str | None:
    """Return the extra whose package an import did not find; None for other errors of imports."""
    module = (error.name or "").partition(".")[0]
    missing = isinstance(error, ModuleNotFoundError) and module == error.name
    return next((extra for extra, modules in EXTRAS.items() if missing and module in modules), None)


def _is_mendable(error: Exception) -> bool:
    """Return whether an error is about what the user typed or what lies on disk, not about the code."""
    library = type(error).__name__ == "MisconfigurationException"  # of Lightning, which is not imported here
    return isinstance(error, ValueError | OSError) or library or type(error).__module__.startswith("walt_pl.")
