"""The page of results: it is made from the files alone, and the committed one is that of the committed files."""

from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.environment import ROOT
from tests.helpers.paper_records import made_record
from walt_pl.paper.figure import Figure
from walt_pl.paper.page import render
from walt_pl.paper.plots import draw_plots
from walt_pl.paper.record import Record, read_records
from walt_pl.paper.row import Row, Training, find_row
from walt_pl.paper.rows import ROWS

DEFAULT, PATCH = (find_row(name, ROWS) for name in ("default", "patch_1"))


def results(**changes: bool) -> dict[tuple[str, int], Record]:
    """Three seeds of the default at 40 % and of patch 1 at 70 %."""
    found = {}
    for row, mean in ((DEFAULT, 0.4), (PATCH, 0.7)):
        for seed in row.seeds:
            found[row.name, seed] = made_record(row, seed, mean + 0.01 * (seed - 1), **changes)
    return found


def test_page_in_docs_is_that_of_the_files_in_docs() -> None:
    """It cannot be edited by hand: type make paper, or write it anew from the files."""
    assert (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8") == render(read_records(ROOT / "docs", ROWS), ROWS)


def test_page_shows_means_deviations_intervals_and_verdicts() -> None:
    page = render(results(), ROWS)
    assert "| patch 1 | 3 | 70.0 % ± 1.0 % | 0.7 ± 0.01 | 700 | 6.0 |" in page
    # Welch with equal variances of 1 point and n = 3: t of 4 degrees of freedom, 2.776 * sqrt(2 / 3) = 2.27.
    said = "+30 points [+27.7, +32.3]: as the paper | cannot tell at this size | cannot tell at this size | "
    assert f"| patch 1 | patch 2: 134.4, patch 1: 60.7 | better | {said}+0.3 [+0.277, +0.323]: other than the paper |" in page
    assert "| row | paper (FVD) | the paper says | here, by all | here, by unseen pairs | here, by iou | here, by loss |" in page
    assert "![differences](results/ablations.png)" in page and "results/equal_time.png" not in page
    assert "Not run: STW of 5 x 2 x 2 tokens; self-conditioning" in page
    assert "| patch_1 | 2 | 6.0 + 1.0 | 1.5 | base 500 | a processor, 2 cores, 1 threads | cpu | 2 | `0123456789ab` | 2026-11-27 |" in page


def test_page_of_one_seed_shows_the_interval_of_the_clips_and_no_verdict() -> None:
    page = render({key: record for key, record in results().items() if key[1] == 0}, ROWS)
    assert "| patch 1 | 1 | 69.0 % [59.0 %, 79.0 %] |" in page
    assert "| patch 1 | patch 2: 134.4, patch 1: 60.7 | better | cannot tell at this size | cannot tell" in page
    assert "Not run: patch 2, windows of the whole clip, LoRA 2, 8 channels, images and videos with seed 1, 2; patch 1 with seed" in page


def test_page_gives_no_verdict_by_a_loss_of_another_meaning() -> None:
    row = find_row("no_zero_snr", ROWS)
    page = render({**results(), **{(row.name, seed): made_record(row, seed, 0.1 + 0.01 * seed) for seed in row.seeds}}, ROWS)
    (line,) = [line for line in page.split("\n") if line.startswith("| no zero terminal SNR | 60.7")]
    assert "-29 points [-31.3, -26.7]: as the paper" in line and line.endswith("| does not compare |")


def test_page_does_not_depend_on_the_order_of_the_results() -> None:
    found = results()
    assert render(dict(reversed(found.items())), ROWS) == render(found, ROWS)


def test_page_says_short_dirty_and_other_autoencoders() -> None:
    assert "A short run" not in render(results(), ROWS) and "A short run" in render(results(short=True), ROWS)
    assert "`0123456789ab` and changes" in render(results(dirty=True), ROWS)
    other = made_record(PATCH, 0, stages={"vae": "c" * 64})
    assert "of 2 autoencoders and do not compare" in render({**results(), ("patch_1", 0): other}, ROWS)


def test_page_gives_each_task_a_table_and_a_picture() -> None:
    tasks = [
        Row(name, "tasks", text, (Training("base"),), "prompts", seeds=(0,), paper="FVD 3.3", about="It moves.")
        for name, text in (("video", "image to video"), ("longer", "long video"), ("missing", "no video"))
    ]
    found = {(task.name, 0): made_record(task, 0, 0.5, picture=True) for task in tasks[:2]}
    figures = {"visible_29": Figure(0.25, 64, 0.2, 0.3), "seam_1": Figure(1.2, 63, 1.0, 1.4), "first_frame_psnr": Figure(30, 1256, 29, 31)}
    found["longer", 0] = made_record(tasks[1], 0, figures=figures, device="H100")
    page = render(found, tasks)
    assert "\n\n### image to video\n\nIt moves.\n\nThe paper: FVD 3.3.\n\n| figure | value | cases |\n" in page
    assert "| all | 50.0 % [40.0 %, 60.0 %] | 256 |" in page
    assert (
        "\n\n![video](results/tasks/video.png)\n\nSeed 0: 700 steps of `base`; 6.0 minutes of training and 1.0 of measuring on a " in page
    )
    assert page.index("![video]") < page.index("### long video") and "longer.png" not in page and "\n\n\n" not in page
    rows = [
        "| visible 29 | 25.0 % [20.0 %, 30.0 %] | 64 |",
        "| seam 1 | 1.2 px [1, 1.4] | 63 |",
        "| first frame psnr | 30 dB [29, 31] | 1,256 |",
    ]
    assert "\n".join(rows) in page and "1.0 of measuring on H100 (a processor, 2 cores, 1 threads)." in page
    assert "### no video" not in page and "Not run: no video." in page


def test_page_gives_guidance_a_line_for_each_scale() -> None:
    task = find_row("guidance", ROWS)
    values = {(name, scale): Figure(0.1 * float(scale), 18, 0.0, 0.5) for scale in ("1", "1.5", "3") for name in ("shape", "spread")}
    figures = {f"{name}_{scale}": figure for (name, scale), figure in values.items()}
    page = render({("guidance", 0): made_record(task, 0, figures=figures)}, ROWS)
    assert "| scale | shape | spread | prompts |\n| --- | --- | --- | --- |\n| 1 | 10.0 % [0.0 %, 50.0 %] | 0.1 [0, 0.5] | 18 |\n" in page
    assert "\n| 1.5 | 15.0 % [0.0 %, 50.0 %] | 0.15 [0, 0.5] | 18 |\n| 3 | 30.0 %" in page


@pytest.mark.parametrize("count", [1, 3])
def test_plot_has_a_line_for_each_compared_row_and_is_small(count: int, tmp_path: Path) -> None:
    found = results()
    for row in [row for row in ROWS if row.table == "ablations"][2 : 1 + count]:
        found |= {(row.name, seed): made_record(row, seed) for seed in row.seeds}
    draw_plots(found, ROWS, tmp_path)
    path = tmp_path / "results" / "ablations.png"
    assert path.stat().st_size <= 100_000
    with Image.open(path) as picture:
        assert abs(picture.height - 90 * (0.4 * count + 1.3)) <= 1 and abs(picture.width - 90 * (2 + 4 * 2.4)) <= 1
    draw_plots(found, ROWS, tmp_path / "again")
    assert (tmp_path / "again" / "results" / "ablations.png").read_bytes() == path.read_bytes()
