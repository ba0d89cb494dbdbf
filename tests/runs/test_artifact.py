"""Promises of artifact.py, artifact_writing.py and card.py: whole or not at all, equal outputs, no changed byte goes unseen."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import walt_pl
from tests.helpers.tiny_artifact import Tiny, TinyConfig, flip, rewrite_card, save, siblings
from walt_pl.files import file_sha256
from walt_pl.runs import artifact, artifact_writing
from walt_pl.runs.artifact import load
from walt_pl.runs.card import ArtifactError, read_card, verify_artifact
from walt_pl.runs.finite import NonFiniteError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tiny_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (Tiny.__module__, "Tiny", "TinyConfig")
    monkeypatch.setattr(artifact, "COMPONENTS", {"vae": names, "denoiser": names})


def test_load_artifact_gives_equal_outputs(tmp_path: Path) -> None:
    model = Tiny(TinyConfig(width=6, levels=(1, 2, 3)))
    digest = save(tmp_path / "vae", model)
    loaded = walt_pl.load(tmp_path / "vae", verify=True)
    x = torch.randn(5, 6)
    assert torch.equal(loaded.models["vae"](x), model(x))
    assert not loaded.models["vae"].training
    assert not any(p.requires_grad for p in loaded.models["vae"].parameters())
    assert loaded.models["vae"].config == model.config  # the tuple comes back as a tuple
    assert loaded.config["diffusion"] == {"steps": 1000, "guidance": 1e-6}
    assert loaded.read("tokenizer.model") == b"pieces"
    assert loaded.sha256 == digest == file_sha256(tmp_path / "vae" / "model.safetensors")
    assert siblings(tmp_path / "vae") == ["vae"]
    with pytest.raises(ArtifactError, match=r'no file "other.model".*tokenizer.model'):
        loaded.read("other.model")


def test_load_verifies_weights_up_to_a_limit_and_larger_ones_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flipped bit leaves finite weights, which nothing but the hash can tell."""
    save(tmp_path / "vae")
    flip(tmp_path / "vae" / "model.safetensors", at=-2)
    with pytest.raises(ArtifactError, match=r"the bytes of .*model.safetensors do not match"):
        load(tmp_path / "vae")
    monkeypatch.setattr("walt_pl.runs.artifact.VERIFIED_BYTES", 100)
    load(tmp_path / "vae")
    with pytest.raises(ArtifactError, match=r"the bytes of .*model.safetensors do not match"):
        load(tmp_path / "vae", verify=True)


def test_artifact_card_says_where_the_weights_come_from(tmp_path: Path) -> None:
    save(tmp_path / "vae", card={"parents": {"vae": "cd" * 32}, "steps": 9, "metrics": {"psnr": {"value": 30.5, "clips": 64}}})
    card = load(tmp_path / "vae").card
    assert set(card["files"]) == {"model.safetensors", "model.yaml", "train.yaml", "tokenizer.model"}
    assert card["parents"] == {"vae": "cd" * 32} and card["steps"] == 9 and card["metrics"]["psnr"]["clips"] == 64
    assert card["packages"]["torch"] == torch.__version__.split("+")[0] and "code" in card and card["format"] == 2


def test_save_artifact_stores_contiguous_float32(tmp_path: Path) -> None:
    model = Tiny(TinyConfig())
    state = {key: value.bfloat16().t() if value.ndim == 2 else value for key, value in model.state_dict().items()}
    save(tmp_path / "vae", models={"vae": (state, TinyConfig())})
    weights = load_file(tmp_path / "vae" / "model.safetensors")
    assert weights["vae.layers.0.weight"].dtype == torch.float32 and weights["vae.count"].dtype == torch.int64
    assert torch.equal(weights["vae.layers.1.weight"], state["layers.1.weight"].float())


def test_save_artifact_stores_weights_that_share_memory(tmp_path: Path) -> None:
    flat = torch.randn(6)
    state = {**Tiny(TinyConfig()).state_dict(), "layers.0.bias": flat[:4], "layers.1.bias": flat[2:]}
    save(tmp_path / "vae", models={"vae": (state, TinyConfig())})
    assert torch.equal(load(tmp_path / "vae").models["vae"].get_parameter("layers.1.bias"), flat[2:])


def test_load_artifact_leaves_the_random_state_unchanged(tmp_path: Path) -> None:
    save(tmp_path / "vae")
    before = torch.random.get_rng_state()
    load(tmp_path / "vae")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_save_artifact_gives_all_files_the_same_permissions(tmp_path: Path) -> None:
    save(tmp_path / "vae")
    assert len({path.stat().st_mode for path in (tmp_path / "vae").iterdir()}) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "model.yaml", "train.yaml", "tokenizer.model", "card.json"])
