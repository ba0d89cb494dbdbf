"""Check that a checkpoint fits the stage that goes on from it, before its weights are loaded."""

import dataclasses
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from walt_pl.runs.checkpoint import check_floating, read_state
from walt_pl.training.callbacks.export import DESCRIPTION

ADVICE = "leave the option out to go on, or add --from_scratch true (make: FRESH=1) to start over"


def check_resumed(restored: Path, stage: Any, options: Any) -> None:
    """Refuse a checkpoint of a model of another size, or of another optimiser.

    Args:
        restored: file or folder that the trainer restores from.
        stage: the stage of this command; its `components` are the models that a checkpoint describes.
        options: parsed arguments.

    Raises:
        ValueError: with the keys that differ.
    """
    state = read_state(restored, mapped=True)
    described = state.get(DESCRIPTION)
    if described is None:  # of another program; torch says what does not fit
        return
    where = restored.parent if restored.name.startswith("state") else restored
    before = yaml.safe_load(described["train_config"])["model"]["init_args"]["optimizer"]["class_path"]
    now = options.model.init_args.optimizer.class_path
    if before != now:
        raise ValueError(f"{where}: found the state of the optimiser {before}, wanted that of {now}; {ADVICE}")
    trained = stage.state_dict()
    weights = {name: value for name, value in state.get("state_dict", {}).items() if name in trained}
    check_floating({name: value for name, value in weights.items() if trained[name].is_floating_point()}, where)  # some buffers are flags
    shapes = {name: value.shape for name, value in state.get("state_dict", {}).items()}
    wanted = {name: value.shape for name, value in trained.items()}
    if shapes and shapes != wanted:
        raise ValueError(f"{where}: found weights of another size, {_differences(described['components'], stage.components())}; {ADVICE}")


def _differences(before: dict[str, dict[str, Any]], now: dict[str, nn.Module]) -> str:
    """Return the keys of the models' configs that differ, with both values."""
    found = []
    for name, model in now.items():
        fields = dataclasses.asdict(model.config)  # type: ignore[call-overload]
        for key, value in fields.items():
            old = before.get(name, {}).get(key)
            if _plain(old) != _plain(value):
                found.append(f"model.{name}.{key} {old} in place of {value}")
    return ", ".join(found) or "with other parts than this stage has"


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
