"""The table of `make ablate`: what it says of a row, and that every row can be run."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.environment import ROOT
from walt_pl.cli import ablate as ablations
from walt_pl.cli.ablate import CHANGES, DEFAULT, Change, plot, render, verdict

OVERLAYS = ROOT / "experiments" / "shapes" / "ablations"


def result(share: float) -> dict[str, float]:
    return {**dict.fromkeys(("colour", "motion", "shape", "all", "unseen_pairs"), share), "val_loss": 0.25, "seconds": 90.0}


def test_ablate_lists_the_default_and_nine_changes_each_with_an_overlay() -> None:
    names = [change.name for change in CHANGES]
    assert names[0] == DEFAULT and len(names) == len(set(names)) == 10
    files = {path.stem for path in OVERLAYS.glob("*.yaml")}
    assert files == {*names[1:], "budget", "vae_latent_channels_4"}


@pytest.mark.parametrize(
    ("share", "expected", "says"),
    [
        (0.7, 1, "better: as the paper"),
        (0.7, -1, "better: the paper: worse"),
        (0.3, -1, "worse: as the paper"),
        (0.55, 0, "no difference: as the paper"),
        (0.55, 1, "no difference: the paper: better"),
    ],
)
def test_ablate_verdict_needs_two_standard_errors(share: float, expected: int, says: str) -> None:
    # 256 prompts at 50 %: two standard errors of a difference are 8.8 points.
    assert verdict(Change("x", "x", "", expected), result(share), result(0.5)) == says


def test_ablate_render_names_the_rows_that_were_not_run() -> None:
    page = render({DEFAULT: result(0.5), "patch_1": result(0.75)})
    assert "| patch 1 | 75% | 75% | 75% | 75% | 75% | 0.250 | 1.5 | patch 2: 134.4, patch 1: 60.7 | better: as the paper |" in page
    assert "Not run yet: STW of 5 x 2 x 2 tokens; " in page
    assert "Not run yet" not in render({change.name: result(0.5) for change in CHANGES})


def test_ablate_page_in_docs_has_the_words_of_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are the machine's, every other word is `render`'s."""
    kept = (ROOT / "docs" / "ablations.md").read_text()
    monkeypatch.setattr(ablations, "machine", lambda: re.findall(r"`make ablate EXP=shapes`, (.*?)\. One seed", kept)[0])
    new = render({change.name: result(0.5) for change in CHANGES})
    assert kept.partition("\n| patch 2")[0] == new.partition("\n| patch 2")[0]


def test_ablate_plot_has_a_row_for_each_result(tmp_path: Path) -> None:
    heights = []
    for count in (1, 10):
        plot({change.name: result(0.5) for change in CHANGES[:count]}, tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as picture:
            heights.append(picture.height)
    assert heights[1] > heights[0] + 9 * 40
