"""Commands, files, links and messages that the pages name, and parsers of the commands that run nothing."""

import ast
import contextlib
import functools
import importlib
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from tests.helpers.environment import ROOT
from tests.helpers.house_rules import tree_of
from walt_pl.cli.main import COMMANDS, main, module_of

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "assets" / "README.md"]
EXAMPLES = {
    "EXP": "shapes",
    "STAGE": "base",
    "mine": "shapes",
    "FILE": "experiments/shapes/base.yaml",
    "EXPERIMENT": "experiments/shapes/base.yaml",
}
"""Placeholders of commands, and the experiment that a user makes, with what they stand for here."""
PLACEHOLDER = re.compile(r"(?<![A-Za-z])(?:EXP|STAGE|NAME|RUN|DIR|HASH)(?![A-Za-z])|\.\.\.")
PATH = re.compile(r"(?<![\w/.-])(?:walt_pl|stages|datamodules|experiments|tests|docs|benchmarks)/[\w./{},*=-]*[\w}*/]")
GROUPS_OF_KEYS = ("trainer", "data", "model", "checkpoint", "ema", "spike_guard", "previews", "throughput")
ENDINGS = ("yaml", "json", "safetensors", "help")
"""Ends of names that are files, such as model.yaml, and of --model.help, which is none of the configuration."""
USER_FILES = ("experiments/mine", "experiments/text_to_video/sr3.yaml")
"""Files that the pages tell the user to make."""


class Parsed(Exception):
    """The command line of a stage was parsed; nothing of it was built."""


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# ---- Commands ---------------------------------------------------------------------------------------------------------


def code_of(text: str) -> list[str]:
    """Return the lines of code blocks, joined where they end in a backslash and without comments, and the code in sentences."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [re.sub(r"\s+#\s.*", "", line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [command.strip() for line in [*lines, *spans] for command in re.split(r"&&", line)]


def programs_of(text: str) -> list[list[str]]:
    """Return the words after the program's name of every `walt COMMAND` of a text, whatever starts the program."""
    found = (re.search(r"^(?:.*\s)?(?:walt|(?:-m|--module) walt_pl)\s+(.*)", line) for line in code_of(text))
    lines = [match[1] for match in found if match and not match[1].startswith("COMMAND")]
    return [[EXAMPLES.get(word, word) for word in shlex.split(_fill(line))] for line in lines]


def makes_of(text: str) -> list[list[str]]:
    """Return the words of every `make ...` of a text."""
    lines = [line for line in code_of(text) if re.match(r"make(\s|$)", line)]
    return [shlex.split(_fill(line)) for line in lines]


def launches_of(text: str) -> list[dict[str, str]]:
    """Return the variables of every command of a text that starts a script of launch/."""
    lines = [shlex.split(line) for line in code_of(text) if re.search(r"\bEXP=.*\blaunch/(slurm\.sbatch|torchrun\.sh)", line)]
    return [dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word)) for words in lines]


def _fill(line: str) -> str:
    """Return a command line with paths and experiments in place of their placeholders."""
    line = re.sub(r"\bEXP\b(?!=)", "shapes", line)
    line = re.sub(r"\bEXP=(?:mine|\.\.\.)", "EXP=shapes", line)
    line = re.sub(r"\bSTRATEGY=\.\.\.", "STRATEGY=zero2", line)
    line = re.sub(r"\bSTAGE=sr3\b", "STAGE=sr2", line)
    return re.sub(r"\bSTAGE(?=\.yaml|/)", "base", line)


