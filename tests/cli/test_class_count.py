"""A class-conditional stage and its data: one number of classes, and no clip that ends the training when its turn comes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonargparse import Namespace

from tests.helpers.environment import ROOT
from tests.helpers.tiny_stages import write_stages
from walt_pl.cli.class_count import fill_classes
from walt_pl.cli.experiment_data import data_of
from walt_pl.cli.main import main
from walt_pl.data.index import write_index
from walt_pl.media.writing import write_video
from walt_pl.runs.artifact import load

BASE = ROOT / "experiments" / "shapes" / "base.yaml"
DENOISER = (
    "{width: 16, depth: 2, num_heads: 2, latent_channels: 8, size: [3, 4, 4], window_size: [3, 2, 2], text_width: null, num_classes: 5}"
)


def options(classes: int | None, given: int | None = None) -> Any:
    return Namespace(model=Namespace(init_args=Namespace(denoiser=Namespace(num_classes=classes))), data=Namespace(num_classes=given))


@pytest.mark.parametrize(("classes", "given", "wanted"), [(5, None, 5), (5, 5, 5), (None, None, None), (0, None, None)])
def test_fill_classes_takes_the_number_of_the_denoiser(classes: int | None, given: int | None, wanted: int | None) -> None:
    fill_classes(found := options(classes, given))
    assert found.data.num_classes == wanted


def test_fill_classes_leaves_a_stage_without_a_denoiser_without_classes() -> None:
    fill_classes(found := Namespace(model=Namespace(init_args=Namespace()), data=Namespace(num_classes=None)))
    assert found.data.num_classes is None


def test_fill_classes_refuses_another_number() -> None:
    with pytest.raises(ValueError, match=r"data\.num_classes is 4, model\.denoiser\.num_classes 5: .* leave data\.num_classes out"):
        fill_classes(options(5, 4))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of 9 frames, the sixth with label 7, the seventh without one."""
    folder = tmp_path_factory.mktemp("labelled")
    size = {"kind": "video", "frames": 9, "fps": 8.0, "width": 16, "height": 16, "caption": "", "bytes": 1, "split": "train"}
    for number in range(8):
        write_video(folder / f"{number}.mp4", np.full((9, 16, 16, 3), 20 * number, np.uint8), fps=8)
    labels = [0, 1, 2, 3, 4, 7, -1, 1]
    write_index([{**size, "path": f"{n}.mp4", "label": label} for n, label in enumerate(labels)], folder / "i.parquet")
    return folder / "i.parquet"


def test_fit_command_leaves_out_and_names_clips_whose_class_the_model_lacks(
    index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    vae, run = write_stages(tmp_path / "made", classes=5)["vae"], tmp_path / "run"
    settings = {
        **{"run": run, "data.index": index, "model.vae": vae, "model.text": "null", "model.denoiser": DENOISER, "model.warmup_steps": 1},
        **{"data.size": 16, "data.frames": 9, "data.videos_per_batch": 2, "data.image_stacks_per_batch": 0, "data.val_videos": 0},
        **{"trainer.max_steps": 4, "trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.precision": "32-true"},
        "trainer.val_check_interval": "null",
    }
    main(["fit", "--config", str(BASE), *(word for key, value in settings.items() for word in (f"--{key}", str(value)))])
    said = capfd.readouterr().out
    assert "train: 6 of 8 videos used; left out: 1 without a label, 1 with a label outside of the model's classes\n" in said
    assert "no label: 6.mp4 (-1)\n" in said and "a label outside of 0 to 4: 5.mp4 (7)\n" in said
    artifact = load(run / "base")  # four steps of two clips: all six, and two again
    assert artifact.card["steps"] == 4 and sorted(artifact.config["classes"]) == [0, 1, 2, 3, 4]


def class_conditional(folder: Path, classes: int) -> Path:
    """Write a configuration with classes and without text."""
    folder.mkdir(exist_ok=True)
    model = f"{{init_args: {{text: null, denoiser: {{text_width: null, num_classes: {classes}}}}}}}"
    data = "{frames: 9, size: 16, image_stacks_per_batch: 0, val_videos: 0}"
    (folder / "base.yaml").write_text(f"extends: [{BASE}]\nmodel: {model}\ndata: {data}\n")
    return folder / "base.yaml"


def test_index_command_writes_the_reason_of_each_clip_of_another_class(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["index", str(index), "--config", str(class_conditional(tmp_path / "five", 5))])
    assert "a label outside of 0 to 4: 5.mp4 (7)" in capsys.readouterr().out
    reasons = [row["reason"] for row in csv.DictReader(index.with_suffix(".five-base.csv").open())]
    assert reasons == [""] * 5 + ["with a label outside of the model's classes", "without a label", ""]


def test_data_of_a_class_conditional_stage_refuses_data_without_any_label(tmp_path: Path) -> None:
    size = {"kind": "video", "frames": 9, "fps": 8.0, "width": 16, "height": 16, "caption": "", "bytes": 1, "split": "train"}
    write_index([{**size, "path": "a.mp4", "label": -1}], tmp_path / "i.parquet")
    data = data_of(class_conditional(tmp_path / "five", 5), tmp_path / "i.parquet")
    with pytest.raises(ValueError, match=r"(?s)no video of .*1 without a label.*0 of the 5 classes .*index a source with labels"):
        data.setup("fit")
