"""Tell what has changed since a checkpoint was written: list it, warn about it, or refuse to go on."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from walt_pl.cli.task_rules import Effect, Rule, rule_of
from walt_pl.runs.task_record import Values

_SHORT = 60
"""Characters of a value that are shown."""


class _Unknown:
    def __str__(self) -> str:
        return "(not recorded)"


UNKNOWN_VALUE = _Unknown()
"""Value of a key that one of the two records does not have, such as a key that a newer version added."""


@dataclass(frozen=True)
class Change:
    """A key with another value than in the checkpoint."""

    key: str
    before: Any
    now: Any

    @property
    def rule(self) -> Rule:
        """Return the rule of the key."""
        return rule_of(self.key)

    @property
    def effect(self) -> Effect:
        """Return the effect. A key that only one of two versions of the program has proves nothing, and is listed."""
        known = UNKNOWN_VALUE not in (self.before, self.now)
        return self.rule.effect if known or self.rule.effect is Effect.SILENT else Effect.LISTED

    def __str__(self) -> str:
        return f"{self.key} {_render(self.before)} -> {_render(self.now)} ({self.rule.consequence})"


def compare(before: Values, now: Values) -> list[Change]:
    """Return the changes that a user should know, by key.

    Args:
        before: values of the checkpoint.
        now: values of the training that goes on.
    """
    changes = []
    for key in sorted({*before, *now}):
        change = Change(key, _value(before, key), _value(now, key))
        if not (change.before == change.now or change.effect is Effect.SILENT or _is_group(change) or _is_constant_rate(key, before, now)):
            changes.append(change)
    return changes


def describe(changes: Sequence[Change], step: int) -> tuple[str, str]:
    """Return the line that lists changes, and the text of a warning. Each is empty where there is nothing to say.

    Args:
        changes: changes that refuse nothing, or that the user has allowed.
        step: optimiser steps done.
    """
    if not changes:
        return "", ""
    broken = [change.key for change in changes if change.effect is not Effect.LISTED]
    warning = f"from step {step:,} on this is not the training that was interrupted: another {' and another '.join(broken)}"
    return f"changed since step {step:,}: {', '.join(map(str, changes))}", warning if broken else ""


def check_changes(changes: Sequence[Change], where: str, allow_changed: bool) -> None:
    """Refuse the changes that break the model.

    Args:
        changes: of this training since the checkpoint.
        where: name of the checkpoint.
        allow_changed: go on with weights that were trained for another task.

    Raises:
        ValueError: with the changes.
    """
    unloadable = [str(change) for change in changes if change.effect is Effect.UNLOADABLE]
    refused = [str(change) for change in changes if change.effect is Effect.REFUSED]
    start_over = "add --from_scratch true (make: FRESH=1) to start over"
    if unloadable:
        raise ValueError(f"{where} cannot be loaded, changed since: {', '.join(unloadable)}; set it back to go on, or {start_over}")
    if refused and not allow_changed:
        raise ValueError(
            f"{where} is of a model that the changes break: {', '.join(refused)}; set it back to go on, add --allow_changed true to go on "
            f"all the same, or {start_over}"
        )


def _value(values: Values, key: str) -> Any:
    """Return the value of a key; null if a group above it is null."""
    if key in values:
        return values[key]
    above = key
    while "." in above:
        above = above.rpartition(".")[0]
        if above in values and values[above] is None:
            return None
    return UNKNOWN_VALUE


def _is_group(change: Change) -> bool:
    """Return whether a group of keys was null on one side: the keys below it say the same."""
    return {type(change.before), type(change.now)} == {type(None), _Unknown}


def _is_constant_rate(key: str, before: Values, now: Values) -> bool:
    """Return whether a later end changes no step, since the learning rate is constant."""
    return key == "trainer.max_steps" and before.get("model.lr_schedule") == now.get("model.lr_schedule") == "constant"


def _render(value: Any) -> str:
    """Return a value on one line. It may be a stranger's, so control characters are escaped and long values cut."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12]
    is_plain = value is UNKNOWN_VALUE or (isinstance(value, str) and value.isascii() and value.isprintable())
    text = str(value) if is_plain else json.dumps(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."
