"""An artifact replaces its own files alone, and is read from nowhere else: foreign files, links and cards of strangers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_artifact import Tiny, TinyConfig, flip, rewrite_card, save
from walt_pl.files import file_sha256
from walt_pl.runs import artifact, artifact_writing
from walt_pl.runs.artifact import load
from walt_pl.runs.card import ArtifactError, check_replaceable, read_card, verify_artifact


@pytest.fixture(autouse=True)
def tiny_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (Tiny.__module__, "Tiny", "TinyConfig")
    monkeypatch.setattr(artifact, "COMPONENTS", {"vae": names, "denoiser": names})


def tree(folder: Path) -> dict[str, str]:
    """Every file, link and folder in a folder, hidden ones too, with its content."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes().hex() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def own_folder(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).mkdir()


def own_file(name: str, text: str = "mine") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def listed_by_a_planted_card(folder: Path) -> None:
    thesis = folder / "thesis.txt"
    thesis.write_text("mine")
    files = json.loads((folder / "card.json").read_text())["files"]
    rewrite_card(folder, files={**files, "thesis.txt": {"sha256": file_sha256(thesis), "bytes": 4}})


def a_card_alone(folder: Path) -> None:
    """A folder of somebody's own whose files are named as ours, and a card that lists them."""
    for path in folder.iterdir():
        if path.name != "card.json":
            path.write_text("mine")


def link_in_place_of_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


FOREIGN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "checkpoints": ("checkpoints", own_folder("checkpoints")),
    "hidden folder": (".git", own_folder(".git")),
    "hidden file": (".env", own_file(".env")),
    "hidden link": (".cache", lambda folder: (folder / ".cache").symlink_to("/")),
    "file listed by a planted card": ("thesis.txt", listed_by_a_planted_card),
    "own files beside a planted card": ("model.safetensors", a_card_alone),
    "changed train.yaml": ("train.yaml", own_file("train.yaml")),
    "file of ours that the card does not list": ("tokenizer.model", lambda f: (save(f, files={}), own_file("tokenizer.model")(f))),
    "link": ("model.safetensors", link_in_place_of_the_weights),
    "pipe": ("pipe", lambda folder: os.mkfifo(folder / "pipe")),
    "no card": ("card.json", lambda folder: (folder / "card.json").unlink()),
    "card that was changed": ("card.json", own_file("card.json", "{}")),
    "remains of another's": (".vae.old", lambda f: (own_folder("../.vae.old")(f), own_file("../.vae.old/mine")(f))),
    "unfinished one of another's": (".vae.new", lambda f: (own_folder("../.vae.new")(f), own_file("../.vae.new/mine")(f))),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_save_artifact_removes_no_foreign_file(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "run" / "vae"
    named, plant = FOREIGN[case]
    save(folder)
    plant(folder)
    before = tree(tmp_path)
    with pytest.raises(ArtifactError, match=re.escape(named)) as error:
        save(folder, Tiny(TinyConfig(width=6)))
    assert "move" in str(error.value) and tree(tmp_path) == before
    with pytest.raises(ArtifactError, match=re.escape(named)):
        check_replaceable(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.yaml", "train.yaml", "card.json", "tokenizer.model"])
@pytest.mark.parametrize("plant", [own_folder, own_file], ids=["folder", "file"])
def test_save_artifact_refuses_a_foreign_folder_with_our_file_names(tmp_path: Path, name: str, plant: Any) -> None:
    (tmp_path / "mine").mkdir()
    plant(name)(tmp_path / "mine")
    with pytest.raises(ArtifactError, match=re.escape(name)):
        save(tmp_path / "mine")
    assert list(tree(tmp_path)) == ["mine", f"mine/{name}"]


def test_save_artifact_replaces_its_own(tmp_path: Path) -> None:
    """Also one that lacks a file or has damaged weights, an empty folder, and through a link that was typed."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    digests = [save(tmp_path / "link")]
    (tmp_path / "real" / "model.yaml").unlink()
    flip(tmp_path / "real" / "model.safetensors")
    digests.append(save(tmp_path / "link", Tiny(TinyConfig(width=6))))
    assert len(set(digests)) == 2 and load(tmp_path / "real", verify=True).sha256 == digests[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"] and (tmp_path / "link").is_symlink()


def test_save_artifact_keeps_foreign_files_that_appear_while_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "vae")
    write = artifact_writing._write

    def someone_saves_too(*arguments: Any) -> str:
        (tmp_path / "vae" / "thesis.txt").write_text("mine")
        return write(*arguments)

    monkeypatch.setattr(artifact_writing, "_write", someone_saves_too)
    save(tmp_path / "vae")
    assert [path.read_text() for path in tmp_path.rglob("thesis.txt")] == ["mine"]
    with pytest.raises(ArtifactError, match=r"\.vae\.old holds thesis.txt"):
        save(tmp_path / "vae")


# ---- Links and names that lead elsewhere -----------------------------------------------------------------------------


def link_to_a_folder(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "link").symlink_to(folder.parent, target_is_directory=True)


@pytest.mark.parametrize(
    "plant",
    [link_in_place_of_the_weights, link_to_a_folder, lambda f: (f / "gone").symlink_to("nowhere"), lambda f: os.mkfifo(f / "pipe")],
    ids=["file", "folder", "broken", "pipe"],
)
def test_load_artifact_refuses_links_and_pipes(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    save(tmp_path / "vae")
    plant(tmp_path / "vae")
    for read in (load, read_card):
        with pytest.raises(ArtifactError, match="wanted a plain file or folder"):
            read(tmp_path / "vae")
    assert "wanted a plain file or folder" in verify_artifact(tmp_path / "vae")[0]


def test_load_artifact_follows_a_link_that_was_typed(tmp_path: Path) -> None:
    digest = save(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    assert load(tmp_path / "link", verify=True).sha256 == digest


@pytest.mark.parametrize("name", ["../private", "{tmp}/private", "deep/private", "..", ""])
def test_load_artifact_refuses_a_card_that_lists_files_elsewhere(tmp_path: Path, name: str) -> None:
    save(tmp_path / "vae")
    (tmp_path / "private").write_text("mine")
    files = json.loads((tmp_path / "vae" / "card.json").read_text())["files"]
    record = {"sha256": file_sha256(tmp_path / "private"), "bytes": 4}
    rewrite_card(tmp_path / "vae", files={**files, name.replace("{tmp}", str(tmp_path)): record})
    with pytest.raises(ArtifactError, match="wanted names of files of an artifact beside it"):
        load(tmp_path / "vae")
