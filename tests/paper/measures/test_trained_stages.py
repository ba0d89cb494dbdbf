"""Every task of the table trains through the real command line, from what it adopts, and its measure reads the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.cli.test_program import EXPERIMENT, SMALL_DENOISER
from tests.helpers.adopted_vae import adopt_tiny_vae
from walt_pl.cli import paper_row
from walt_pl.cli.main import main
from walt_pl.cli.paper_row import Places, run_row
from walt_pl.paper.measures import class_video, guidance
from walt_pl.paper.record import Record, picture_path, read_record
from walt_pl.paper.row import find_row
from walt_pl.paper.rows import TASKS
from walt_pl.runs.artifact import load
from walt_pl.runs.card import TRAIN, read_card
from walt_pl.shapes.dataset import write_set

SQUARE, WIDE = (640, 276), (1120, 276)
"""Size of a picture of six clips, each a row of five frames: 32 pixels twice enlarged, or 64; and 32 x 56 twice enlarged."""
SIZES = {"class_images": (384, 312), "guidance": (640, 92), "aspect": WIDE, "aspect_scratch": WIDE}


@pytest.fixture(scope="module")
def places(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """Folders of a short command of two steps a training, on tiny models."""
    folder = tmp_path_factory.mktemp("tasks")
    # As small as the painted set, but as wide as that of the tasks.
    wide = write_set(folder / "wide", videos=4, images=4, validation=6, seed=3, aspect=1.75)

    def fit(words: Sequence[str], name: str) -> None:
        """Train in this process: one of its own would import torch once more, and so would its readers."""
        images = "base_class_images of" in name
        batch = ["--data.image_stacks_per_batch", "1"] if images else ["--data.videos_per_batch", "2"]
        main(["fit", *words, *SMALL_DENOISER, *batch, "--data.val_videos", "4", "--trainer.precision", "32-true"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_row, "run_fit", fit)
        patch.setattr(paper_row, "SHORT_STEPS", 2)
        patch.setattr(paper_row, "SHORT_WARMUP", 1)
        patch.setattr(class_video, "SHORT", 14)
        patch.setattr(guidance, "SCALES", (1.0, 3.0))
        vae = adopt_tiny_vae(folder / "shapes")
        yield Places(EXPERIMENT, folder / "paper", vae, painted, wide, folder / "docs", short=True, jobs=1)


def run_task(name: str, places: Places) -> Record:
    """Run a row after those that it needs, each once."""
    row = find_row(name, TASKS)
    for source in row.sources:
        run_task(source, places)
    if read_record(places.out, row, 0) is None:
        run_row(row, 0, places)
    record = read_record(places.out, row, 0)
    assert record is not None
    return record


@pytest.mark.parametrize("name", [row.name for row in TASKS])
def test_task_trains_and_its_measure_reads_the_run(name: str, places: Places) -> None:
    record, row = run_task(name, places), find_row(name, TASKS)
    (training,) = row.trainings
    folder = places.folder(row, 0)
    assert record.steps == {training.stage: 2} and record.short
    assert record.figures and all(math.isfinite(figure.value) for figure in record.figures.values())
    own = {"vae": places.vae, training.stage: folder / training.stage}
    adopted = {stage: places.folder(find_row(source, TASKS), 0) / stage for source, stage in row.adopts}
    assert record.stages == {stage: read_card(path)["sha256"] for stage, path in {**own, **adopted}.items()}
    with Image.open(places.out / picture_path(row)) as picture:
        assert picture.size == SIZES.get(name, SQUARE)


def test_task_of_long_video_is_measured_over_four_segments(places: Places) -> None:
    assert {"visible_29", "visible_53", "shape_53"} <= set(run_task("long_video", places).figures)


def test_task_of_guidance_differs_by_scale(places: Places) -> None:
    figures = run_task("guidance", places).figures
    assert {name.rpartition("_")[2] for name in figures} == {"1", "3"}
    assert figures["spread_1"] != figures["spread_3"], "guidance changes a sample"


def test_task_of_another_aspect_starts_from_the_adopted_base_on_the_wide_set(places: Places) -> None:
    run_task("aspect", places)
    configs = []
    for name in ("aspect", "aspect_scratch"):
        run_task(name, places)
        (training,) = find_row(name, TASKS).trainings
        configs.append(yaml.safe_load((places.folder(find_row(name, TASKS), 0) / training.stage / TRAIN).read_text()))
    finetuned, scratch = configs
    base = places.folder(find_row("guidance", TASKS), 0) / "base"
    assert Path(finetuned["init"]).resolve() == base.resolve() and scratch.get("init") is None
    assert {config["data"]["index"] for config in configs} == {str(places.wide_index)}


def test_task_without_noise_augmentation_differs_in_nothing_else(places: Places) -> None:
    records = [run_task(name, places) for name in ("super_resolution", "super_resolution_no_noise_aug")]
    folders = [places.folder(find_row(record.row, TASKS), 0) for record in records]
    kept = [load(folder / "sr1").config["diffusion"] for folder in folders]
    assert [(one["noise_aug_max"], one["noise_aug_level"]) for one in kept] == [(350, 20), (1, 0)]
    assert records[0].figures["iou_base"] == records[1].figures["iou_base"], "of the same samples"
