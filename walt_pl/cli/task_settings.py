"""Take from a configuration the keys that define a training."""

import json
from typing import Any

from walt_pl.cli.task_rules import Effect, rule_of
from walt_pl.runs.task_record import Values, flatten
from walt_pl.untrusted import parse_json


def task_settings(options: Any) -> Values:
    """Return every key that is not silent (walt_pl/cli/task_rules.py), with its plain value; null where it is not set.

    Args:
        options: parsed arguments.
    """
    typed = {key: value for key, value in options.as_dict().items() if key != "config"}  # names of files; their content is compared
    plain = parse_json(json.dumps(typed, default=str), "the configuration")
    return {key: value for key, value in flatten(plain) if rule_of(key).effect is not Effect.SILENT}
