"""Choose the stages of a run that a cascade loads."""

from collections.abc import Sequence

from walt_pl.runs.manifest import Manifest
from walt_pl.runs.stage_names import in_order, kind_of

BASE = "base"


def choose_stages(manifest: Manifest, stages: Sequence[str] | None) -> list[str]:
    """Return the diffusion stages to load, in the order that was asked for.

    Args:
        manifest: of the run.
        stages: stages that a person named; None for a base model and all finished stages above it.

    Raises:
        ValueError: the stages have a gap, or the run has several base models and none is named.
    """
    finished = [name for name, stage in manifest.stages().items() if stage.artifact is not None]
    found = [stage for stage in finished if kind_of(stage) != "vae"]
    bases = [stage for stage in found if kind_of(stage) == "base"]
    if not stages and len(bases) > 1 and BASE not in bases:
        raise ValueError(f"{manifest.run_dir} has the base models {', '.join(bases)}; choose one: --stages {bases[0]}")
    base = bases[0] if bases else BASE  # BASE is the first of the bases where the run has it
    above = [stage for stage in found if stage not in bases]
    wanted = list(stages) if stages else [base, *above]
    # A run may have several base models; only one of them starts the chain.
    base = next((stage for stage in wanted if kind_of(stage) == "base"), base)
    known = in_order([*{base, *above, *(stage for stage in wanted if kind_of(stage) == "super_resolution")}])
    if in_order(wanted) != known[: len(wanted)]:
        raise ValueError(f"stages run from {base} upwards without a gap: {' '.join(known)}; got {' '.join(wanted)}")
    return wanted
