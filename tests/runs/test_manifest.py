"""Promises of walt_pl/runs/manifest.py: no stage starts from a parent that is missing, changed or stale."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from torch import nn

from walt_pl import lock as lock_module
from walt_pl.runs import artifact, card, manifest
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.runs.card import ArtifactError
from walt_pl.runs.manifest import ChangedStage, Manifest, MissingStage, StaleStage
from walt_pl.runs.stage_names import LockedManifest, ManifestError, kind_of, parents_of
from walt_pl.runs.status import render_status, status_rows, verify_run


@dataclass(frozen=True)
class TinyConfig:
    width: int = 2


class Tiny(nn.Linear):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config.width, config.width)
        self.config = config


@pytest.fixture(autouse=True)
def tiny_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (__name__, "Tiny", "TinyConfig")
    monkeypatch.setattr(artifact, "COMPONENTS", {"vae": names, "denoiser": names})


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the experiment shapes, in a checkout."""
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path / "experiments" / "shapes", "vae", "base", "sr1", "sr2")
    return tmp_path / "runs" / "shapes"


def write_experiment(folder: Path, *stages: str) -> Path:
    folder.mkdir(parents=True)
    for stage in stages:
        (folder / f"{stage}.yaml").touch()
    return folder


def export(run_dir: Path, stage: str, parents: Mapping[str, str]) -> Path:
    section = "vae" if stage == "vae" else "denoiser"
    save_artifact(
        run_dir / stage,
        kind=kind_of(stage),
        models={section: Tiny(TinyConfig())},
        sampling_config={},
        card={"parents": dict(parents)},
        train_config="",
    )
    return run_dir / stage


def train(run_dir: Path, *stages: str) -> Manifest:
    """Train stages as the program does: check the parents, start, export, finish."""
    chain = Manifest.open(run_dir)
    for stage in stages:
        parents = chain.check_parents(stage)
        chain.start(stage, parents)
        chain.finish(stage, export(run_dir, stage, parents))
    return chain


def states(chain: Manifest) -> dict[str, str]:
    return {stage: chain.state(stage) for stage in ("vae", "base", "sr1")}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_manifest_state_goes_from_missing_to_done(run_dir: Path) -> None:
    chain = Manifest.open(run_dir)
    assert chain.state("vae") == "missing" and not run_dir.exists()
    chain.start("vae", {})
    assert chain.state("vae") == "training"
    chain.finish("vae", export(run_dir, "vae", {}))
    assert chain.state("vae") == "done"
    record = json.loads((run_dir / "manifest.json").read_text())["stages"]["vae"]["artifact"]
    assert record["path"] == "vae" and record["sha256"] == artifact.load(run_dir / "vae").sha256
    assert set(record["files"]) == {p.name for p in (run_dir / "vae").iterdir()} - {"README.md"}
    assert sorted(p.name for p in run_dir.iterdir()) == ["manifest.json", "vae"]


def test_manifest_stages_are_in_order_with_their_parents(run_dir: Path) -> None:
    chain = train(run_dir, "vae", "base", "sr2", "sr1")
    assert list(chain.stages()) == ["vae", "base", "sr1", "sr2"]
    assert [parents_of(stage) for stage in chain.stages()] == [(), ("vae",), ("vae", "base"), ("vae", "base")]
    found = {stage: record.artifact for stage, record in chain.stages().items()}
    assert found["sr1"] and found["vae"] and found["base"]
    assert found["sr1"].parents == {"vae": found["vae"].sha256, "base": found["base"].sha256}
    with pytest.raises(ManifestError, match='unknown stage "bass"'):
        chain.check_parents("bass")


