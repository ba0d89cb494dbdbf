"""Check that a checkpoint fits the stage that goes on from it, before its weights are loaded."""

import dataclasses
import warnings
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from stages.vocabulary import stored_vocabulary
from walt_pl.cli.task_changes import check_changes, compare, describe
from walt_pl.runs.checkpoint import CheckpointError, IncompleteCheckpoint, check_floating, read_state
from walt_pl.runs.task_record import Values, read_task
from walt_pl.text.small_encoder import MAX_VOCABULARY_BYTES, VOCABULARY
from walt_pl.training.callbacks.export import DESCRIPTION
from walt_pl.training.callbacks.record_task import RecordTask
from walt_pl.training.rank import is_rank_zero
from walt_pl.untrusted import UntrustedError, parse_yaml, read_bytes

ADVICE = "leave the option out to go on, or add --from_scratch true (make: FRESH=1) to start over"


def check_resumed(restored: Path, stage: Any, options: Any, trainer: Any, data: Any) -> None:
    """Refuse a checkpoint of another model, of a model of another size, or of another optimiser, and say what has changed since.

    Args:
        restored: file or folder that the trainer restores from.
        stage: the stage of this command; its `components` are the models that a checkpoint describes.
        options: parsed arguments.
        trainer: Lightning's, with a `RecordTask`.
        data: the data module.

    Raises:
        ValueError: with the keys that differ.
    """
    try:
        state = read_state(restored, mapped=True)
    except IncompleteCheckpoint:
        if is_rank_zero():
            raise
        return  # rank zero has read every byte, and may have chosen an earlier one: `Checkpoints.setup` takes that
    described = state.get(DESCRIPTION)
    where = str(restored.parent if restored.name.startswith("state") else restored)
    if not isinstance(described, Mapping):  # of another program; torch says what does not fit
        _tell("", _untold(where))
        return
    before = _optimizer(described, where)
    now = options.model.init_args.optimizer.class_path
    if before != now:
        raise ValueError(f"{where}: found the state of the optimiser {before}, wanted that of {now}; {ADVICE}")
    trained = stage.state_dict()
    weights = state.get("state_dict", {})
    floating = [name for name, value in trained.items() if value.is_floating_point()]  # some buffers are flags
    check_floating({name: weights[name] for name in floating if name in weights}, Path(where))
    shapes = {name: value.shape for name, value in weights.items()}
    wanted = {name: value.shape for name, value in trained.items()}
    if shapes and shapes != wanted:
        raise ValueError(
            f"{where}: found weights of another size, {_differences(described.get('components'), stage.components())}; {ADVICE}"
        )
    task = next(callback for callback in trainer.callbacks if isinstance(callback, RecordTask)).values(trainer, data)
    recorded = read_task(state, where)
    stored, found = _vocabularies(state, restored, options)
    changes = compare({**(recorded or task), **stored}, {**task, **found})
    check_changes(changes, where, options.allow_changed)
    steps = state.get("global_step")
    line, warning = describe(changes, steps if isinstance(steps, int) else 0)
    _tell(line, warning if recorded is not None else _untold(where))


def _tell(line: str, warning: str) -> None:
    """Print the line and the warning that are not empty, on rank zero."""
    if is_rank_zero() and line:
        print(line, flush=True)
    if is_rank_zero() and warning:
        warnings.warn(warning, stacklevel=3)


def _untold(where: str) -> str:
    return f"{where} has no record of its task, as older versions wrote: changes since then cannot be told"


def _vocabularies(state: Mapping[str, Any], restored: Path, options: Any) -> tuple[Values, Values]:
    """Return the vocabulary of a checkpoint and that of its run's folder, as values to compare; nothing if there are not both.

    A file that is missing changes nothing: training writes it again from the checkpoint. Checkpoints of other runs are not compared.
    """
    stored, file = stored_vocabulary(state), Path(options.trainer.default_root_dir) / VOCABULARY
    if stored is None or Path(options.checkpoint.dirpath).resolve() not in restored.resolve().parents:
        return {}, {}
    try:
        found = read_bytes(file, MAX_VOCABULARY_BYTES)
    except FileNotFoundError:
        return {}, {}
    return {VOCABULARY: sha256(stored[0]).hexdigest()}, {VOCABULARY: sha256(found).hexdigest()}


def _optimizer(described: Mapping[str, Any], where: str) -> str:
    """Return the class path of the optimiser of a checkpoint.

    Raises:
        CheckpointError: its configuration cannot be read.
    """
    try:
        return str(parse_yaml(described["train_config"], where)["model"]["init_args"]["optimizer"]["class_path"])
    except (UntrustedError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}: its training configuration cannot be read ({error}); use an older checkpoint") from None


def _differences(before: Any, now: dict[str, nn.Module]) -> str:
    """Return the keys of the models' configs that differ, with both values."""
    found = []
    for name, model in now.items():
        fields = dataclasses.asdict(model.config)  # type: ignore[call-overload]
        fields_before = before.get(name) if isinstance(before, Mapping) else None
        if not isinstance(fields_before, Mapping):
            continue
        for key, value in fields.items():
            old = fields_before.get(key)
            if _plain(old) != _plain(value):
                found.append(f"model.{name}.{key} {old} in place of {value}")
    return ", ".join(found) or "with other parts than this stage has"


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
