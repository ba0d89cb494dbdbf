"""Cards, manifests and configurations of a stranger: nothing of them is run, opened elsewhere, or printed as a command of the terminal."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.attack.artifacts import changed, spoil_file, write_run
from tests.helpers.tiny_artifact import rewrite_card
from walt_pl.cli.main import main
from walt_pl.runs.artifact import load
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.runs.card import ArtifactError, verify_artifact
from walt_pl.runs.manifest import Manifest, stored_note
from walt_pl.runs.model_limits import MAX_LAYERS
from walt_pl.runs.stage_names import ManifestError
from walt_pl.runs.status import status_rows, verify_run
from walt_pl.sampling.cascade import Cascade


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def edit_manifest(run: Path, path: str, value: object) -> None:
    plain = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(changed(plain, path, value)))


def test_verify_never_tells_the_hash_of_a_linked_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_bytes(b"mine")
    (run / "vae" / "model.yaml").unlink()
    (run / "vae" / "model.yaml").symlink_to(secret)
    with pytest.raises(SystemExit) as ended:
        main(["verify", "--run", str(run)])
    said = str(ended.value) + "".join(capsys.readouterr())
    assert "is a symbolic link" in said and hashlib.sha256(b"mine").hexdigest() not in said
    assert hashlib.sha256(b"mine").hexdigest()[:12] not in said


def test_verify_never_tells_the_hash_of_a_file_that_differs(run: Path) -> None:
    data = (run / "vae" / "train.yaml").read_bytes() + b"# more\n"
    (run / "vae" / "train.yaml").write_bytes(data)
    edit_manifest(run, "stages/vae/artifact/files/train.yaml/bytes", len(data))
    (problem,) = verify_run(run)
    assert "do not match" in problem and hashlib.sha256(data).hexdigest() not in problem


@pytest.mark.parametrize("name", ["../../id_rsa", "/etc/passwd", "id_rsa"])
def test_manifest_refuses_files_that_no_artifact_has(run: Path, name: str) -> None:
    plain = json.loads((run / "manifest.json").read_text())
    plain["stages"]["vae"]["artifact"]["files"][name] = {"sha256": "0" * 64, "bytes": 4, "mtime_ns": 1}
    (run / "manifest.json").write_text(json.dumps(plain))
    with pytest.raises(ManifestError, match="wanted files of an artifact"):
        verify_run(run)


@pytest.mark.parametrize("pid", [-1, 0, 10**30])
def test_manifest_refuses_a_process_that_kill_would_take_for_many(run: Path, pid: int) -> None:
    holder = {"host": "x", "pid": pid, "born": None, "time": "2026-01-31T12:00:00+00:00"}
    edit_manifest(run, "stages/base/training", {"holder": holder, "parents": {}, "stop": None})
    with pytest.raises(ManifestError, match="pid is"):
        status_rows(run)


def test_manifest_keeps_an_artifact_that_a_person_adopted_from_outside(run: Path, tmp_path: Path) -> None:
    chain = Manifest.open(tmp_path / "other")
    chain.adopt("vae", run / "vae")
    assert chain.stages()["vae"].artifact.path == "../run/vae"  # type: ignore[union-attr]
    assert verify_run(tmp_path / "other") == [] and chain.usable(["vae"])
    assert "train.yaml" not in chain.command("vae"), "the stored configuration of another run is not offered"


def test_stored_configuration_is_offered_with_a_warning(run: Path) -> None:
    chain = Manifest.open(run)
    assert stored_note([chain.command("vae")]).startswith(f"read {run / 'vae' / 'train.yaml'} first")
    assert chain.advice("vae").endswith("fit runs the classes that it names")
    assert stored_note(["make train-vae EXP=shapes", "python -m walt_pl fit --config experiments/shapes/vae.yaml"]) == ""


def test_errors_are_printed_without_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a\x1b]0;title\x07"
    folder.mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["verify", "--run", str(folder)])
    assert "\\x1b]0;title\\x07" in str(ended.value) and "\x1b" not in str(ended.value)


@pytest.mark.parametrize("command", ["curl x | sh", "python -m walt_pl fit; id", "python -m walt_pl fit `id`"])
def test_status_offers_no_command_that_is_not_fit(run: Path, command: str) -> None:
    holder = {"host": "x", "pid": 4, "born": None, "time": "2026-01-31T12:00:00+00:00"}
    edit_manifest(run, "stages/base/training", {"holder": holder, "parents": {}, "stop": {"step": 1, "max_steps": 2}})
    folder = run / "training" / "base"
    folder.mkdir(parents=True)
    progress = {"step": 1, "total": 2, "steps_per_second": 1.0, "checkpoints": "x", "time": "2126-01-31T12:00:00+00:00"}
    for known in ("python -m walt_pl fit --config x.yaml", command):
        (folder / "progress.json").write_text(json.dumps({**progress, "command": known}))
        (row,) = [row for row in status_rows(run) if row.stage == "base"]
        assert (row.command == known) == (known != command)


def test_load_artifact_limits_sizes_before_the_weights_are_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load((run / "base" / "model.yaml").read_text())
    config["denoiser"]["depth"] = MAX_LAYERS + 1
    spoil_file(run, "base", "model.yaml", yaml.safe_dump(config).encode())
    with pytest.raises(ArtifactError, match=f"has {MAX_LAYERS + 1} layers, wanted at most {MAX_LAYERS}"):
        load(run / "base")


def test_load_artifact_compares_sizes_with_the_header_before_memory_is_taken(run: Path) -> None:
    """A vocabulary of a million words of width 100,000 would take 400 GB."""
    config = yaml.safe_load((run / "base" / "model.yaml").read_text())
    config["text"] |= {"width": 100_000, "vocab_size": 1_000_000}
    spoil_file(run, "base", "model.yaml", yaml.safe_dump(config).encode())
    with pytest.raises(ArtifactError, match=r"text\.embedding\.weight .found \[64, 16\], wanted \[1000000, 100000\]"):
        load(run / "base")


def test_load_artifact_refuses_weights_that_are_not_finite(run: Path) -> None:
    weights = (run / "vae" / "model.safetensors").read_bytes()
    spoil_file(run, "vae", "model.safetensors", weights[:-4] + b"\0\0\xc0\x7f")
    with pytest.raises(ArtifactError, match=r"1 of .* values of vae\.\S+ are nan or infinite"):
        load(run / "vae")


def test_load_artifact_requires_a_card_that_lists_its_configuration(run: Path) -> None:
    files = json.loads((run / "vae" / "card.json").read_text())["files"]
    del files["model.yaml"]
    rewrite_card(run / "vae", files=files)
    with pytest.raises(ArtifactError, match=r"does not list model\.yaml"):
        load(run / "vae")
    assert len(verify_artifact(run / "vae")) == 1


def test_save_artifact_refuses_a_card_that_load_would_refuse(made: Path, tmp_path: Path) -> None:
    vae = load(made / "vae").models
    with pytest.raises(ValueError, match="parents: vae is 'x', wanted 64 hexadecimal digits"):
        save_artifact(tmp_path / "vae", kind="vae", models=vae, sampling_config={}, card={"parents": {"vae": "x"}}, train_config="")
    assert not (tmp_path / "vae").exists()


def test_save_artifact_leaves_out_names_of_classes_that_load_would_refuse(made: Path, tmp_path: Path) -> None:
    vae = load(made / "vae").models
    classes = {number: f"class {number} " + "x" * 20 for number in range(25_000)}
    imagenet_21k = dict(list(classes.items())[:21_841])
    save_artifact(tmp_path / "vae", kind="vae", models=vae, sampling_config={"classes": imagenet_21k}, card={}, train_config="")
    assert load(tmp_path / "vae").config["classes"] == imagenet_21k
    with pytest.warns(UserWarning, match="names of 25,000 classes are left out: model.yaml has more than 50,000 values"):
        save_artifact(tmp_path / "vae", kind="vae", models=vae, sampling_config={"classes": classes}, card={}, train_config="")
    assert set(load(tmp_path / "vae").config) == {"vae"}


def test_sample_refuses_latent_statistics_of_other_channels(run: Path) -> None:
    rewrite_card(run / "vae", latents={"mean": [0.0], "std": [1.0]})
    with pytest.raises(ValueError, match="latent statistics of 1 channels, and the denoiser has 8"):
        Cascade({"vae": run / "vae", "base": run / "base"})
