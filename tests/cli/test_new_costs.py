"""Stages that `walt new` writes fit a GPU of 24 GB, as `walt plan` counts it."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_new_choices import EXPERIMENT, chosen, rows
from walt_pl.cli.new_choices import SCALES, Scale
from walt_pl.cli.new_costs import plan_stages
from walt_pl.cli.new_files import stage_files

LONG_CAPTION = "many different words of one caption " * 40
IMAGE = {"kind": "image", "frames": 1, "fps": 0.0, "duration": 0.0}


def stages_that_fit(folder: Path, scale: Scale, **row: Any) -> dict[str, bool]:
    """Return whether each stage fits, for the shape of most tokens, 16 x 28."""
    choices = chosen(rows(20, height=16 * scale.least, width=28 * scale.least, **row))
    assert choices.scale == scale and (choices.picture.rows, choices.picture.columns) == (16, 28)
    files = stage_files(EXPERIMENT, choices)
    for name, text in files.items():
        (folder / name).write_text(text)
    plans = plan_stages([folder / name for name in files if name != "data.yaml"], folder / "run")
    assert len(plans) == 2 + scale.doublings
    return {
        plan["stage"]: 24 in plan["bytes_per_gpu"]["ddp"]["fits_gib"]["recomputed" if plan["activation_checkpointing"] else "kept"]
        for plan in plans
    }


@pytest.mark.slow
@pytest.mark.parametrize("caption", [LONG_CAPTION, ""], ids=["text", "no text"])
@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: f"{scale.least} px a token")
def test_new_stages_of_every_size_fit_24_gb(scale: Scale, caption: str, tmp_path: Path) -> None:
    assert all(stages_that_fit(tmp_path, scale, caption=caption).values())


def test_new_stages_of_images_alone_fit_24_gb(tmp_path: Path) -> None:
    """A step has four times as many of them as it would have videos."""
    assert all(stages_that_fit(tmp_path, SCALES[0], caption=LONG_CAPTION, **IMAGE).values())
