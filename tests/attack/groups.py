"""All groups of attacks by name."""

from collections.abc import Mapping

from tests.attack.outcome import Attack

GROUPS: Mapping[str, Attack] = {}
