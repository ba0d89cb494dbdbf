"""Names of stages: their order in the pipeline, their kind, and the stages that they are trained from."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Stage by name: order in the pipeline, kind, parents. A name may go on after "vae" and "base" (base_l, base_xl): such stages
# stand beside each other in one run, and what comes after builds on the ones without an ending.
STAGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"vae(_\w+)?", "vae", ()),
    (r"base(_\w+)?", "base", ("vae",)),
    (r"sr\d+", "super_resolution", ("vae", "base")),
)
NAMES = "vae, vae_*, base, base_*, sr1, sr2, ..."
"""How stages are named, for errors."""


class ManifestError(ValueError):
    """A run that cannot be used as it is; the message is one sentence that ends with what to type."""


def _rank(stage: str) -> int:
    for rank, (pattern, *_) in enumerate(STAGES):
        if re.fullmatch(pattern, stage):
            return rank
    raise ManifestError(f'unknown stage "{stage}": wanted {NAMES}')


def in_order(stages: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Stages as they are trained: vae, base, sr1, sr2, ..."""
    return sorted(stages, key=lambda stage: (_rank(stage), len(stage), stage))


def kind_of(stage: str) -> str:
    """Kind of a stage: "vae", "base" or "super_resolution"."""
    return STAGES[_rank(stage)][1]


def parents_of(stage: str) -> tuple[str, ...]:
    """Stages that a stage is trained from."""
    return STAGES[_rank(stage)][2]
