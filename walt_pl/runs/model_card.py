"""The model card of an artifact: README.md, which says in Markdown what the artifact is, for people and for model hubs.

It is made of card.json, model.yaml, train.yaml and the header of the weights. They may come from a stranger, so their texts are escaped.
The part between two comments is written anew with each artifact and each evaluation. All text outside of them stays as a person left it,
and so do the first lines with the licence. No program reads a value from a model card, and no hash covers it.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import safe_open

from walt_pl.files import write_whole
from walt_pl.plain_text import decode_text
from walt_pl.runs.card import CONFIG, EVALUATIONS, MODEL_CARD, PRETRAINED_TEXT, TRAIN, WEIGHTS, read_card
from walt_pl.runs.sample_condition import condition_option
from walt_pl.runs.stored_config import clip_arguments, stored_index
from walt_pl.terminal_text import CONTROL
from walt_pl.untrusted import MAX_YAML_BYTES, UntrustedError, read_bytes, read_yaml

MAX_MODEL_CARD_BYTES = 1 << 20
"""Bytes of README.md. One of this program has about 5 KB."""
BEGIN = "<!-- walt: the program writes the lines from here anew; write above or below them -->"
END = "<!-- walt: end -->"
SHOWN_CHARACTERS = 200
"""Characters of a text from a file that are shown."""
SHOWN_CLASSES = 10
"""Names of classes that are shown."""
TITLES = {
    "vae": "Autoencoder of W.A.L.T",
    "base": "Base model of W.A.L.T",
    "super_resolution": "Super-resolution model of W.A.L.T",
}
"""Kind of the stage -> title."""


def write_model_card(folder: Path, older: Path | None = None) -> None:
    """Write the model card of an artifact. A failure warns: it never costs the artifact.

    Args:
        folder: folder of the artifact.
        older: model card whose hand-written text is kept; that of the folder when not given.
    """
    older = older or folder / MODEL_CARD
    try:
        text = _merge(older, render_model_card(folder))
        if text is not None:
            write_whole(folder / MODEL_CARD, text.encode())
        elif older.parent != folder:
            shutil.copyfile(older, folder / MODEL_CARD, follow_symlinks=False)
    # Any error: the weights of a whole training must not be lost for a page about them.
    except Exception as error:
        warnings.warn(f"{folder / MODEL_CARD} is not written ({error}); the artifact is complete without it", stacklevel=2)


def _merge(older: Path, new: str) -> str | None:
    """Return the new model card with the text of an older one outside of the two comments.

    Returns:
        None if the older one is a person's own: it has not both comments once.
    """
    try:
        text = decode_text(read_bytes(older, MAX_MODEL_CARD_BYTES))
    except FileNotFoundError:
        return new
    except UntrustedError:
        return None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        return None
    begin, end = new.index(BEGIN), new.index(END)
    return text[: text.index(BEGIN)] + new[begin:end] + text[text.index(END) :]


def render_model_card(folder: Path) -> str:
    """Return the model card of an artifact, in Markdown with the first lines of Hugging Face's model cards.

    Raises:
        ValueError: the folder is not an artifact, or model.yaml is no YAML.
        OSError: a file cannot be read.
    """
    card, config = read_card(folder), read_yaml(folder / CONFIG)
    train_config = read_bytes(folder / TRAIN, MAX_YAML_BYTES).decode(errors="replace")
    denoiser = config.get("denoiser") or {}
    parts = [
        BEGIN,
        f"# {TITLES[card['kind']]}",
        "\n".join(_describe_model(folder, card, config)),
        "## Data",
        "\n".join(_describe_data(card, config, train_config)),
        "## Training",
        "\n".join(_describe_training(card)),
        *_describe_conversion(card.get("conversion")),
        "## Figures",
        *_describe_figures(card["metrics"]),
        "## Load",
        *_describe_loading(card, config, train_config),
        "## Licence",
        "The entry `license` in the first lines of this file states it. `unknown` means that nobody has stated one yet.",
        END,
    ]
    return "\n".join([*_front_matter(card["kind"], denoiser), "\n\n".join(parts), ""])


def _front_matter(kind: str, denoiser: Mapping[str, Any]) -> list[str]:
    """Return the first lines, as Hugging Face reads them."""
    task = {"super_resolution": "video-to-video"}.get(kind)
    if kind == "base" and denoiser.get("text_width"):
        task = "text-to-image" if _is_of_images(denoiser) else "text-to-video"
    elif kind == "base" and denoiser.get("frame_prediction"):
        task = "image-to-video"
    tags = ["walt", "arxiv:2312.06662", {"vae": "autoencoder"}.get(kind, "diffusion")]
    lines = ["---", "license: unknown", "library_name: walt-pl", *([f"pipeline_tag: {task}"] if task else []), "tags:"]
    return [*lines, *(f"- {tag}" for tag in tags), "---"]


def _is_of_images(denoiser: Mapping[str, Any]) -> bool:
    size = denoiser.get("size")
    return isinstance(size, list) and size[:1] == [1]


def _describe_model(folder: Path, card: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return the lines of task, parents and sizes."""
    lines = [_task(card["kind"], config), f"Weights: `{WEIGHTS}`, sha256 `{card['sha256']}`."]
    if card.get("converted_from"):
        lines.append(f"They are in bfloat16, rounded from the float32 weights with sha256 `{card['converted_from']}`.")
    lines += [f"Parent: `{stage}`, weights with sha256 `{sha256}`." for stage, sha256 in card["parents"].items()]
    rows = [
        (f"`{section}`", f"{count:,}", _shorten_fields(config.get(section)))
        for section, count in _count_parameters(folder / WEIGHTS).items()
    ]
    return ["\n\n".join(lines), "", *_table(("model", "parameters", "sizes"), rows)]


