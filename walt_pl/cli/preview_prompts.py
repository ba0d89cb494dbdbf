"""Check the prompts of the previews against the stage, before data is read and the model is built."""

from pathlib import Path
from typing import Any

from walt_pl.data.class_labels import find_classes
from walt_pl.data.index import class_names
from walt_pl.runs.stage_names import kind_of
from walt_pl.text.prompt_file import read_preview_prompts


def check_preview_prompts(stage: str, options: Any) -> None:
    """Refuse a file of prompts that cannot be read, or that makes no sense for the stage.

    Args:
        stage: name of the stage.
        options: parsed arguments.

    Raises:
        ValueError: with what to type; for an unknown class, with the names that are near.
    """
    path = options.previews.prompts
    if path is None:
        return
    kind, remedy = kind_of(stage), "leave previews.prompts out"
    if kind == "vae":
        raise ValueError(f"previews.prompts: the previews of {stage} are reconstructions of validation clips, and take no prompt; {remedy}")
    if kind != "base":
        raise ValueError(
            f"previews.prompts: the previews of {stage} are enlarged validation clips, which have captions of their own; {remedy}, or give "
            "it to the base"
        )
    denoiser = options.model.init_args.denoiser
    if denoiser.frame_prediction == 1:
        raise ValueError(
            "previews.prompts: with model.denoiser.frame_prediction 1 every clip goes on from given frames, and the previews from those of "
            f"validation clips; {remedy}"
        )
    if not denoiser.num_classes and not denoiser.text_width:
        raise ValueError(f"previews.prompts: the model takes neither text nor classes; {remedy}")
    prompts = read_preview_prompts(path)
    if denoiser.num_classes:
        names = class_names(Path(options.data.index)) if options.data.shards is None else []
        known = {label: names[label] if label < len(names) else "" for label in range(denoiser.num_classes)}
        find_classes(prompts, known, f"previews.prompts: {path}:")
