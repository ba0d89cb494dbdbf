"""Help of the commands that take a configuration: every key, its value, where the value comes from, and its text."""

import shlex
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from walt_pl.cli.config_files import configs_of
from walt_pl.cli.config_syntax import read_config
from walt_pl.cli.configuration import Key, class_keys, first_sentence, group_titles, parser_keys, render_type, render_value, sentence
from walt_pl.runs.experiment_files import as_typed

HELP = ("-h", "--help")
TRAINER, MODEL = "trainer", "model"
TEXTS = {
    "config": "Configuration file, experiments/EXP/STAGE.yaml. It may be given several times: the last one wins.",
    "seed_everything": "Seed of everything; data.seed and model.seed take its value if they are 0.",
    "ckpt_path": "Checkpoint to restore: its folder or file, or auto for the newest one of the stage. fit finds the newest by itself.",
    "weights_only": "Lightning's own key; leave it out. Checkpoints are always read without running code from them.",
    "model": "Stage to train: its class. The keys below are arguments of the class.",
}
"""Texts of keys that Lightning and jsonargparse add."""
SEE_MODEL = "walt {command} --config experiments/EXP/STAGE.yaml --help explains every key of the stage's model, with its value."


def without_help(words: Sequence[str]) -> list[str]:
    """Return the words of a command line without the request for help."""
    return [word for word in words if word not in HELP]


def render_help(command: str, parser: ArgumentParser, words: Sequence[str], options: Namespace | None) -> str:
    """Return the help of a command.

    Args:
        command: name of the command.
        parser: parser of its options.
        words: words of the command line.
        options: parsed options; None without a configuration, when the class of the model is unknown.
    """
    keys = [key for key in parser_keys(parser) if command != "fit" or key.name != "verbose"]
    groups = {name: [key for key in keys if key.name.partition(".")[0] == name] for name in _group_names(keys)}
    run = [key for key in keys if "." not in key.name and key.name != MODEL]
    values = _Values(words, options)
    titles = group_titles(parser)
    width = max(60, shutil.get_terminal_size().columns)
    lines = [f"usage: walt {command} --config experiments/EXP/STAGE.yaml [--KEY VALUE ...]", ""]
    lines += _wrap("Each key is a line of the configuration, or an option. The last one wins: defaults, files, command line.", width)
    for name, title, found in [
        ("run", "the run", run),
        ("data", "the data (datamodules/joint.py)", groups.pop("data")),
        (MODEL, "the model", groups.pop(MODEL)),
        (TRAINER, "the trainer, Lightning's own keys (lightning.ai/docs/pytorch/stable/common/trainer.html)", groups.pop(TRAINER)),
        *((name, f"the callback {name}: {titles[name]}", found) for name, found in groups.items()),
    ]:
        lines += ["", *_wrap(f"{title}:", width)]
        if name == MODEL and options is None:
            lines += _wrap(SEE_MODEL.format(command=command), width, "  ")
            continue
        for key in _model_keys(options) if name == MODEL and options is not None else found:
            lines += _describe_key(key, values, width)
    return "\n".join([*lines, "", *_wrap("All keys of all stages with their defaults: docs/CONFIGURATION.md.", width)])


def _group_names(keys: Sequence[Key]) -> list[str]:
    return list(dict.fromkeys(key.name.partition(".")[0] for key in keys if "." in key.name or key.name == MODEL))


def _model_keys(options: Namespace) -> Iterator[Key]:
    """Yield the keys of the model that a configuration names, each before the keys of the class or dataclass that is its value."""
    yield Key(MODEL, None, None, True, TEXTS[MODEL])
    for key in class_keys(_import_class(options.model.class_path), MODEL):
        yield key
        value = _value_of(options, key.name)
        if isinstance(value, Namespace) and "class_path" in value:
            for nested in class_keys(_import_class(value.class_path), key.name):
                yield replace(nested, text=f"{first_sentence(nested.text).removesuffix('.')} ({value.class_path}).")
        for kind in _fitting_choices(key, value):
            for nested in class_keys(kind, key.name):
                yield replace(nested, text=f"{nested.text} ({kind.__name__})", required=False)


def _fitting_choices(key: Key, value: Any) -> list[type]:
    """Return the dataclasses whose fields a value has; all where it is null."""
    given = set(value.keys()) if isinstance(value, Namespace) else set()
    return [kind for kind in key.choices if given <= {field.name for field in fields(kind)}]


def _import_class(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _value_of(options: Namespace, name: str) -> Any:
    """Return the value of a key; `model.` is followed by an argument of the model's class."""
    place = options
    for part in name.split("."):
        if not isinstance(place, Namespace):
            return None
        place = place.get(part)
        if isinstance(place, Namespace) and "init_args" in place:
            place = Namespace(**{**vars(place.init_args), "class_path": place.class_path})
    return place


class _Values:
    """Values of the keys of a command line, and where they come from."""

    def __init__(self, words: Sequence[str], options: Namespace | None) -> None:
        self._options = options
        self._typed = {word[2:].partition("=")[0].replace(".init_args", "") for word in words if word.startswith("--")}
        configs: list[Path] = configs_of(words) if options is not None else []
        self._files = [(str(as_typed(path)), read_config(path)) for path in reversed(configs)]

    def describe(self, key: Key) -> tuple[str, str]:
        """Return the value of a key, and its origin: command line, file or default."""
        origin = self._origin(key.name)
        if self._options is None or (origin == "default" and _value_of(self._options, key.name) is None):
            return ("..." if key.required else render_value(key.default)), ("required" if key.required else "default")
        value = _value_of(self._options, key.name)
        if isinstance(value, Namespace):
            value = value.get("class_path", "as below")
        given = render_value(value)
        if origin == "default" and given != render_value(key.default):
            origin = "set by another key" if key.name.count(".") > 1 else "the program's default"
        elif origin != "default" and not key.required:
            origin = f"{origin}; default {render_value(key.default)}"
        return given, origin

    def _origin(self, name: str) -> str:
        parts = name.split(".")
        if any(".".join(parts[:end]) in self._typed for end in range(1, len(parts) + 1)):
            return "command line"
        return next((path for path, plain in self._files if _has(plain, parts)), "default")


def _has(plain: Any, parts: Sequence[str]) -> bool:
    """Return whether a configuration file has a key."""
    for part in parts:
        if isinstance(plain, dict) and "init_args" in plain:
            plain = plain["init_args"]
        if not isinstance(plain, dict) or part not in plain:
            return False
        plain = plain[part]
    return True


def _describe_key(key: Key, values: _Values, width: int) -> Iterator[str]:
    value, origin = values.describe(key)
    hint = "class" if key.name == MODEL else render_type(key.hint)
    yield from _wrap(f"--{key.name} {shlex.quote(value)}  ({hint}; {origin})", width, "  ", "        ")
    text = first_sentence(key.text) if key.name.startswith(f"{TRAINER}.") else key.text
    yield from _wrap(sentence(TEXTS.get(key.name, text)), width, "      ")


def _wrap(text: str, width: int, indent: str = "", further: str | None = None) -> list[str]:
    after = indent if further is None else further
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=after, break_long_words=False, break_on_hyphens=False)
