"""Names of stages: their order in the pipeline, their kind and their parent stages."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Stage by name: order in the pipeline, kind, parents. A name may have a suffix after "vae" and "base" (base_l, base_xl). Such stages
# exist beside each other in one run, and later stages use the ones without a suffix as parents.
STAGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"vae(_\w{1,100})?", "vae", ()),
    (r"base(_\w{1,100})?", "base", ("vae",)),
    (r"sr[0-9]{1,3}", "super_resolution", ("vae", "base")),
)
NAMES = "vae, vae_*, base, base_*, sr1, sr2, ..."
"""Valid names of stages, for errors."""


class ManifestError(ValueError):
    """A run cannot be used in its present state. The message is one sentence that ends with what to type."""


class LockedManifest(ManifestError):
    """Another process holds the lock of the manifest, or trains the stage."""


def _rank(stage: str) -> int:
    for rank, (pattern, *_) in enumerate(STAGES):
        if re.fullmatch(pattern, stage):
            return rank
    raise ManifestError(f"unknown stage {json.dumps(stage)[:60]}: wanted {NAMES}")


def in_order(stages: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Sort stages in the order of training: vae, base, sr1, sr2, ..."""
    return sorted(stages, key=lambda stage: (_rank(stage), len(stage), stage))


def kind_of(stage: str) -> str:
    """Return the kind of a stage: "vae", "base" or "super_resolution".

    Raises:
        ManifestError: the name is unknown.
    """
    return STAGES[_rank(stage)][1]


def parents_of(stage: str) -> tuple[str, ...]:
    """Return the stages that a stage is trained from.

    Raises:
        ManifestError: the name is unknown.
    """
    return STAGES[_rank(stage)][2]
