"""All groups of attacks by name."""

from collections.abc import Mapping

from tests.attack.kills import kill_trainings
from tests.attack.outcome import Attack

GROUPS: Mapping[str, Attack] = {
    "kills": kill_trainings,
}