def _task(kind: str, config: Mapping[str, Any]) -> str:
    """Return a sentence about the task of a stage."""
    if kind == "vae":
        return "It encodes videos and images into latents, and decodes them. A causal network: an image is a video of one frame."
    denoiser = config.get("denoiser") or {}
    made = "images" if _is_of_images(denoiser) else "videos and images"
    given = [
        *(["captions"] if denoiser.get("text_width") else []),
        *(["a class"] if denoiser.get("num_classes") else []),
        *(["the first frames"] if denoiser.get("frame_prediction") else []),
    ]
    condition = f" from {' and '.join(given)}" if given else ""
    if kind == "super_resolution":
        return f"It makes latents of larger {made}{condition} from those of the stage before, by diffusion."
    return f"It makes latents of {made}{condition}, by diffusion. The autoencoder decodes them."


def _count_parameters(weights: Path) -> dict[str, int]:
    """Return the number of floating values of each section, from the header of the weights."""
    counts: dict[str, int] = {}
    with safe_open(weights, framework="np") as file:
        for name in file.keys():  # noqa: SIM118
            found = file.get_slice(name)
            if found.get_dtype() in ("F32", "BF16"):
                size = 1
                for side in found.get_shape():
                    size *= side
                section = name.partition(".")[0]
                counts[section] = counts.get(section, 0) + size
    return {escape(section): count for section, count in counts.items()}


def _shorten_fields(section: Any) -> str:
    """Return the fields of a section of model.yaml that are set."""
    fields = section.items() if isinstance(section, Mapping) else ()
    return ", ".join(f"{escape(name)} {escape(json.dumps(value))}" for name, value in fields if value not in (None, False, 0.0))


def _describe_data(card: Mapping[str, Any], config: Mapping[str, Any], train_config: str) -> list[str]:
    """Return the lines of index, counts and conditions. No folder of the machine is named beside that of the index."""
    index = card["index"]
    rows: list[tuple[str, str]] = []
    try:
        name = "/".join(PurePosixPath(stored_index(train_config, TRAIN)).parts[-2:])
        rows.append(("index", escape(name.removeprefix("/"))))
    except ValueError:  # tar shards, or an artifact that no training of this program has left
        rows.append(("index", "none: streamed, or not recorded"))
    if index.get("sha256"):
        rows.append(("sha256 of the index", f"`{_code(index['sha256'])}`"))
    counts = index.get("counts")
    rows += [(escape(name), _figure(count)) for name, count in counts.items()] if isinstance(counts, Mapping) else []
    if "denoiser" in config:
        rows.append(("condition", _condition(card["kind"], config)))
    return _table(("data", ""), rows)