@pytest.mark.parametrize(
    ("trained", "stage", "missing", "command"),
    [
        ((), "base", "vae", "make train-vae EXP=shapes"),
        ((), "sr1", "vae", "make train-vae EXP=shapes"),
        (("vae",), "sr2", "base", "make train-base EXP=shapes"),
    ],
)
def test_manifest_names_a_missing_parent_with_the_command_that_makes_it(
    run_dir: Path, trained: tuple[str, ...], stage: str, missing: str, command: str
) -> None:
    chain = train(run_dir, *trained)
    with pytest.raises(MissingStage) as error:
        chain.check_parents(stage)
    assert str(error.value) == f'stage "{stage}" needs stage "{missing}", which is missing in {run_dir}; make it with: {command}'


def test_manifest_holds_several_base_models_in_one_run(run_dir: Path) -> None:
    chain = train(run_dir, "vae", "base_xl", "base_l_separate", "base_l")
    assert list(chain.stages()) == ["vae", "base_l", "base_xl", "base_l_separate"]
    assert parents_of("base_xl") == ("vae",) and kind_of("base_xl") == "base"
    assert [row.stage for row in status_rows(run_dir)] == ["vae", "base_l", "base_xl", "base_l_separate"]
    with pytest.raises(MissingStage, match='"sr1" needs stage "base"'):
        chain.check_parents("sr1")


def test_manifest_parent_whose_folder_was_removed_is_missing(run_dir: Path) -> None:
    chain = train(run_dir, "vae", "base")
    shutil.rmtree(run_dir / "vae")
    assert chain.state("vae") == "missing"
    with pytest.raises(MissingStage, match=r"make train-vae EXP=shapes$"):
        chain.check_parents("base")
    assert any("no artifact" in problem for problem in verify_run(run_dir))


def test_manifest_parent_in_its_first_training_is_not_finished(run_dir: Path) -> None:
    chain = Manifest.open(run_dir)
    chain.start("vae", {})
    with pytest.raises(MissingStage, match=rf"not finished \(begun by process {os.getpid()}.*make train-vae EXP=shapes$"):
        chain.check_parents("base")


def test_manifest_stale_propagates_from_vae_to_base_to_super_resolution(run_dir: Path) -> None:
    chain = train(run_dir, "vae", "base", "sr1")
    assert states(chain) == {"vae": "done", "base": "done", "sr1": "done"}
    train(run_dir, "vae")
    assert states(chain) == {"vae": "done", "base": "stale", "sr1": "stale"}
    train(run_dir, "base")
    assert states(chain) == {"vae": "done", "base": "done", "sr1": "stale"}
    train(run_dir, "sr1")
    assert states(chain) == {"vae": "done", "base": "done", "sr1": "done"}
    assert "stale" not in (run_dir / "manifest.json").read_text()


def test_manifest_child_of_a_stale_stage_is_stale(run_dir: Path) -> None:
    chain = train(run_dir, "vae", "base")
    parents = {"base": chain.check_parents("sr1")["base"]}
    chain.start("sr1", parents)
    chain.finish("sr1", export(run_dir, "sr1", parents))
    assert chain.state("sr1") == "done"
    train(run_dir, "vae")
    assert chain.state("sr1") == "stale"


def test_manifest_stage_exported_again_with_equal_weights_leaves_its_children_valid(run_dir: Path) -> None:
    chain = train(run_dir, "vae", "base")
    chain.start("vae", {})
    chain.finish("vae", run_dir / "vae")
    assert chain.state("base") == "done"


def test_manifest_refuses_a_stale_stage_unless_allowed(run_dir: Path) -> None:
    chain = train(run_dir, "vae", "base")
    train(run_dir, "vae")
    with pytest.raises(StaleStage, match=r'"base", which is stale.*"vae" has changed.*--allow-stale.*make train-base EXP=shapes$'):
        chain.check_parents("sr1")
    with pytest.raises(StaleStage, match=r"sampling needs.*--allow-stale.*make train-base EXP=shapes$"):
        chain.usable(["vae", "base"])
    assert set(chain.check_parents("sr1", allow_stale=True)) == {"vae", "base"}
    assert chain.usable(["base", "vae"], allow_stale=True) == {"vae": run_dir / "vae", "base": run_dir / "base"}
    shutil.rmtree(run_dir / "base")
    with pytest.raises(MissingStage):
        chain.usable(["vae", "base"], allow_stale=True)


