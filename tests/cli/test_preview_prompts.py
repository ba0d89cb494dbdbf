"""Prompts of one's own for the previews of a training."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from jsonargparse import Namespace
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.environment import Walt
from tests.helpers.training import arguments
from tests.training.test_resume import weights
from walt_pl.cli.preview_prompts import check_preview_prompts

SHORT = ["--model.warmup_steps", "1", "--model.lr_schedule", "constant", "--trainer.val_check_interval", "2"]
SHOWN = ["--previews.every_n_validations", "1", "--model.preview_steps", "2"]


def options(prompts: Path | None, index: Path | None = None, **denoiser: Any) -> Any:
    fields = {"frame_prediction": 0.0, "num_classes": None, "text_width": None, **denoiser}
    return Namespace(
        previews=Namespace(prompts=prompts and str(prompts)),
        model=Namespace(init_args=Namespace(denoiser=Namespace(**fields))),
        data=Namespace(index=str(index), shards=None),
    )


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("archery\n3\n")
    return tmp_path / "prompts.txt"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index whose classes have names; its table is not read."""
    (tmp_path / "i.classes.txt").write_text("ApplyEyeMakeup\nArchery\nBand\n")
    return tmp_path / "i.parquet"


REFUSED = {
    "vae": ("vae", {}, "the previews of vae are reconstructions of validation clips, and take no prompt; leave previews.prompts out"),
    "sr": ("sr1", {"text_width": 8}, "the previews of sr1 are enlarged validation clips, .* give it to the base"),
    "frame prediction": ("base", {"text_width": 8, "frame_prediction": 1.0}, "with model.denoiser.frame_prediction 1 every clip goes on"),
    "no condition": ("base_9x16", {}, "the model takes neither text nor classes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_check_preview_prompts_refuses_stages_that_take_none(name: str, prompts: Path) -> None:
    stage, denoiser, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        check_preview_prompts(stage, options(prompts, **denoiser))
    check_preview_prompts(stage, options(None, **denoiser))


def test_check_preview_prompts_takes_names_and_numbers_of_classes(prompts: Path, index: Path) -> None:
    check_preview_prompts("base", options(prompts, index, num_classes=5))


@pytest.mark.parametrize(("line", "said"), [("Archry", "did you mean Archery?"), ("5", "5: the training data had no clip of this class")])
def test_check_preview_prompts_refuses_an_unknown_class_with_near_names(line: str, said: str, prompts: Path, index: Path) -> None:
    prompts.write_text(f"Band\n{line}\n")
    with pytest.raises(ValueError, match=r"previews\.prompts: .*prompts\.txt: ") as error:
        check_preview_prompts("base", options(prompts, index, num_classes=5))
    assert said in str(error.value)


def test_check_preview_prompts_refuses_names_where_the_classes_have_none(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='"archery": this run keeps no names of classes; give the number'):
        check_preview_prompts("base", options(prompts, tmp_path / "other.parquet", num_classes=5))


# ---- Through the program ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parents(walt: Walt, painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an autoencoder of two steps."""
    run = tmp_path_factory.mktemp("parents") / "run"
    walt("fit", *arguments("vae", run, painted, *SHORT, "--trainer.max_steps", "2"))
    return run


def previews(run: Path, start: int, tag: str) -> list[bytes]:
    """Return the GIFs of a tag of a start."""
    events = EventAccumulator(str(run / "training" / "base" / "logs" / f"version_{start}"), size_guidance={"images": 0}).Reload()
    return [image.encoded_image_string for image in events.Images(tag)] if tag in events.Tags()["images"] else []


def test_fit_command_with_preview_prompts_trains_the_same_weights_and_shows_the_same_clips_for_the_same_captions(
    parents: Path, walt: Walt, painted: Path, tmp_path: Path
) -> None:
    """The prompts of the second training are the captions that the previews of the first one have."""
    table = pq.read_table(painted)
    table = table.filter((pc.field("split") == "val") & (pc.field("kind") == "video"))
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"{caption}\n" for caption in table["caption"].to_pylist()[:2]))
    plain, prompted = tmp_path / "plain", tmp_path / "prompted"
    for run, more in ((plain, []), (prompted, ["--previews.prompts", str(file)])):
        shutil.copytree(parents, run)
        walt("fit", *arguments("base", run, painted, *SHORT, *SHOWN, *more, "--trainer.max_steps", "4"))
    shown = previews(prompted, 0, "previews/prompts")
    assert len(shown) == 2 and shown == previews(plain, 0, "previews/samples")
    assert previews(prompted, 0, "previews/samples") == []
    mine, theirs = weights(prompted, "base", 4), weights(plain, "base", 4)
    assert sorted(mine) == sorted(theirs) and all((mine[name] == theirs[name]).all() for name in theirs if hasattr(mine[name], "all"))
    assert (prompted / "base" / "model.safetensors").read_bytes() == (plain / "base" / "model.safetensors").read_bytes()
    assert (prompted / "training" / "base" / "logs" / "version_0" / "prompts.txt").read_text() == file.read_text()


def test_fit_command_that_goes_on_with_other_preview_prompts_lists_them_and_warns_of_words(
    parents: Path, walt: Walt, painted: Path, tmp_path: Path
) -> None:
    run, file = tmp_path / "run", tmp_path / "prompts.txt"
    shutil.copytree(parents, run)
    command = arguments("base", run, painted, *SHORT, *SHOWN, "--trainer.val_check_interval", "1", "--trainer.max_steps")
    walt("fit", *command, "1")
    file.write_text("a red circle\n# none\na zebra quilt\n")
    added = walt("fit", *command, "2", "--previews.prompts", str(file)).said
    assert "previews.prompts_sha256 null -> " in added and "(previews show other prompts)" in added
    assert "no training caption has the words zebra, quilt" in added and "not the training that was interrupted" not in added
    file.write_text("a red circle\n\na blue circle\n")
    changed = walt("fit", *command, "3", "--previews.prompts", str(file)).said
    (line,) = [line for line in changed.splitlines() if line.startswith("changed since step 2: ")]
    assert line.count(" -> ") == 1 and "previews.prompts_sha256" in line and "has the words" not in changed
    logs = run / "training" / "base" / "logs"
    assert [(logs / f"version_{n}" / "prompts.txt").read_text().splitlines()[1] for n in (1, 2)] == ["a zebra quilt", "a blue circle"]
    same = walt("fit", *command, "4", "--previews.prompts", str(file)).said
    assert "changed since" not in same


def test_fit_command_refuses_a_missing_file_of_preview_prompts_before_it_trains(
    parents: Path, walt: Walt, painted: Path, tmp_path: Path
) -> None:
    shutil.copytree(parents, tmp_path / "run")
    done = walt("fit", *arguments("base", tmp_path / "run", painted, "--previews.prompts", str(tmp_path / "none.txt")), check=False)
    assert done.code == 1 and "none.txt: there is no such file; write one with a prompt a line" in done.said
    assert "Traceback" not in done.said and not (tmp_path / "run" / "training" / "base").exists()
