"""Rows of the paper's tables: every one can be trained from files that exist, and can be measured."""

import pytest

from tests.helpers.environment import ROOT
from walt_pl.paper.compare import MARGINS
from walt_pl.paper.measure_table import MEASURES
from walt_pl.paper.page import SHARES
from walt_pl.paper.row import Row, Training, find_row
from walt_pl.paper.rows import ABLATIONS, CAUSES, DEFAULT, EQUAL_TIME, ROWS, TASKS

EXPERIMENT = ROOT / "experiments" / "shapes"


def test_rows_have_names_of_their_own_and_measures_and_files_that_exist() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.measure in MEASURES
        taken = {stage for _, stage in row.adopts}
        for training in row.trainings:
            assert not training.init or training.init in taken
            assert (EXPERIMENT / f"{training.stage}.yaml").is_file()
            assert all((EXPERIMENT / overlay).is_file() for overlay in training.overlays)
        assert not row.against or find_row(row.against, ROWS).seeds == row.seeds
        assert all(ROWS.index(find_row(name, ROWS)) < ROWS.index(row) for name in row.sources)
        for name, stage in row.adopts:
            source = find_row(name, ROWS)
            assert set(row.seeds) <= set(source.seeds) and stage in [training.stage for training in source.trainings]


def test_rows_tasks_are_one_for_each_stage_of_a_task_and_name_their_sources() -> None:
    files = {path.stem for path in EXPERIMENT.glob("base_*.yaml")}
    assert files == {training.stage for row in TASKS for training in row.trainings} - {"base", "sr1"}
    assert {row.name: row.sources for row in TASKS if row.sources} == {
        "super_resolution": ("guidance",),
        "super_resolution_no_noise_aug": ("guidance",),
        "aspect": ("guidance",),
    }
    assert [row.name for row in TASKS if row.wide] == ["aspect", "aspect_scratch"]
    assert all(row.paper and row.about and row.seeds == (0,) for row in TASKS)


def test_rows_joint_training_is_judged_by_pairs_that_no_video_has() -> None:
    row = find_row("video_only", ABLATIONS)
    assert "unseen_pairs" in row.figures and row.expected == -1 and "unseen_pairs" in SHARES


def test_rows_are_compared_by_the_loss_only_where_it_has_the_meaning_of_the_default() -> None:
    """Other latents, another schedule, and a first pass without the estimate have errors of another size."""
    others = {"self_conditioning", "no_latent_normalisation", "no_zero_snr", "latent_channels_4"}
    assert {row.name for row in ABLATIONS if row.against and "loss" not in row.figures} == others
    assert all(set(row.figures) <= set(MARGINS) for row in ROWS)


def test_rows_ablations_are_the_default_and_a_row_for_each_overlay() -> None:
    names = [row.name for row in ABLATIONS]
    assert names[0] == DEFAULT and len(names) == 10
    used = {overlay for row in ABLATIONS for training in row.trainings for overlay in training.overlays}
    assert used == {f"ablations/{path.name}" for path in (EXPERIMENT / "ablations").glob("*.yaml")}
    assert all(row.seeds == (0, 1, 2) for row in (*ABLATIONS, *EQUAL_TIME))


def test_rows_in_equal_time_take_the_pace_of_their_ablation() -> None:
    assert [row.sources for row in EQUAL_TIME] == [("default", "patch_1"), ("default", "window_2x2")]
    assert [row.trainings[0].overlays for row in EQUAL_TIME] == [find_row(row.sources[1], ROWS).trainings[0].overlays for row in EQUAL_TIME]


def test_rows_of_causes_take_an_ablation_as_it_is_or_change_one_thing_of_it() -> None:
    for row in CAUSES:
        if row.adopts:
            assert not row.trainings and find_row(row.adopts[0][0], (*ABLATIONS, find_row("guidance", TASKS)))
            continue
        (training,) = row.trainings
        own = find_row(row.name.removeprefix("cause_").removesuffix("_longer").removesuffix("_adamw"), ABLATIONS)
        changes = [training.steps is not None, training.overlays[len(own.trainings[-1].overlays) :] == ("causes/adamw.yaml",)]
        assert training.overlays[: len(own.trainings[-1].overlays)] == own.trainings[-1].overlays and sum(changes) == 1
    assert {path.name for path in (EXPERIMENT / "causes").glob("*.yaml")} == {"adamw.yaml"}


def test_rows_refuse_what_cannot_be_run() -> None:
    with pytest.raises(ValueError, match="a row trains a stage or adopts one"):
        Row("x", "tasks", "x", (), "prompts")
    with pytest.raises(ValueError, match="leave no other number of steps"):
        Training("base", steps=3, time_of="default", pace_of="patch_1")
    with pytest.raises(ValueError, match="there is no row pach_1; there are: default"):
        find_row("pach_1", ABLATIONS)