def made(words: list[str]) -> str:
    """Return the commands that `make` would run.

    Raises:
        ValueError: make refuses the words.
    """
    ended = subprocess.run([*words, "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ValueError(f"{shlex.join(words)}: {ended.stderr.strip()}")
    return ended.stdout


def parse(words: list[str]) -> dict[str, Any] | None:
    """Parse a command line with the real parser of its command, and run nothing.

    Returns:
        The arguments of a command that is a plain function; None of other commands, of --help, and of the name of a command alone.

    Raises:
        ValueError: the program refuses the words.
    """
    name = words[0]
    if name in ("--help", "--version"):
        return None
    if name not in COMMANDS:
        raise ValueError(f'there is no command "{name}"')
    missing = [word for word in words if word.startswith("experiments/") and not (ROOT / word).exists()]
    if missing:
        raise ValueError(f"{shlex.join(words)}: there is no {missing[0]}")
    if words in ([name], [name, function_of(words)]) or {"--help", "--model.help", "ready"} & set(words):
        return None
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return _parse_stage(words, patch) if name in ("fit", "validate", "plan", "cache") else _parse_function(words, patch)


def function_of(words: list[str]) -> str:
    """Return the name of the function that a command line calls: the command's, or that of `walt metrics compare`."""
    is_compared = words[0] == "metrics" and words[1:2] and not words[1].startswith("-")
    return words[1] if is_compared else module_of(words[0]).rpartition(".")[2]


def _parse_stage(words: list[str], patch: pytest.MonkeyPatch) -> None:
    def stop(self: Any) -> NoReturn:
        raise Parsed

    for module, cli in (("fit", "WaltCLI"), ("plan", "PlanCLI"), ("cache", "CacheCLI")):
        patch.setattr(getattr(importlib.import_module(f"walt_pl.cli.{module}"), cli), "before_instantiate_classes", stop)
    try:
        main(words)
    except Parsed:
        return
    except SystemExit as error:
        raise ValueError(f"{shlex.join(words)}: {error}") from error
    raise AssertionError(f"{shlex.join(words)} was run")


def _parse_function(words: list[str], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    module, name = importlib.import_module(module_of(words[0])), function_of(words)
    called: dict[str, Any] = {}

    @functools.wraps(getattr(module, name))
    def record(**options: Any) -> None:
        called.update(options)

    patch.setattr(module, name, record)
    try:
        main(words)
    except SystemExit as error:
        raise ValueError(f"{shlex.join(words)}: {error}") from error
    return called


# ---- Keys of configurations --------------------------------------------------------------------------------------------


def keys_of(text: str) -> set[str]:
    """Return the dotted keys of configurations in the code of sentences, such as data.fps of `data.fps` and `--data.fps 8`."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    key = re.compile(rf"(?<![\w./])(?:--)?((?:{'|'.join(GROUPS_OF_KEYS)})(?:\.[a-z_]\w*)+)(?![\w/])")
    found = {match.replace(".init_args.", ".") for span in spans for match in key.findall(span)}
    return {name for name in found if name.rpartition(".")[2] not in ENDINGS}


@functools.cache
def known_keys() -> frozenset[str]:
    """Return the dotted keys of the stages, and of their groups, without `init_args`."""
    found: set[str] = set()
    for config in ("shapes/vae_gan", "shapes/base", "text_to_video/base", "text_to_video/sr1"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit), pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            main(["fit", "--config", f"experiments/{config}.yaml", "--config", "experiments/strategy/zero2.yaml", "--print_config"])
        found |= set(_flatten(yaml.safe_load(said.getvalue())))
    return frozenset(found)


def _flatten(plain: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in plain.items():
        name = prefix.rstrip(".") if key == "init_args" else f"{prefix}{key}"
        yield name
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}.")


# ---- Files ------------------------------------------------------------------------------------------------------------


def paths_in(text: str) -> set[str]:
    """Return the paths of the checkout that a text names, without those that have a placeholder or that the user makes."""
    found = {path for match in PATH.findall(text) for path in _expand_braces(match)}
    return {path for path in found if not PLACEHOLDER.search(path) and not path.startswith(USER_FILES)}


def _expand_braces(path: str) -> Iterator[str]:
    before, brace, rest = path.partition("{")
    inner, _, after = rest.partition("}")
    yield from (f"{before}{one}{after}" for one in inner.split(",")) if brace else (path.rstrip(",}"),)


def missing_paths(text: str, root: Path = ROOT) -> list[str]:
    """Return the paths that a text names and that are neither there nor a pattern of files that are."""
    return [path for path in sorted(paths_in(text)) if not _exists(root, path.rstrip("/."))]


def _exists(root: Path, path: str) -> bool:
    return any(root.glob(path)) if "*" in path else (root / path).exists() or (root / f"{path}.py").is_file()


def docstrings_of(path: Path) -> str:
    """Return the docstrings of a module and the strings under its fields."""
    nodes = ast.walk(tree_of(path))
    return "\n".join(str(node.value.value) for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def broken_links(page: Path) -> list[str]:
    """Return the links of a page to files that are not there, or to headings that a page has not."""
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if ":" in name:
            continue
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in _anchors(read(file))):
            broken.append(target)
    return broken


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# ---- Messages ---------------------------------------------------------------------------------------------------------


def messages_of(text: str) -> list[str]:
    """Return the messages of the tables with the columns message, cause and cure."""
    tables = re.findall(r"^\| message \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [match for table in tables for match in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)]


@functools.cache
def texts_of_the_program() -> tuple[str, ...]:
    """Return every string of the program, values of f-strings as one character, and the text of the Makefile."""
    found = [read(ROOT / "Makefile")]
    for folder in ("walt_pl", "stages", "datamodules"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found += [text for node in ast.walk(tree_of(path)) if (text := _text_of(node))]
    return tuple(found)


def _text_of(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def stands_in_the_program(message: str) -> bool:
    """Return whether one text of the program has the fixed words of a message in their order."""
    pattern = re.compile(".+?".join(re.escape(part) for part in message.strip(". ").split("...")), re.DOTALL)
    return any(pattern.search(text) for text in texts_of_the_program())


# ---- Sentences --------------------------------------------------------------------------------------------------------


def unclear_openings(text: str) -> list[str]:
    """Return the sentences and headings that begin with What, Which, Who, How or The same."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"(?:^[#\-|*> \d.]*|[.:!?] +)((?:What|Which|Who|Whose|How|The same)\b[^.?!\n]*)", prose, re.MULTILINE)
