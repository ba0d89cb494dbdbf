"""Write docs/CONFIGURATION.md, every key with its type, default and text: ``python -m walt_pl.cli.configuration_page``."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from inspect import cleandoc
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from stages.base import BaseStage
from stages.super_resolution import SuperResolutionStage
from stages.vae import VAEStage
from walt_pl.cli.config_syntax import read_config
from walt_pl.cli.configuration import Key, class_keys, first_sentence, group_titles, parser_keys, render_type, render_value, sentence
from walt_pl.cli.fit import DEFAULTS, WaltCLI
from walt_pl.cli.fit_help import TEXTS
from walt_pl.files import write_whole
from walt_pl.runs.experiment_files import packaged_experiments

PAGE = Path("docs/CONFIGURATION.md")
STAGES = {"vae": VAEStage, "base": BaseStage, "sr1, sr2": SuperResolutionStage}
CALLBACKS = ("ema", "spike_guard", "previews", "throughput", "checkpoint", "metrics")
RECOMMENDED = ("accelerator", "devices", "num_nodes", "strategy", "precision", "max_time", "accumulate_grad_batches")
"""Keys of the trainer that a user may want to set, beside those that the experiments and the program set."""
EXAMPLES: dict[str, Any] = {
    "model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 5.0e-4, "weight_decay": 0.01}},
    "data.index": "data/NAME.parquet",
    "data.size": 128,
}
"""Values of keys that have no default."""
WIDTH = 112
HEAD = """# Configuration

`walt fit` reads `experiments/EXP/STAGE.yaml`. This page has every key with its default.
`make configuration` writes it from the docstrings; change those, not this page.

- `walt fit --config FILE --help` shows the keys of a file's stage, with the values of the file and where each comes from.
- On the command line, names are dotted, and `init_args` is left out: `--model.denoiser.width 192`, `--data.size 32`.
- The last one wins: defaults, files that `extends` names, `--config` files in their order, the command line.
- Names are typed in full; abbreviations are refused.
- `walt plan`, `walt cache` and `walt validate` read the same keys.
"""


class _Parser(WaltCLI):
    """LightningCLI that builds the parser of `fit` and parses nothing."""

    def parse_arguments(self, parser: ArgumentParser, args: Any) -> None:
        self.config = Namespace(subcommand=None, seed_everything=False)

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...


def render_page() -> str:
    """Return the page."""
    parser = _Parser([])._parser("fit")
    titles = group_titles(parser)
    keys = [key for key in parser_keys(parser) if key.name not in ("config", "weights_only")]
    run = [key for key in keys if "." not in key.name and key.name != "model"]
    parts = [HEAD, _section("The run", "Options of the run. `--config FILE` names a configuration file.", _yaml(run))]
    parts.append(_section("The data", f"{titles['data']}.", _yaml(_below("data", keys))))
    for name, stage in STAGES.items():
        path = f"{stage.__module__}.{stage.__qualname__}"
        model = class_keys(stage, "model")
        head = ["model:", f"  class_path: {path}", "  init_args:"]
        body = [f"  {line}" if line else line for line in _yaml(model)[1:]]
        parts.append(_section(f"The model of {name}", f"`{path}`: {cleandoc(stage.__doc__ or '').splitlines()[0]}", [*head, *body]))
    for name in CALLBACKS:
        parts.append(_section(f"The callback {name}", f"{titles[name]}.", _yaml(_below(name, keys))))
    named = _trainer_names()
    trainer = [replace(key, text=first_sentence(key.text)) for key in _below("trainer", keys) if key.name.partition(".")[2] in named]
    link = "[Lightning's page](https://lightning.ai/docs/pytorch/stable/common/trainer.html) has all keys of its Trainer."
    parts.append(_section("The trainer", f"Keys that the experiments set, and those that a user may want. {link}", _yaml(trainer)))
    return "\n".join(parts)


def _section(title: str, text: str, yaml: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", text, "", "```yaml", *yaml, "```", ""])


def _below(name: str, keys: Sequence[Key]) -> list[Key]:
    return [key for key in keys if key.name.startswith(f"{name}.")]


def _trainer_names() -> set[str]:
    """Return the keys of the trainer that this page shows."""
    files = sorted(packaged_experiments().rglob("*.yaml"))
    experiments = {name for file in files for name in read_config(file).get("trainer") or ()}
    return {*RECOMMENDED, *(key.partition(".")[2] for key in DEFAULTS), *experiments}


def _yaml(keys: Sequence[Key]) -> list[str]:
    """Return the lines of an annotated YAML with the defaults of keys."""
    lines: list[str] = []
    above: list[str] = []
    for key in keys:
        *groups, name = key.name.split(".")
        same = next((place for place, (a, b) in enumerate(zip(groups, above, strict=False)) if a != b), min(len(groups), len(above)))
        lines += [f"{'  ' * place}{groups[place]}:" for place in range(same, len(groups))]
        above = groups
        indent = "  " * len(groups)
        required = "; required" if key.required else ""
        lines += _comment(f"{sentence(TEXTS.get(key.name, key.text))} ({render_type(key.hint)}{required})", indent)
        lines.append(f"{indent}{name}: {render_value(EXAMPLES[key.name] if key.required else key.default)}")
        for kind in key.choices:
            nested = [replace(one, name=".".join(one.name.split(".")[len(groups) :]), required=False) for one in class_keys(kind, key.name)]
            lines += [f"{indent}# {line}" for line in [f"As {kind.__name__}:", *_yaml(nested)]]
    return lines


def _comment(text: str, indent: str) -> Iterator[str]:
    begin = f"{indent}# "
    yield from textwrap.wrap(text, WIDTH, initial_indent=begin, subsequent_indent=begin, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    write_whole(PAGE, render_page().encode())