def test_manifest_keeps_the_old_artifact_usable_until_new_training_is_finished(run_dir: Path) -> None:
    chain = train(run_dir, "vae", "base")
    chain.start("vae", {})
    assert states(chain) == {"vae": "training", "base": "done", "sr1": "missing"}
    assert set(chain.usable(["vae", "base"])) == {"vae", "base"}


@pytest.mark.parametrize("name", ["model.safetensors", "model.yaml", "train.yaml", "card.json"])
def test_verify_run_finds_a_flipped_byte_in_any_file(run_dir: Path, name: str) -> None:
    chain = train(run_dir, "vae", "base")
    assert verify_run(run_dir) == []
    path = run_dir / "vae" / name
    if not path.stat().st_size:
        path.write_bytes(b"x")
    else:
        flip(path)
    (problem,) = verify_run(run_dir)
    assert problem.startswith('stage "vae"') and str(path) in problem and problem.endswith("make train-vae EXP=shapes FRESH=1")
    with pytest.raises(ChangedStage, match=rf"{name} do not match.*make train-vae EXP=shapes FRESH=1$"):
        chain.check_parents("base", allow_stale=True)


def test_verify_run_finds_a_flipped_byte_that_keeps_size_and_time(run_dir: Path) -> None:
    train(run_dir, "vae")
    weights = run_dir / "vae" / "model.safetensors"
    stat = weights.stat()
    flip(weights)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(verify_run(run_dir)) == 1


