"""`walt export RUN --dtype bfloat16`: a run of its own, whose artifacts name each other."""

import os
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_artifact import rewrite_card
from tests.helpers.tiny_stages import write_stages
from walt_pl.cli.main import main
from walt_pl.runs.artifact import load
from walt_pl.runs.card import ArtifactError, read_card
from walt_pl.runs.evaluations import add_evaluations
from walt_pl.runs.manifest import Manifest, StaleStage
from walt_pl.runs.status import verify_run
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of three stages that name their parents, with figures of a validation and an evaluation."""
    root = tmp_path / "run"
    manifest, parents = Manifest.open(root), {}
    for stage, folder in write_stages(root).items():
        metrics = {"protocol": "view 0", "values": {"val/loss": 0.5}}
        rewrite_card(folder, parents=dict(parents), steps=7, code="ab" * 20, created="2026-01-31T12:00:00+00:00", metrics=metrics)
        manifest.finish(stage, folder)
        if stage in ("vae", "base"):
            parents[stage] = str(manifest.sha256(stage))
    add_evaluations(root / "base", parents["base"], [{"metric": "fvd", "value": 46.5}])
    return root


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_export_run_rounds_weights_and_leaves_a_run_that_verifies(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, before = tmp_path / "out", files(run)
    main(["export", str(run), "--dtype", "bfloat16", "--out", str(out)])
    said = capsys.readouterr().out
    source, made = Manifest.open(run), Manifest.open(out)
    assert files(run) == before and verify_run(out) == [] and set(made.usable(["vae", "base", "sr1"])) == {"vae", "base", "sr1"}
    for stage in ("vae", "base", "sr1"):
        old, new = load(run / stage), load(out / stage)
        assert new.config == old.config and new.sha256 != old.sha256 and new.card["converted_from"] == old.sha256
        assert new.card["parents"] == {parent: made.sha256(parent) for parent in old.card["parents"]}
        assert [new.card[name] for name in ("steps", "code", "created", "latents")] == [
            7,
            "ab" * 20,
            "2026-01-31T12:00:00+00:00",
            old.card["latents"],
        ]
        assert new.card["metrics"] == {"protocol": "view 0; before the weights were rounded to bfloat16", "values": {"val/loss": 0.5}}
        assert f"{out / stage}: bfloat16, " in said and new.sha256[:12] in said
        for name, model in old.models.items():
            rounded = {key: value.bfloat16().float() if value.is_floating_point() else value for key, value in model.state_dict().items()}
            assert all(torch.equal(value, rounded[key]) for key, value in new.models[name].state_dict().items())
        text = (out / stage / "README.md").read_text()
        assert f"rounded from the float32 weights with sha256 `{old.sha256}`" in text and "46.5" not in text
    assert load(out / "base").read("tokenizer.model") == load(run / "base").read("tokenizer.model")
    assert source.sha256("vae") in read_card(run / "base")["parents"].values()
    clips = Cascade.open(out).video(SampleRequest(["a plain red circle moving left"], seeds=[0]), SamplingConfig(1), 9)
    assert clips.shape == (1, 3, 9, 32, 32)


def test_export_run_again_gives_equal_weights(run: Path, tmp_path: Path) -> None:
    """In its place, and of the rounded run itself."""
    words = ["--dtype", "bfloat16", "--out"]
    main(["export", str(run), *words, str(tmp_path / "out")])
    hashes = {stage: record.artifact.sha256 for stage, record in Manifest.open(tmp_path / "out").stages().items() if record.artifact}
    main(["export", str(run), *words, str(tmp_path / "out")])
    main(["export", str(tmp_path / "out"), *words, str(tmp_path / "again")])
    for name in ("out", "again"):
        assert {stage: Manifest.open(tmp_path / name).sha256(stage) for stage in hashes} == hashes and verify_run(tmp_path / name) == []


def test_export_run_refuses_what_would_lose_weights_or_is_no_run(run: Path, tmp_path: Path) -> None:
    before = files(run)
    for words, message in (
        ([str(run), "--out", str(run)], "is the run itself, whose weights would be lost"),
        ([str(run / "base"), "--out", str(tmp_path / "out")], "has no manifest.json: name one, such as runs/shapes"),
        ([str(run), "--out", str(tmp_path / "out"), "--ema", "false"], "--ema and --index are of checkpoints"),
        ([str(run), "--out", str(tmp_path / "out"), "--index", "x.parquet"], "--ema and --index are of checkpoints"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["export", "--dtype", "bfloat16", *words])
    other = Manifest.open(tmp_path / "other")
    other.adopt("vae", run / "vae")
    with pytest.raises(SystemExit, match=r"is the artifact that .*other uses"):
        main(["export", str(other.run_dir), "--dtype", "bfloat16", "--out", str(run)])
    assert files(run) == before and not (tmp_path / "out").exists()
    (tmp_path / "mine" / "base").mkdir(parents=True)
    (tmp_path / "mine" / "base" / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"thesis.txt"):
        main(["export", str(run), "--dtype", "bfloat16", "--out", str(tmp_path / "mine")])
    assert list(files(tmp_path / "mine")) == ["base/thesis.txt"]


def test_export_run_refuses_a_stale_stage(run: Path, tmp_path: Path) -> None:
    rewrite_card(run / "base", parents={"vae": "0" * 64})
    Manifest.open(run).finish("base", run / "base")
    with pytest.raises(SystemExit, match="stale"):
        main(["export", str(run), "--dtype", "bfloat16", "--out", str(tmp_path / "out")])
    assert issubclass(StaleStage, ValueError) and issubclass(ArtifactError, ValueError)


def test_manifest_of_a_small_copied_run_stays_as_it_is(run: Path) -> None:
    """A run of a few megabytes that git keeps: its files have other times in each checkout."""
    manifest, before = Manifest.open(run), files(run)
    os.utime(run / "vae" / "model.safetensors", ns=(0, 10**18))
    assert set(manifest.usable(["vae", "base"])) == {"vae", "base"} and verify_run(run) == []
    assert files(run) == before
