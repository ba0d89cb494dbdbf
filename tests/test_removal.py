"""Only own files are removed: plain files of known names, never through a link."""

import os
from pathlib import Path

import pytest

from walt_pl.cli.main import main
from walt_pl.lock import Holder
from walt_pl.removal import remove_own
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.run_files import CHECKPOINT_FILES, RUN_FILES


def plant(folder: Path, *names: str) -> list[Path]:
    """Write files of these relative names."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a person's" if "mine" in path.name else "ours")
    return paths


OURS = ("state.ckpt/checkpoint/a.pt", "state.ckpt/latest", "checkpoint.json", ".checkpoint.json.7.0123456789abcdef.tmp")


def test_remove_own_removes_a_folder_of_own_files(tmp_path: Path) -> None:
    plant(tmp_path / "step", *OURS)
    assert remove_own(tmp_path / "step", CHECKPOINT_FILES) == []
    assert not (tmp_path / "step").exists()
    assert remove_own(tmp_path / "step", CHECKPOINT_FILES) == []


def test_remove_own_leaves_other_files_pipes_and_their_folders(tmp_path: Path) -> None:
    plant(tmp_path / "step", *OURS, "state.ckpt/mine.txt")
    os.mkfifo(tmp_path / "step" / "ema.safetensors")
    left = remove_own(tmp_path / "step", CHECKPOINT_FILES)
    assert [path.relative_to(tmp_path / "step").as_posix() for path in left] == ["ema.safetensors", "state.ckpt/mine.txt"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["ema.safetensors", "mine.txt", "state.ckpt", "step"]


def test_remove_own_never_removes_through_a_link(tmp_path: Path) -> None:
    elsewhere = plant(tmp_path / "elsewhere", "latest", "checkpoint/a.pt", "state.ckpt")
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "state.ckpt").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert remove_own(tmp_path / "step", CHECKPOINT_FILES) == [tmp_path / "step" / "state.ckpt"]
    assert remove_own(tmp_path / "link", CHECKPOINT_FILES) == [tmp_path / "link"]
    assert all(path.exists() for path in elsewhere)


RUN = (
    "manifest.json",
    "vae/card.json",
    "vae/model.safetensors",
    ".base.new/card.json",
    "cache/train-32x32-17f-1v-all/videos/00000.f16",
    "cache/train-32x32-17f-1v-all/videos/meta.json",
    "training/base/checkpoints/step=00000010/checkpoint.json",
    "training/base/checkpoints/step=00000020.part/state.ckpt",
    "training/base/logs/version_0/events.out.tfevents.1.host.2.0",
    "training/base/logs/version_0/prompts_1.txt",
    "training/base/logs/version_0/metrics.csv",
    "training/base/logs/version_0/wandb/offline-run-20261127_160000-a1b2c3d4/files/media/videos/previews/a.gif",
    "training/base/logs/wandb_run_id",
    "training/base/logs/mlflow/mlflow.db",
    "training/base/logs/mlflow/artifacts/a1b2/artifacts/previews/prompts/step_00000002.gif",
    "training/base/logs/metrics/events.out.tfevents.1.host.2.0",
    "metrics/base_256-clips.json",
    "samples/clip_000.mp4",
    "training/base/logs/version_0/data_1.json",
    "report.html",
    "seconds.json",
    "peak_kib.txt",
    "demo/samples.png",
)


def test_run_files_are_names_below_folders_of_ours() -> None:
    assert not [name for name in ("mine.txt", "vae/mine.txt", "src/vae/card.json", "samples/mine.mp4") if _is_named(name)]
    assert all(map(_is_named, RUN))


def _is_named(name: str) -> bool:
    import re

    return any(re.fullmatch(pattern, name) for pattern in RUN_FILES)


def test_clean_removes_a_run_but_a_file_of_a_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    Manifest.open(run).start("base", {})
    manifest = Manifest.open(run)
    with manifest._edit() as stages:  # a training that has been killed
        stages.clear()
    plant(run, *RUN[1:], "notes/mine.txt")
    main(["clean", "--run", str(run)])
    assert "mine.txt" in capsys.readouterr().out
    assert [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()] == ["notes/mine.txt"]


def test_clean_refuses_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (mine,) = plant(tmp_path, "vae/card.json")
    with pytest.raises(SystemExit, match="is no run, and nothing was removed"):
        main(["clean", "--run", str(tmp_path)])
    assert mine.exists()


@pytest.mark.parametrize("alive", [True, None])  # None: on another machine
def test_clean_refuses_a_run_in_training(alive: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Manifest.open(tmp_path).start("base", {})
    monkeypatch.setattr(Holder, "alive", lambda _: alive)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(SystemExit, match="is in training by process"):
        main(["clean", "--run", str(tmp_path)])
    assert (tmp_path / "manifest.json").exists()
