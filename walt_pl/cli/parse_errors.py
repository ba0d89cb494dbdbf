"""Turn the parser's errors into a sentence: where, found, wanted, and what to type.

jsonargparse reports an error as a tree of the types that it tried. Only its first "Parser key" lines are used here, which name the key.
Everything else is known better: the value from the command line or the config file, and the type from the parser.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from walt_pl.cli.config_syntax import Entry, entries
from walt_pl.cli.error_causes import cause_of
from walt_pl.cli.known_keys import describe_type, known_keys, takes_null, typed_values

NEEDS = {"model.discriminator": "to train without a discriminator, give --model.adversarial_weight 0"}
"""Advice for keys of which null has a meaning that another key gives."""
UNKNOWN = re.compile(
    r"unrecognized arguments: (?P<words>.+)|Subcommand '\w+' does not accept option '(?P<sub>[^']+)'"
    r"|Group '(?P<group>[^']+)' does not accept option '(?P<option>[^']+)'|Option '(?P<alone>[^']+)' is not accepted"
)
CLASS_REASON = re.compile(r"(No module named '[^']+'|module '[^']+' has no attribute '[^']+')")


@dataclass(frozen=True)
class Typed:
    """The place where a value was given."""

    where: str
    """An option, or file, line and key."""
    value: Any


@dataclass(frozen=True)
class CommandLine:
    """A command as it was typed.

    Args:
        command: name of the command.
        parser: of the command.
        words: after the command.
        configs: files of the command line and those that they extend, the lowest first.
    """

    command: str
    parser: Any
    words: Sequence[str]
    configs: Sequence[Path] = ()

    @property
    def help(self) -> str:
        """The command that lists all keys."""
        return f"walt {self.command}{' --config FILE' if self.configs else ''} --help"

    @cached_property
    def keys(self) -> dict[str, Any]:
        """Return the type of each key."""
        return known_keys(self.parser, self.words, self.configs)

    def find(self, key: str) -> Typed | None:
        """Return where the value of a key was given; the last place counts."""
        for option, value in reversed(typed_values(self.words)):
            if _plain(option) == key:
                return Typed(option, value)
        for config in reversed(self.configs):
            for entry in reversed(entries(config)):
                if entry.key == key:
                    return Typed(f"{config}:{entry.line}: {key}", entry.value)
        return None


def explain(error: Exception, line: CommandLine) -> str:
    """Return the message for an error of the parser."""
    text = str(error)
    own = cause_of(error)
    if own is not None:
        return str(own)
    required = re.search(r"following arguments are required: (.+)", text)
    if required and "Parser key" not in text:
        return _explain_required(required[1], line)
    if no_value := re.search(r"argument (\S+): expected (?:one|at least one) argument", text):
        option = no_value[1].split("/")[-1]
        return f"{option} needs a value: {_wanted(_plain(option), line)}"
    prefix, unknown = _path(text)
    if unknown is not None and unknown not in line.keys:
        return _explain_unknown(unknown, line)
    key = unknown or prefix
    below = next((_plain(option) for option, _ in typed_values(line.words) if key and _plain(option).startswith(f"{key}.")), None)
    if below is not None and below not in line.keys:
        return _explain_unknown(below, line)
    if required and key:
        given = line.find(below or key)
        return f"{given.where if given else key}: this needs {required[1]} as well (all keys: {line.help})"
    return _explain_value(key, text, line) if key else _shorten(text)


def check_top_keys(line: CommandLine) -> None:
    """Refuse keys of config files that the command does not know, which the parser would ignore, and groups without keys.

    Raises:
        ValueError: with file, line and the nearest keys.
    """
    known = known_keys(line.parser)
    names = {key.split(".")[0] for key in known}
    groups = {key.split(".")[0] for key in known if "." in key} | {"model"}
    for config in line.configs:
        for entry in _top(entries(config)):
            where = f"{config}:{entry.line}: {entry.key}"
            if entry.key not in names:
                raise ValueError(f"{where}: there is no such key; {_suggest(entry.key, names, '')} (all keys: {line.help})")
            if entry.value is None and entry.key in groups:
                raise ValueError(f"{where}: found nothing, wanted keys below it; give one, or remove the line")


def check_nulls(line: CommandLine) -> None:
    """Refuse null for keys that cannot be null: the parser takes it, and the stage would fail later.

    Raises:
        ValueError: with the key and what it takes.
    """
    nulls = [_plain(option) for option, value in typed_values(line.words) if value in ("null", "None")]
    nulls += [entry.key for config in line.configs for entry in entries(config) if entry.value is None]
    if not nulls:
        return
    keys = line.keys
    for key in dict.fromkeys(nulls):
        given = line.find(key)
        below = [other.removeprefix(f"{key}.") for other in keys if other.startswith(f"{key}.")]
        refused = not takes_null(keys[key]) if keys.get(key) is not None else bool(below)
        meant = (None, "null") if keys.get(key) is str else (None, "null", "None")  # a file may be called None
        if refused and given is not None and given.value in meant:
            wanted = describe_type(keys[key]) if keys.get(key) is not None else f"keys such as {', '.join(below[:3])}"
            raise ValueError(f"{given.where}: found null, wanted {wanted}; {NEEDS.get(key, 'leave it out for its default')}")


def _top(found: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in found if "." not in entry.key]


def _plain(option: str) -> str:
    """Return the key of an option as it is typed, without dashes and init_args."""
    return option.removeprefix("--").replace(".init_args", "").removeprefix("init_args.")


def _path(text: str) -> tuple[str, str | None]:
    """Return the key that an error is about: the names of its first "Parser key" lines joined, and the complete key if it is unknown."""
    names: list[str] = []
    for match in re.finditer(rf'Parser key "(?P<key>[^"]+)"|{UNKNOWN.pattern}|Expected ', text):
        if match["key"]:
            names.append(match["key"])
            continue
        if match["words"]:
            names.append(match["words"].split()[0].partition("=")[0])
        elif match["sub"] or match["alone"]:
            names.append(match["sub"] or match["alone"])
        elif match["group"]:
            names.append(f"{match['group']}.{match['option']}")
        else:
            break
        return "", ".".join(_plain(name) for name in names)
    return ".".join(_plain(name) for name in names), None


def _explain_unknown(key: str, line: CommandLine) -> str:
    typed = next((option for option, _ in typed_values(line.words) if _plain(option) == key), None)
    if typed is None and not any(entry.key == key for config in line.configs for entry in entries(config)):
        word = key.split(".")[-1]
        return f'found the word "{word}", which belongs to no option; options begin with two dashes (all options: {line.help})'
    given = line.find(key)
    where, dashes = (given.where, "--" if typed else "") if given else (key, "")
    return f"{where}: there is no such key; {_suggest(key, line.keys, dashes)} (all keys: {line.help})"


def _suggest(key: str, keys: Any, dashes: str) -> str:
    """Return the nearest keys as a question. Keys of the same group are compared by their last name first."""
    group, _, name = key.rpartition(".")
    beside = {other.rpartition(".")[2]: other for other in keys if other.rpartition(".")[0] == group}
    near = [beside[found] for found in _nearest(name, beside)] or _nearest(key, keys)
    near = near or [other for other in keys if other.rpartition(".")[2] == name][:3]
    if near:
        return f"did you mean {' or '.join(dashes + other for other in near)}?"
    more = ", ..." if len(beside) > 12 else ""
    return f"{group} has {', '.join(sorted(beside)[:12])}{more}" if group and beside else "no key is near it"


def _nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that are as near as the nearest one, or nearly so."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    ratios = [difflib.SequenceMatcher(None, name, other).ratio() for other in near]
    return [other for other, ratio in zip(near, ratios, strict=True) if ratio > ratios[0] - 0.1]


def _explain_value(key: str, text: str, line: CommandLine) -> str:
    given = line.find(key)
    if given is None:  # the value is inside a list or a mapping that was given whole
        above = key
        while given is None and "." in above:
            above = above.rpartition(".")[0]
            given = line.find(above)
    found = given.value if given and given.where.endswith(key) else _got(text)
    reason = CLASS_REASON.search(text)
    where = given.where if given and given.where.endswith(key) else f"{given.where} ({key})" if given else key
    return f"{where}: found {_short(found)}, wanted {_wanted(key, line)}{f' ({reason[1]})' if reason else ''}"


def _wanted(key: str, line: CommandLine) -> str:
    keys = line.keys
    while key not in keys and "." in key:
        key = key.rpartition(".")[0]
    return describe_type(keys[key]) if key in keys else f"another value ({line.help})"


def _got(text: str) -> str:
    got = re.search(r"Got value: (.*?)(?:\. Got value|\n|$)", text)
    return got[1] if got else "something else"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def _explain_required(names: str, line: CommandLine) -> str:
    missing = [name.removeprefix(f"{line.command}.") for name in names.split(", ")]
    if "--config" in {option for option, _ in typed_values(line.words)}:
        where = line.configs[-1] if line.configs else "the config"
        return f"{where} has no {', '.join(missing)}; add the keys, or give --{missing[0]} VALUE"
    if "model" in missing:
        return f"walt {line.command}: which stage? give --config experiments/EXP/STAGE.yaml"
    return f"walt {line.command} needs {' and '.join(name.upper() for name in missing)}: {line.help}"


def _shorten(text: str) -> str:
    """Return the first lines of a message that none of the rules knows, without the parser's list of types."""
    library = re.compile(r"Union|Subtypes|Given value|Errors:|functools|Namespace")
    return "\n".join([part for part in text.splitlines() if part.strip() and not library.search(part)][:4])