def test_verify_artifact_finds_a_flipped_byte_in_every_file(tmp_path: Path, name: str) -> None:
    save(tmp_path / "vae")
    assert verify_artifact(tmp_path / "vae") == []
    wanted = file_sha256(tmp_path / "vae" / name)
    flip(tmp_path / "vae" / name)
    (problem,) = verify_artifact(tmp_path / "vae")
    assert name in problem
    if name != "card.json":
        assert wanted in problem and file_sha256(tmp_path / "vae" / name, fresh=True) not in problem
    with pytest.raises(ArtifactError, match=name):
        load(tmp_path / "vae", verify=True)


def test_load_artifact_finds_a_changed_latent_statistic(tmp_path: Path) -> None:
    save(tmp_path / "vae")
    card = tmp_path / "vae" / "card.json"
    card.write_text(card.read_text().replace("0.2", "0.3"))
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        load(tmp_path / "vae")


def test_file_sha256_is_read_once_and_again_when_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    later = time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: later)
    first = file_sha256(path)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert file_sha256(path) == first
    monkeypatch.undo()
    path.write_bytes(b"new")
    assert file_sha256(path) != first


@pytest.mark.parametrize("broken_rename", [1, 2], ids=["moving the old aside", "moving the new in place"])
def test_save_artifact_failed_rename_leaves_the_old_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_rename: int) -> None:
    old = save(tmp_path / "vae")
    replace, folders = os.replace, []

    def fails(source: Path, target: Path) -> None:
        if Path(source).is_dir():
            folders.append(source)
            if len(folders) == broken_rename:
                raise PermissionError(errno.EACCES, "no", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(PermissionError):
        save(tmp_path / "vae")
    assert siblings(tmp_path / "vae") == ["vae"]
    assert load(tmp_path / "vae", verify=True).sha256 == old


KILLED = """
import os, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
import test_artifact as tests
from walt_pl.runs import artifact
artifact.COMPONENTS = {"vae": ("tests.helpers.tiny_artifact", "Tiny", "TinyConfig")}
left = int(sys.argv[3])
def counted(change):
    def changes(folder, *rest, **named):
        global left
        if os.path.isdir(folder):
            if left == 0:
                os._exit(9)
            left -= 1
        return change(folder, *rest, **named)
    return changes
os.replace, os.rmdir = counted(os.replace), counted(os.rmdir)
tests.save(tests.Path(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("folders_changed", "whole"),
    [(0, "old"), (1, "new"), (2, "new")],
    ids=["before the renames", "between the renames", "before the old one is removed"],
)
def test_save_artifact_killed_at_any_moment_leaves_one_whole_artifact(tmp_path: Path, folders_changed: int, whole: str) -> None:
    folder = tmp_path / "vae"
    old = save(folder)
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    killed = subprocess.run([sys.executable, "-c", KILLED, paths, str(folder), str(folders_changed)], timeout=120)
    assert killed.returncode == 9
    assert siblings(folder) != ["vae"]
    found = load(folder, verify=True).sha256
    assert (found == old) == (whole == "old")
    newest = save(folder)
    assert siblings(folder) == ["vae"]
    assert load(folder, verify=True).sha256 == newest


def test_load_artifact_between_the_renames_does_not_disturb_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "vae")
    replace, seen = os.replace, []

    def with_reader(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).name == ".vae.old":
            seen.append(load(tmp_path / "vae", verify=True).sha256)

    monkeypatch.setattr(os, "replace", with_reader)
    new = save(tmp_path / "vae")
    assert seen == [new] and load(tmp_path / "vae", verify=True).sha256 == new
    assert siblings(tmp_path / "vae") == ["vae"]


def full_save_file(*_: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_fsync(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("where", "name", "full"), [(artifact_writing, "save_file", full_save_file), (os, "fsync", full_fsync)])
def test_save_artifact_on_a_full_disk_keeps_the_old_one_and_says_how_much_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, full: Callable[..., None]
) -> None:
    old = save(tmp_path / "vae")
    with monkeypatch.context() as patch:
        patch.setattr(where, name, full)
        with pytest.raises(OSError, match=r"disk is full.*vae needs \d+\.\d MB and \d+\.\d MB are free") as error:
            save(tmp_path / "vae")
    assert error.value.errno == errno.ENOSPC
    assert siblings(tmp_path / "vae") == ["vae"]
    assert load(tmp_path / "vae", verify=True).sha256 == old


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {"vae": "nan"}}, r"2 of 4 values of vae.layers.1.bias are nan or infinite \(2 of 41 values in 1 of 5 tensors\)"),
        ({"card": {"latents": {"mean": [0.1, 0.2], "std": [1.0, float("nan")]}}}, r"latents.std.1 is nan"),
        ({"card": {"metrics": {"protocol": "p", "values": {"val/loss": float("inf")}}}}, r"metrics.values.val/loss is inf"),
    ],
)
def test_save_artifact_refuses_nan_and_infinity_and_keeps_the_old_one(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    before = save(tmp_path / "vae")
    if "models" in changes:
        model = Tiny(TinyConfig())
        with torch.no_grad():
            model.layers[1].bias[:2] = torch.tensor([torch.nan, -torch.inf])  # type: ignore[index, operator]
        changes = {"models": {"vae": model}}
    with pytest.raises(NonFiniteError, match=f"{tmp_path / 'vae'} is not written: {message}"):
        save(tmp_path / "vae", **changes)
    assert siblings(tmp_path / "vae") == ["vae"] and load(tmp_path / "vae", verify=True).sha256 == before


def with_config(folder: Path, text: str) -> None:
    """Replace model.yaml and its record, as a version of the program that wrote it so would have done."""
    (folder / "model.yaml").write_text(text)
    files = json.loads((folder / "card.json").read_text())["files"]
    rewrite_card(folder, files={**files, "model.yaml": {"sha256": file_sha256(folder / "model.yaml"), "bytes": len(text)}})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "card.json").unlink(), "has no card.json.*found: README.md, model.safetensors"),
        (lambda f: (f / "card.json").write_text("{"), "not a card"),
        (lambda f: rewrite_card(f, format=9), "format version 9 is unknown here .this program reads 2"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: os.truncate(f / "model.safetensors", 50), "model.safetensors do not match: found 50 bytes"),
        (lambda f: with_config(f, "vae: {width: 4, depth: 2}\n"), "does not know: depth .it has: width, levels"),
        (lambda f: with_config(f, "vae: {width: 5}\n"), "vae.width must be even, got 5"),
        (lambda f: with_config(f, "vae: {levels: [1, 2, 3]}\n"), "missing: vae.layers.2.bias, vae.layers.2.weight"),
        (lambda f: with_config(f, "vae: {levels: [1]}\n"), "not wanted: vae.layers.1.bias, vae.layers.1.weight"),
        (lambda f: with_config(f, "vae: {width: 6}\n"), r"vae.layers.0.weight .found \[4, 4\], wanted \[6, 6\]"),
    ],
)
def test_load_artifact_says_why_it_cannot_load(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    save(tmp_path / "vae")
    spoil(tmp_path / "vae")
    with pytest.raises(ArtifactError, match=message) as error:
        load(tmp_path / "vae")
    assert "\n" not in str(error.value) and str(tmp_path / "vae") in str(error.value)


def test_load_artifact_without_a_folder_says_what_an_artifact_is(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a folder"):
        load(tmp_path / "vae")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"card": {"latent": {}}}, "unknown keys latent .known: parents"),
        ({"models": {"vea": Tiny(TinyConfig())}}, 'unknown section "vea"'),
        ({"sampling_config": {"denoiser": {}}}, "sections of models"),
        ({"files": {"../x": b""}}, r"not one of the further files .*tokenizer.model"),
        ({"files": {"card.json": b""}}, r"not one of the further files .*tokenizer.model"),
    ],
)
def test_save_artifact_with_wrong_arguments_writes_nothing(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "vae", **changes)
    assert list(tmp_path.iterdir()) == []


BLOCKED = """
import os, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lightning", "pytorch_lightning", "deepspeed"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
sys.path[:0] = sys.argv[1].split(os.pathsep)
import walt_pl
assert "torch" not in sys.modules, "import walt_pl alone has to be quick"
from walt_pl.runs import artifact
artifact.COMPONENTS = {"vae": ("tiny_model", "Tiny", "TinyConfig")}
model = walt_pl.load(sys.argv[2], verify=True).models["vae"]
import torch
print(model(torch.ones(2)).sum().item())
"""

TINY_MODEL = """
from dataclasses import dataclass
from torch import nn
@dataclass(frozen=True)
class TinyConfig:
    width: int = 2
class Tiny(nn.Linear):
    def __init__(self, config):
        super().__init__(config.width, config.width)
"""


def test_load_artifact_works_without_lightning_and_deepspeed(tmp_path: Path) -> None:
    (tmp_path / "tiny_model.py").write_text(TINY_MODEL)
    state = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    save(tmp_path / "vae", models={"vae": (state, TinyConfig(width=2))}, sampling_config={})
    with_config(tmp_path / "vae", "vae: {width: 2}\n")
    command = [sys.executable, "-c", BLOCKED, os.pathsep.join([str(ROOT), str(tmp_path)]), str(tmp_path / "vae")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 4.0


def test_load_artifact_refuses_weights_that_are_not_safetensors(tmp_path: Path) -> None:
    save(tmp_path / "vae")
    weights = tmp_path / "vae" / "model.safetensors"
    weights.write_bytes(b"\x80\x04" + weights.read_bytes()[2:])  # the first bytes of a pickle
    files = read_card(tmp_path / "vae")["files"]
    sha256 = file_sha256(weights, fresh=True)
    rewrite_card(tmp_path / "vae", sha256=sha256, files={**files, weights.name: {**files[weights.name], "sha256": sha256}})
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        load(tmp_path / "vae")
