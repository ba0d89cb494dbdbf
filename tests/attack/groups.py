"""All groups of attacks by name."""

from collections.abc import Mapping

from tests.attack import artifacts, checkpoints, index, media, writers
from tests.attack.kills import kill_trainings
from tests.attack.living import living
from tests.attack.outcome import Attack

GROUPS: Mapping[str, Attack] = {
    "artifacts": artifacts.attack,
    "checkpoints": checkpoints.attack,
    "index": index.attack,
    "kills": kill_trainings,
    "living": living,
    "media": media.attack,
    "writers": writers.attack,
}
