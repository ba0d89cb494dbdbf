"""Classes and words of the training data in the artifacts, and what `sample` accepts and warns of."""

import shutil
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.tiny_stages import CAPTIONS, write_stages
from walt_pl.cli.sample import sample
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.runs.artifact import load
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.runs.manifest import Manifest
from walt_pl.sampling import known_conditions
from walt_pl.sampling.cascade import Cascade
from walt_pl.sampling.known_conditions import class_number, class_title, known_classes, warn_of_unseen_words
from walt_pl.text.caption_words import WORDS, caption_words, unseen_words, words_of

CLASSES = {0: "ApplyEyeMakeup", 1: "Archery", 4: ""}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_stages(tmp_path_factory.mktemp("stages"))


def save_stage(folder: Path, classes: dict[int, str] | None, parents: dict[str, str] | None = None, **size: Any) -> Path:
    """Write a denoiser for 5 classes that keeps `classes`."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"width": 16, "depth": 2, "num_heads": 2, "window_size": (3, 2, 2), "num_classes": 5, "size": (3, 4, 4)}
    model = Denoiser(DenoiserConfig(**{**small, **size}))
    config = {"diffusion": DiffusionConfig().to_plain(), **({"classes": classes} if classes else {})}
    save_artifact(folder, kind="base", models={"denoiser": model}, sampling_config=config, card={"parents": parents or {}}, train_config="")
    return folder


@pytest.fixture
def of_classes(folders: dict[str, Path], tmp_path: Path) -> Cascade:
    return Cascade({"vae": folders["vae"], "base": save_stage(tmp_path / "base", CLASSES)})


def test_class_number_takes_numbers_and_names_of_the_training_data(of_classes: Cascade) -> None:
    assert [class_number(of_classes, label) for label in (0, 4, "Archery", "archery", "APPLYEYEMAKEUP")] == [0, 4, 1, 1, 0]
    assert [class_title(of_classes, number) for number in (1, 4)] == ["Archery", "class 4"]


@pytest.mark.parametrize(
    "label, said",
    [
        (2, "--label 2: the training data had no clip of this class; there are: 0 .ApplyEyeMakeup., 1 .Archery., 4$"),
        (-1, "no clip of this class"),
        ("Archry", "no class of this name; did you mean Archery\\?$"),
        ("xylophone", 'label "xylophone": .* there are: 0 .ApplyEyeMakeup.'),
        ("", "no class of this name"),
    ],
)
def test_class_number_refuses_classes_that_the_data_did_not_have(of_classes: Cascade, label: int | str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        class_number(of_classes, label)


def test_class_number_takes_names_in_every_unicode_form(of_classes: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        monkeypatch.setattr(known_conditions, "known_classes", lambda cascade, form=form: {3: unicodedata.normalize(form, "Caf\xe9")})
        assert class_number(of_classes, unicodedata.normalize(other, "caf\xe9")) == 3


def test_class_number_takes_numbers_only_where_the_artifact_keeps_no_classes(folders: dict[str, Path], tmp_path: Path) -> None:
    cascade = Cascade({"vae": folders["vae"], "base": save_stage(tmp_path / "base", None)})
    assert known_classes(cascade) is None and class_number(cascade, 3) == 3 and class_title(cascade, 3) == "class 3"
    with pytest.raises(ValueError, match="keeps no names of classes; give the number"):
        class_number(cascade, "Archery")
    with pytest.raises(ValueError, match="does not make clips of a class: give --prompt"):
        class_number(Cascade({stage: folders[stage] for stage in ("vae", "base")}), "Archery")


def test_known_classes_are_those_of_every_stage(folders: dict[str, Path], tmp_path: Path) -> None:
    above = save_stage(tmp_path / "sr1", {1: "Archery"}, size=(3, 8, 8), patch_size=2, super_resolution=True)
    cascade = Cascade({"vae": folders["vae"], "base": save_stage(tmp_path / "base", CLASSES), "sr1": above})
    assert known_classes(cascade) == {1: "Archery"}


def finished_run(run: Path, folders: dict[str, Path]) -> Path:
    """Copy artifacts of an autoencoder and a base trained from it into a run."""
    manifest = Manifest.open(run)
    for stage, folder in folders.items():
        shutil.copytree(folder, run / stage)
        manifest.start(stage, load(folders[stage]).card["parents"])
        manifest.finish(stage, run / stage)
    return run


def test_sample_command_label_takes_a_name_and_refuses_an_unknown_one(folders: dict[str, Path], tmp_path: Path) -> None:
    base = save_stage(tmp_path / "base", CLASSES, {"vae": load(folders["vae"]).sha256})
    run = finished_run(tmp_path / "run", {"vae": folders["vae"], "base": base})
    made = {}
    for label in (1, "archery", 0):
        sample(str(run), label=label, steps=1, dtype="float32", out=f"{tmp_path}/{label}/")
        made[label] = (tmp_path / str(label) / "clip.gif").read_bytes()
    assert made[1] == made["archery"] != made[0]
    with pytest.raises(ValueError, match="no clip of this class"):
        sample(str(run), label=2, steps=1, out=f"{tmp_path}/2/")
    assert not (tmp_path / "2").exists()


def test_words_of_splits_at_all_but_letters_digits_and_apostrophes() -> None:
    assert words_of("A dog's Käfer, black-and-white_2 (50mm)!") == ["a", "dog's", "käfer", "black", "and", "white", "2", "50mm"]
    assert caption_words(["a Cat", "a dog"], before=b"zebra\n").decode() == "a\ncat\ndog\nzebra\n"


def test_unseen_words_are_listed_once_in_order_and_none_where_words_are_not_known() -> None:
    assert unseen_words(b"a\ncat\n", ["a purple cat", "A Purple unicorn"]) == ["purple", "unicorn"]
    assert unseen_words(b"", ["a purple cat"]) == []


def test_sample_command_warns_once_of_words_that_no_caption_had(folders: dict[str, Path], tmp_path: Path) -> None:
    base = load(folders["base"])
    config, card = {"diffusion": base.config["diffusion"]}, {"parents": {"vae": load(folders["vae"]).sha256}}
    files = {"tokenizer.model": base.read("tokenizer.model"), WORDS: caption_words(CAPTIONS)}
    save_artifact(tmp_path / "base", kind="base", models=base.models, sampling_config=config, card=card, train_config="", files=files)
    run = finished_run(tmp_path / "run", {"vae": folders["vae"], "base": tmp_path / "base"})
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a purple circle\na plain unicorn, purple\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample(str(run), prompts=str(prompts), negative_prompt="blurry", steps=1, out=f"{tmp_path}/")
    said = [str(warning.message) for warning in caught if "training caption" in str(warning.message)]
    assert len(said) == 1 and "has the words purple, unicorn, blurry:" in said[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cascade = Cascade.open(run)
        warn_of_unseen_words(cascade, [CAPTIONS[0].upper(), ""])
        warn_of_unseen_words(Cascade({stage: folders[stage] for stage in ("vae", "base")}), ["a purple unicorn"])  # keeps no words
