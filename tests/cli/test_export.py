"""Checkpoints of the program made artifacts (those of every engine: tests/training/callbacks/test_spike_guard.py)."""

import json
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from webdataset.tariterators import tarfile_samples

from tests.helpers.checkpoint_files import describe_again
from tests.helpers.starts import fit, start
from tests.training.test_resume import arguments
from walt_pl.cli import evaluate
from walt_pl.cli import main as cli
from walt_pl.cli.export import export_checkpoint
from walt_pl.runs.artifact import load
from walt_pl.runs.card import ArtifactError
from walt_pl.runs.checkpoint import Checkpoint, CheckpointError, UnsafePickle, read_state
from walt_pl.runs.manifest import Manifest

# Not where the discriminator begins: there the guard begins anew.
SPOIL = "[{class_path: tests.helpers.guarded_training.Spoil, init_args: {factors: {5: 1.0e+4}}}]"


@pytest.fixture(scope="module")
def run(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder of six steps with its discriminator, one step spoilt, and a checkpoint after four."""
    run = tmp_path_factory.mktemp("run")
    index = shutil.copytree(painted.parent, run / "data") / painted.name
    guard = ["--spike_guard.window", "8", "--spike_guard.deviations", "20", "--trainer.callbacks", SPOIL]
    steps = ["--trainer.max_steps", "6", "--trainer.val_check_interval", "6", "--checkpoint.every_n_train_steps", "4"]
    fit(*arguments("vae", run, index, *steps, *guard, "--model.statistics_batches", "3", "--data.videos_per_batch", "4"))
    return run


def checkpoints(run: Path) -> Path:
    return run / "training" / "vae" / "checkpoints"


def test_export_command_makes_the_artifact_that_training_wrote(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = ["--index", str(run / "data" / "index.parquet")]
    with warnings.catch_warnings(action="error", category=UserWarning):
        cli.main(["export", str(checkpoints(run)), "--out", str(tmp_path / "out"), *index])
    left, made = load(run / "vae"), load(tmp_path / "out", verify=True)
    said = capsys.readouterr().out
    assert f"averaged weights of step 6 (single, 1 ranks), sha256 {left.sha256[:12]}" in said
    assert (made.card["files"], made.config) == (left.card["files"], left.config)
    assert made.card["latents"] == left.card["latents"]
    x = torch.randn(1, 3, 5, 16, 16)
    assert torch.equal(made.models["vae"].encode(x).mean, left.models["vae"].encode(x).mean)  # type: ignore[operator]


def test_export_writes_a_model_card_with_the_command_of_the_training(run: Path, tmp_path: Path) -> None:
    """As the training did, without folders of this machine."""
    with pytest.warns(UserWarning, match="no latent statistics"):
        export_checkpoint(checkpoints(run), tmp_path / "out")
    for folder in (run / "vae", tmp_path / "out"):
        text = (folder / "README.md").read_text()
        (command,) = re.findall(r"^```sh\n(python -m walt_pl fit --config .*)\n```$", text, re.MULTILINE)
        assert "--trainer.max_steps 6" in command and str(run) not in text
        assert load(folder).card["training"]["command"] == command
        assert f"| `val/psnr_video` | {load(folder).card['metrics']['values']['val/psnr_video']:.6g} |" in text


def test_export_of_an_older_checkpoint_or_raw_weights_differs(run: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no latent statistics"):
        older, old = export_checkpoint(checkpoints(run) / "step=00000004", tmp_path / "older")
        newest, raw = export_checkpoint(checkpoints(run), tmp_path / "raw", ema=False)
    assert (older.step, newest.step) == (4, 6)
    assert len({old, raw, load(run / "vae").sha256}) == 3
    assert load(tmp_path / "older").card["samples"] == 4 * 6


def test_export_without_an_index_skips_latent_statistics_and_says_what_to_type(run: Path, tmp_path: Path) -> None:
    """Also where the training data lies where it was: nobody has named it."""
    away = shutil.copytree(checkpoints(run), tmp_path / "away")
    with pytest.warns(UserWarning, match=rf"no latent statistics.*export {away} --out {tmp_path / 'out'} --index FILE.parquet"):
        _, sha256 = export_checkpoint(away, tmp_path / "out")
    assert sha256 == load(run / "vae").sha256 and load(tmp_path / "out").card["latents"] is None


def test_export_refuses_an_index_that_is_missing_or_unwanted(run: Path, painted: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--index .*none.parquet: there is no such file; name the index"):
        export_checkpoint(checkpoints(run), tmp_path / "out", index=tmp_path / "none.parquet")
    base = rewritten(run, tmp_path / "base", lambda description: description.update(kind="base"))
    with pytest.raises(ValueError, match="checkpoint of kind base; leave it out"):
        export_checkpoint(base, tmp_path / "out", index=painted)
    other = rewritten(run, tmp_path / "other", lambda description: description["index"].update(sha256="0" * 64))
    with pytest.warns(UserWarning, match="which is not the index that this autoencoder was trained on"):
        export_checkpoint(other, tmp_path / "out", index=painted)


# ---- What a stranger's checkpoint names ----------------------------------------------------------------------------------


def rewritten(run: Path, folder: Path, change: Any) -> Path:
    """A copy of the newest checkpoint, with something else in the description of its artifact; plain values only, as a stranger's has."""
    newest = Checkpoint.newest(checkpoints(run))
    assert newest is not None
    copied = shutil.copytree(newest.path, folder / newest.path.name)
    state = read_state(copied / "state.ckpt")
    change(state["export"])
    torch.save(state, copied / "state.ckpt")
    describe_again(copied)
    return copied


def planted(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Path]:
    """Lines that a stranger may write into a training configuration, and the file that is there once it was run."""
    mark = tmp_path / "ran"
    for tried in (tmp_path / "tried", mark):
        shards = f"pipe:touch {tried}; cat {tmp_path}/none.tar"
        if tried != mark:
            with pytest.raises(Exception, match="pipe:"):
                list(tarfile_samples([{"url": shards}]))
            assert tried.exists(), "the command of this test is a dud"
    module = tmp_path / "strangers_module.py"
    module.write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Stage: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    stage = {"class_path": "strangers_module.Stage"}
    changed: dict[str, dict[str, Any]] = {
        "commands": {"data": {"shards": {"video": shards, "image": shards}, "num_workers": 0}},
        "paths": {"data": {"index": f"pipe:touch {mark}", "vae": f"{tmp_path}/none", "cache_dir": str(mark)}, "init": f"{tmp_path}/none"},
        "classes": {"model": stage, "trainer": {"logger": stage, "callbacks": [stage]}},
    }
    return changed[what], mark


def merged(plain: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    for name, value in changed.items():
        plain[name] = {**plain[name], **value} if isinstance(value, dict) else value
    return plain


STRANGE = pytest.mark.parametrize("what", ["commands", "paths", "classes"])


@STRANGE
@pytest.mark.parametrize("named", [False, True], ids=["without an index", "with an index"])
def test_export_opens_no_path_that_a_checkpoint_names(
    run: Path, painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool, what: str
) -> None:
    changed, mark = planted(what, tmp_path, monkeypatch)

    def change(description: dict[str, Any]) -> None:
        description["train_config"] = yaml.safe_dump(merged(yaml.safe_load(description["train_config"]), changed))

    bad = rewritten(run, tmp_path / "bad", change)
    with warnings.catch_warnings(action="ignore"):
        export_checkpoint(bad, tmp_path / "out", index=painted if named else None)
    assert not mark.exists() and "strangers_module" not in sys.modules
    latents = load(tmp_path / "out").card["latents"]
    assert latents == (load(run / "vae").card["latents"] if named else None)


@STRANGE
def test_evaluate_opens_no_path_that_an_artifact_names_except_its_index(
    run: Path, painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """But the index, where the person names none: a plain file of this machine."""
    changed, mark = planted(what, tmp_path, monkeypatch)
    shutil.copytree(run / "vae", tmp_path / "vae")
    train, plain = tmp_path / "vae" / "train.yaml", yaml.safe_load((run / "vae" / "train.yaml").read_text())
    train.write_text(yaml.safe_dump(merged(plain, changed)))
    data = evaluate._trained_on(train, str(painted))
    assert data.selection("val")["video"].used and data.shards is None and data.vae is None
    if what == "paths":
        with pytest.raises(ValueError, match=r"no index pipe:.*name it with --index FILE.parquet"):
            evaluate._trained_on(train, None)
    else:
        assert evaluate._trained_on(train, None).index == plain["data"]["index"]
    assert not mark.exists() and "strangers_module" not in sys.modules


@pytest.mark.parametrize("value", ["pipe:true", True, 1.5, [1], {"a": 1}, None])
def test_export_refuses_a_stored_value_that_is_not_a_plain_number(run: Path, painted: Path, tmp_path: Path, value: Any) -> None:
    def change(description: dict[str, Any]) -> None:
        description["train_config"] = yaml.safe_dump(merged(yaml.safe_load(description["train_config"]), {"data": {"size": value}}))

    with pytest.raises(ValueError, match=r"data\.size of its training configuration is .*, wanted plain values"):
        export_checkpoint(rewritten(run, tmp_path / "bad", change), tmp_path / "out", index=painted)
    assert not (tmp_path / "out").exists()


def test_fit_refuses_a_checkpoint_with_a_symbolic_link(run: Path, painted: Path, tmp_path: Path) -> None:
    """Named with --ckpt_path, as a folder or as the state in it, and as the newest of the run."""
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("vae"))
    own = tmp_path / "run" / "training" / "vae" / "checkpoints"
    shutil.copytree(checkpoints(run), own)
    last = Checkpoint.newest(own)
    assert last is not None
    (last.path / "state.ckpt").rename(tmp_path / "elsewhere")
    (last.path / "state.ckpt").symlink_to(tmp_path / "elsewhere")
    command = arguments("vae", tmp_path / "run", painted, "--trainer.max_steps", "8", "--data.videos_per_batch", "4")
    Manifest.open(tmp_path / "run").start("vae", {})
    manifest = tmp_path / "run" / "manifest.json"
    plain = json.loads(manifest.read_text())
    plain["stages"]["vae"]["training"]["holder"]["host"] = "elsewhere"  # interrupted, not at work in this process
    manifest.write_text(json.dumps(plain))
    for named in (["--ckpt_path", str(last.path)], ["--ckpt_path", str(last.state)], []):
        refused = start("fit", *command, *named)
        assert refused.wait() == 1 and "is a symbolic link to" in refused.said and "step 7/" not in refused.said
    with pytest.raises(CheckpointError, match="is a symbolic link to"):
        export_checkpoint(last.path, tmp_path / "out")


def test_export_failure_names_the_reason_and_writes_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no whole checkpoint; name a folder such as"):
        export_checkpoint(tmp_path, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ArtifactError, match=r"thesis.txt"):
        export_checkpoint(checkpoints(run), tmp_path / "mine")
    assert not (tmp_path / "out").exists() and [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("strategy", ["single", "zero2"])
def test_export_refuses_a_checkpoint_with_code_and_runs_none_of_it(strategy: str, tmp_path: Path) -> None:
    folder, trace = tmp_path / "step=00000001", tmp_path / "ran"
    state = folder / "state.ckpt"
    if strategy == "single":
        folder.mkdir()
        files = [state]
    else:
        (state / "checkpoint").mkdir(parents=True)
        (state / "latest").write_text("checkpoint")
        files = [state / "checkpoint" / name for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")]
        torch.save({}, files[0])
    torch.save({"state_dict": Bomb(trace)}, files[-1])
    card = {"format": 2, "step": 1, "samples": 1, "strategy": strategy, "world_size": 1, "files": {}}
    (folder / "checkpoint.json").write_text(json.dumps(card))
    with pytest.raises(UnsafePickle, match="is refused"):
        export_checkpoint(folder, tmp_path / "out")
    assert not trace.exists() and not (tmp_path / "out").exists()


def test_spike_guard_writes_incidents_into_the_training_folder(run: Path) -> None:
    (file,) = (run / "training" / "vae" / "incidents").iterdir()
    incident = json.loads(file.read_text())
    assert (file.name, incident["step"], incident["action"]) == ("step=00000005.json", 5, "skipped")
    assert all(Path(clip["path"]).exists() for rank in incident["ranks"] for batch in rank["files"] for clip in batch)