def _condition(kind: str, config: Mapping[str, Any]) -> str:
    """Return the text encoder or the classes of a denoiser."""
    denoiser, classes = config["denoiser"], config.get("classes")
    if denoiser.get("num_classes"):
        told = f"{_figure(denoiser['num_classes'])} classes"
        if not isinstance(classes, Mapping) or not any(classes.values()):
            return told
        names = [escape(name) for name in list(classes.values())[:SHOWN_CLASSES]]
        return f"{told}: {', '.join(names)}{', ...' if len(classes) > SHOWN_CLASSES else ''}"
    if not denoiser.get("text_width"):
        return "none"
    if kind == "super_resolution":
        return "captions, read by the text encoder of the base"
    if "text" in config:
        return "captions, read by a text encoder that was trained with the model"
    if PRETRAINED_TEXT in config:
        return "captions, read by a pretrained text encoder, which is not in this folder (`model.yaml` names it)"
    return "captions, read by a text encoder that is not recorded"


def _describe_training(card: Mapping[str, Any]) -> list[str]:
    """Return the lines of steps, program and machine, and the command."""
    steps, samples, facts = card.get("steps", 0), card.get("samples", 0), card.get("training") or {}
    each = f" ({samples / steps:.3g} a step)" if steps and samples else ""
    rows = [("optimiser steps", f"{steps:,}"), ("samples seen", f"{samples:,}{each}")]
    if card.get("epochs") is not None:
        rows.append(("epochs", f"{card['epochs']:,}"))
    if facts.get("machine"):
        rows.append(("machine", escape(facts["machine"])))
    if facts.get("seconds") is not None:
        first = facts.get("from_step", 0)
        rows.append(("wall time", f"{facts['seconds']:,.0f} s" + (f", from step {first:,} on" if first else "")))
    packages = ", ".join(f"{escape(name)} {escape(version)}" for name, version in card.get("packages", {}).items())
    rows += [("commit of the code", f"`{_code(card.get('code') or 'unknown')}`"), ("packages", packages), ("date", _code(card["created"]))]
    lines = _table(("training", ""), rows)
    command = facts.get("command")
    if not command:
        return [*lines, "", "The command of the training is not recorded. `train.yaml` has its complete configuration."]
    starts = facts.get("starts", 1)
    of = f"The command of the last of {starts:,} starts" if starts > 1 else "The command that trained it"
    return [*lines, "", f"{of}. `train.yaml` has the complete configuration:", "", *_fence(command, "sh")]


def _describe_conversion(facts: Mapping[str, Any] | None) -> list[str]:
    """Return the blocks of the command that rounded the weights; none for those that a training has left."""
    if facts is None:
        return []
    told = f"This command rounded the weights, with commit `{_code(facts.get('code') or 'unknown')}` of the code:"
    return ["## Conversion", told, "\n".join(_fence(facts["command"], "sh"))]