def test_manifest_reads_bytes_only_where_size_or_time_changed(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = train(run_dir, "vae")
    read: list[Path] = []

    def reads(path: Path, *, fresh: bool = False) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(card, "file_sha256", reads)
    monkeypatch.setattr(manifest, "REMEMBERED_BYTES", 0)
    chain.check_parents("base")
    assert read == []
    weights = run_dir / "vae" / "model.safetensors"
    os.utime(weights, ns=(0, 10**18))  # as in a run that was copied
    chain.check_parents("base")
    chain.check_parents("base")
    assert read == [weights]


def test_manifest_names_a_crash_between_artifact_and_manifest(run_dir: Path) -> None:
    chain = train(run_dir, "vae", "base")
    chain.start("vae", {})
    export(run_dir, "vae", {})  # killed here, before `finish`
    with pytest.raises(ChangedStage, match=r"make train-vae EXP=shapes FRESH=1$"):
        chain.usable(["vae", "base"])
    chain.finish("vae", run_dir / "vae")
    assert states(chain) == {"vae": "done", "base": "stale", "sr1": "missing"}


def test_manifest_finish_refuses_a_card_with_other_parents(run_dir: Path) -> None:
    chain = train(run_dir, "vae")
    chain.start("base", chain.check_parents("base"))
    folder = export(run_dir, "base", {"vae": "0" * 64})
    with pytest.raises(ManifestError, match=r"names parents.*make train-base EXP=shapes"):
        chain.finish("base", folder)
    assert chain.state("base") == "training"


def test_manifest_start_refuses_a_folder_where_the_artifact_cannot_be_written(run_dir: Path) -> None:
    (run_dir / "vae" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="checkpoints"):
        Manifest.open(run_dir).start("vae", {})


def test_manifest_start_refuses_two_trainings_of_a_stage_and_resumes_a_killed_one(run_dir: Path) -> None:
    chain = Manifest.open(run_dir)
    chain.start("vae", {})
    path = run_dir / "manifest.json"
    plain = json.loads(path.read_text())
    holder = plain["stages"]["vae"]["training"]["holder"]
    with subprocess.Popen(["sleep", "30"]) as other:
        try:
            holder.update(pid=other.pid, born=lock_module._born(other.pid))
            path.write_text(json.dumps(plain))
            with pytest.raises(LockedManifest, match=rf'"vae".*in training by process {other.pid}'):
                chain.start("vae", {})
        finally:
            other.kill()
    chain.start("vae", {})


def test_manifest_interrupted_write_leaves_the_old_one(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = train(run_dir, "vae")
    before = (run_dir / "manifest.json").read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chain.start("vae", {})
    assert (run_dir / "manifest.json").read_bytes() == before
    assert sorted(p.name for p in run_dir.iterdir()) == ["manifest.json", "vae"]


def test_manifest_that_cannot_be_read_is_named(run_dir: Path) -> None:
    run_dir.mkdir(parents=True)
    for text, message in (
        ("{", "not a manifest"),
        ('{"format": 9}', "format version 9 .*use the version of walt_pl that wrote it"),
        ('{"format": 1}', "not a manifest"),
    ):
        (run_dir / "manifest.json").write_text(text)
        with pytest.raises(ManifestError, match=f"manifest.json.*{message}"):
            Manifest.open(run_dir)


def test_manifest_of_a_read_only_run_is_usable(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = train(run_dir, "vae")
    os.utime(run_dir / "vae" / "model.yaml", ns=(0, 10**18))

    def read_only(*_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(lock_module, "_take", read_only)
    assert chain.usable(["vae"]) == {"vae": run_dir / "vae"}


def test_manifest_of_a_copied_run_is_usable_without_new_training(run_dir: Path, tmp_path: Path) -> None:
    train(run_dir, "vae", "base")
    shutil.copytree(run_dir, tmp_path / "copy", copy_function=shutil.copyfile)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(Manifest.open(tmp_path / "copy").usable(["vae", "base"])) == {"vae", "base"}
    assert verify_run(tmp_path / "copy") == []


def test_status_shows_every_stage_with_the_next_command(run_dir: Path) -> None:
    train(run_dir, "vae", "base")
    train(run_dir, "vae")
    rows = {row.stage: row for row in status_rows(run_dir, ["vae", "base", "sr1"])}
    assert [(row.state, row.command) for row in rows.values()] == [
        ("done", ""),
        ("stale", "make train-base EXP=shapes"),
        ("not started", "python -m walt_pl fit --config experiments/shapes/sr1.yaml"),
    ]
    assert rows["sr1"].sha256 is None and set(rows["base"].parents) == {"vae"}
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(render_status(run_dir, list(rows.values())))
    text = console.export_text()
    assert "stale" in text and "not started" in text and (rows["vae"].sha256 or "")[:12] in text


def test_verify_run_of_a_missing_run_names_those_that_exist(run_dir: Path) -> None:
    train(run_dir, "vae")
    with pytest.raises(ManifestError, match=r"runs/typo is no run.*there are: runs/shapes\. Type: python -m walt_pl verify --run RUN"):
        verify_run("runs/typo")


def test_verify_run_reports_stale_stages(run_dir: Path) -> None:
    train(run_dir, "vae", "base", "sr1")
    train(run_dir, "vae")
    assert [problem.split()[1] for problem in verify_run(run_dir)] == ['"base"', '"sr1"']


# ---- What to type -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "stage", "fresh", "command"),
    [
        ("runs/shapes", "base", False, "make train-base EXP=shapes"),
        ("runs/shapes", "base", True, "make train-base EXP=shapes FRESH=1"),
        ("runs/ucf101", "base_xl", False, "make train-base EXP=ucf101 STAGE=base_xl"),
        ("disk/shapes", "vae", True, 'make train-vae EXP=shapes FRESH=1 ARGS="--run disk/shapes"'),
        # Alone: make train-sr trains sr1, too.
        ("runs/shapes", "sr2", True, "python -m walt_pl fit --config experiments/shapes/sr2.yaml --from_scratch true"),
        ("my runs/shapes", "sr2", False, "python -m walt_pl fit --config experiments/shapes/sr2.yaml --run 'my runs/shapes'"),
        # Nobody knows the experiment.
        ("runs/patch_1", "vae", False, "python -m walt_pl fit --config experiments/EXP/vae.yaml --run runs/patch_1"),
    ],
)
def test_manifest_command_trains_the_stage_of_the_run(run_dir: Path, run: str, stage: str, fresh: bool, command: str) -> None:
    write_experiment(Path("experiments/ucf101"), "base_l", "base_xl")
    assert Manifest.open(run).command(stage, fresh) == command


def test_manifest_command_names_the_experiment_of_a_run_of_another_name(run_dir: Path, tmp_path: Path) -> None:
    chain = Manifest.open("runs/patch_1", Path("experiments/shapes"))
    with pytest.raises(MissingStage, match=r'make it with: make train-vae EXP=shapes ARGS="--run runs/patch_1"$'):
        chain.check_parents("base")
    elsewhere = write_experiment(tmp_path / "mine", "vae")
    assert Manifest.open("runs/mine", elsewhere).command("vae") == f"python -m walt_pl fit --config {elsewhere}/vae.yaml"


def test_manifest_command_of_an_overlay_stage_uses_its_stored_configuration(run_dir: Path) -> None:
    chain = train(run_dir, "vae", "base_rank_16")
    train(run_dir, "vae")
    again = f"python -m walt_pl fit --config {run_dir}/base_rank_16/train.yaml --run {run_dir} --from_scratch false"
    assert [row.command for row in status_rows(run_dir) if row.state == "stale"] == [again]
    assert chain.command("base_rank_16", from_scratch=True) == again.replace("false", "true")


# ---- Artifacts of other runs, and those made by hand ------------------------------------------------------------------


def test_manifest_adopt_makes_an_artifact_a_stage_of_the_run(run_dir: Path, tmp_path: Path) -> None:
    train(run_dir, "vae", "base")
    chain = Manifest.open(tmp_path / "runs" / "other")
    chain.adopt("vae", run_dir / "vae")
    chain.start("base", parents := chain.check_parents("base"))
    chain.finish("base", export(chain.run_dir, "base", parents))
    assert parents == {"vae": artifact.load(run_dir / "vae").sha256}
    assert (chain.state("vae"), chain.state("base"), verify_run(chain.run_dir)) == ("done", "done", [])
    assert chain.folder("vae").resolve() == run_dir / "vae" and chain.folder("base") == chain.run_dir / "base"
    assert {stage: path.resolve() for stage, path in chain.usable(["vae", "base"]).items()} == {
        "vae": run_dir / "vae",
        "base": chain.run_dir / "base",
    }
    before = chain.path.read_bytes()
    chain.adopt("vae", run_dir / "vae")
    assert chain.path.read_bytes() == before
    train(run_dir, "vae")  # other weights in the same folder
    chain.adopt("vae", run_dir / "vae")
    assert (chain.state("vae"), chain.state("base")) == ("done", "stale")


def test_manifest_adopt_refuses_an_artifact_in_place_of_a_trained_one(run_dir: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "runs" / "other", "vae", "base")
    chain = train(run_dir, "vae")
    sha256 = artifact.load(run_dir / "vae").sha256[:12]
    with pytest.raises(ManifestError, match=rf"other/vae .* is not the vae of .*shapes, which has trained its own .{sha256}.*--run DIR"):
        chain.adopt("vae", other.run_dir / "vae")
    with pytest.raises(ManifestError, match=r'other/base is of kind "base", and the vae of a run is of kind "vae"'):
        chain.adopt("vae", other.run_dir / "base")
    with pytest.raises(ArtifactError, match="is not a folder"):
        chain.adopt("base", tmp_path / "nowhere")
    chain.adopt("base", other.run_dir / "base")
    with pytest.raises(StaleStage, match='"base", which is stale'):  # it was trained from the other autoencoder
        chain.check_parents("sr1")
    chain.adopt("vae", Path(shutil.copytree(run_dir / "vae", tmp_path / "copy")))  # the same one
    chain.start("vae", {})
    with pytest.raises(ManifestError, match="which has"):
        chain.adopt("vae", other.run_dir / "vae")
    assert artifact.load(chain.folder("vae")).sha256[:12] == sha256
