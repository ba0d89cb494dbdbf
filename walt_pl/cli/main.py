"""Entry point of the one program, ``python -m walt_pl``.

``fit`` and ``validate`` are LightningCLI's; ``plan`` and ``cache`` read the same keys; the others are functions, one a file.
"""

import inspect
import keyword
import logging
import re
import sys
from collections.abc import Callable

from jsonargparse import auto_parser

from walt_pl.cli.ablate import ablate
from walt_pl.cli.clips import clips
from walt_pl.cli.demo import demo
from walt_pl.cli.evaluate import evaluate
from walt_pl.cli.export import export
from walt_pl.cli.fit import WaltCLI
from walt_pl.cli.index import index
from walt_pl.cli.sample import sample
from walt_pl.cli.status import status
from walt_pl.cli.verify import verify

COMMANDS: dict[str, Callable[..., None]] = {
    "index": index,
    "clips": clips,
    "export": export,
    "sample": sample,
    "evaluate": evaluate,
    "status": status,
    "verify": verify,
    "demo": demo,
    "ablate": ablate,
}


def _argument(flag: str) -> str:
    """Return the argument name of a flag.

    Flags may have dashes, as in other programs: --allow-stale is allow_stale. --continue, a keyword of Python, is continue_.
    """
    name = flag.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def _expand_switches(words: list[str], command: Callable[..., None]) -> list[str]:
    """Expand bare switches for the parser: --report becomes --report=true."""
    parameters = inspect.signature(command).parameters
    typed = []
    for place, word in enumerate(words):
        name = word.removeprefix("--")
        bare = word.startswith("--") and name in parameters and parameters[name].annotation in (bool, "bool")
        typed.append(f"{word}=true" if bare and words[place + 1 : place + 2] not in (["true"], ["false"]) else word)
    return typed


def main() -> None:
    """Run the command line."""
    sys.argv[1:] = [re.sub(r"^--([^=]+)", lambda flag: f"--{_argument(flag[1])}", word) for word in sys.argv[1:]]
    arguments = sys.argv[1:]
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.getMessage())
    if arguments and arguments[0] in COMMANDS:
        command = COMMANDS[arguments[0]]
        parser = auto_parser(command, as_positional=True, prog=f"python -m walt_pl {arguments[0]}")
        options = parser.parse_args(_expand_switches(arguments[1:], command))
        # auto_cli is not used: it would consume a command's own --config.
        command(**{name: options[name] for name in inspect.signature(command).parameters})
    elif arguments and arguments[0] == "plan":
        from walt_pl.cli.plan import PlanCLI

        sys.argv = [f"{sys.argv[0]} plan", *arguments[1:]]
        PlanCLI().show()
    elif arguments and arguments[0] == "cache":
        from walt_pl.cli.cache import CacheCLI

        sys.argv = [f"{sys.argv[0]} cache", *arguments[1:]]
        CacheCLI().build()
    else:
        WaltCLI()