def _describe_figures(metrics: Mapping[str, Any]) -> list[str]:
    """Return the blocks of the last validation, of metrics in training and of evaluations."""
    blocks = []
    values = metrics.get("values")
    if isinstance(values, Mapping) and values:
        rows = [(f"`{_code(name)}`", _figure(value)) for name, value in values.items()]
        protocol = escape(metrics.get("protocol", "not recorded"))
        blocks += [f"Last validation. Protocol: {protocol}.", "\n".join(_table(("figure", "value"), rows))]
    measured = metrics.get("in_training")
    if isinstance(measured, Mapping) and isinstance(measured.get("values"), Mapping):
        rows = [(f"`{_code(name)}`", _figure(value)) for name, value in measured["values"].items()]
        blocks += [f"Metrics at step {_figure(measured.get('step'))}.", "\n".join(_table(("figure", "value"), rows))]
        blocks += ["Their protocol:", "\n".join(_fence(json.dumps(measured.get("protocol")), "json"))]
    evaluations = metrics.get(EVALUATIONS)
    found = [entry for entry in evaluations if isinstance(entry, Mapping)] if isinstance(evaluations, list) else []
    if found:
        blocks += [
            "Figures of `walt evaluate`. The file of each, in the run's folder, has the complete protocol.",
            "\n".join(_table(("metric", "value", "standard error", "protocol", "file"), map(_evaluation_row, found))),
        ]
    return blocks or ["None yet. `walt evaluate` adds them."]


def _evaluation_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a figure of `walt evaluate`."""
    named = (
        "task",
        "prediction",
        "preset",
        "extractor",
        "extractor_sha256",
        "steps",
        "guidance",
        "seed",
        "split",
        "index_sha256",
        "videos",
        "windows",
        "interval",
    )
    protocol = [f"{name} {escape(_plain(entry[name]))}" for name in named if entry.get(name) is not None]
    error = entry.get("error")
    cells = f"`{_code(entry.get('metric'))}`", _figure(entry.get("value")), "" if error is None else _figure(error)
    return (*cells, ", ".join(protocol), escape(entry.get("file")))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _describe_loading(card: Mapping[str, Any], config: Mapping[str, Any], train_config: str) -> list[str]:
    """Return code that loads the artifact in its own folder."""
    lines = ["import torch", "", "import walt_pl", "", 'artifact = walt_pl.load(".", verify=True)  # the folder of this file']
    if card["kind"] == "vae":
        frames, size = _clip_size(train_config)
        code = [
            *lines,
            'vae = artifact.models["vae"]',
            f"latents = vae.encode(torch.zeros(1, 3, {frames}, {size}, {size})).mean",
            "clips = vae.decode(latents)",
        ]
    else:
        code = [line for line in lines[2:] if line] + ['denoiser = artifact.models["denoiser"]']
        code += ['text = artifact.models["text"]'] if "text" in config else []
        code.insert(1, "")
    blocks = ["`pip install .` in a checkout of the program installs it.", "\n".join(_fence("\n".join(code), "python"))]
    if card["kind"] == "vae":
        return blocks
    if card["kind"] == "super_resolution":  # the base decides, and an artifact does not have the configuration of its parents
        return [*blocks, "The stages of a run make clips together, with the command that the model card of the base names."]
    return [
        *blocks,
        "The stages of a run make clips together:",
        "\n".join(_fence(f"walt sample --run RUN {condition_option(config)}", "sh")),
    ]


def _clip_size(train_config: str) -> tuple[int, int]:
    """Return frames and side in pixels of a training clip; 17 and 64 if they are not recorded."""
    try:
        found = clip_arguments(train_config, TRAIN)
    except ValueError:
        found = {}
    return found.get("frames", 17), found.get("crop") or found.get("size", 64)


# ---- Markdown --------------------------------------------------------------------------------------------------------


def escape(value: Any) -> str:
    """Return a text of a file as Markdown that shows it and nothing else: no link, HTML, heading or cell of a table."""
    text = CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(value))
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]}..."
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&$@:])", r"\\\1", text)


def _code(value: Any) -> str:
    """Return a text for a code span: other characters than those of names, hashes and paths become question marks."""
    return re.sub(r"[^\w./@+:-]", "?", str(value), flags=re.ASCII)[:SHOWN_CHARACTERS]


def _figure(value: Any) -> str:
    if type(value) is int:
        return f"{value:,}"
    return f"{value:.6g}" if type(value) is float else escape(value)


def _fence(text: str, language: str) -> list[str]:
    """Return a code block. Its fence is longer than any in the text, and the text cannot hold one of the two comments."""
    text = text.replace("<!--", "<! --")
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", text, fence]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
