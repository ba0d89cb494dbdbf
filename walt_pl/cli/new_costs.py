"""Costs of the stages that `walt new` writes, as `walt plan` counts them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from walt_pl.cli.plan import CARDS, PlanCLI

TFLOPS = 50.0
"""TFLOP/s of one GPU that the hours are given for: an assumption, not a measurement."""


def plan_stages(configs: Sequence[Path], run: Path) -> list[dict[str, Any]]:
    """Build each stage without memory, and return its plan.

    Args:
        configs: Files of the stages.
        run: Folder of the run that they would train.

    Raises:
        ValueError: A file cannot be parsed, or its sizes do not fit together.
    """
    return [
        PlanCLI(["--config", str(config), "--run", str(run), "--tflops", str(TFLOPS), "--trainer.precision", "bf16-mixed"]).report()
        for config in configs
    ]


def render_costs(plans: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Render the plans as a table of a line for each stage."""
    table = Table(title="cost on one GPU, as walt plan counts it", title_justify="left")
    for column in ("stage", "parameters", "FLOPs of a step", "GiB", "fits", "steps", f"hours at {TFLOPS:g} TFLOP/s", "GB of a checkpoint"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for plan in plans:
        held = plan["bytes_per_gpu"]["ddp"]
        way = "recomputed" if plan["activation_checkpointing"] else "kept"
        parameters = plan["parameters"]["total"] + sum(plan["parameters"]["beside"].values())
        fits = held["fits_gib"][way]
        table.add_row(
            plan["stage"],
            f"{parameters / 1e6:,.1f} M",
            f"{plan['flops_per_step']:.2e}",
            f"{held['total'][way] / 2**30:.1f}",
            f"{fits[0]} GB" if fits else f"not {CARDS[-1]} GB",
            f"{plan['steps']:,}",
            f"{plan['time']['days'][1] * 24:,.1f}",
            f"{plan['checkpoint']['ddp']['bytes'] / 1e9:.1f}",
        )
    hours = sum(plan["time"]["days"][1] * 24 for plan in plans)
    speed = "That is an assumption: measure a step, and give walt plan its --step_seconds."
    note = f"All stages: {hours:,.1f} hours, if the GPU reaches {TFLOPS:g} TFLOP/s. {speed}"
    return Group(table, note)
