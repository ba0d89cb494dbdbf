"""The command after a stage is done."""

import json
import shutil
from pathlib import Path

import pytest

from tests.runs.test_manifest import export, run_dir, tiny_sections, train, write_experiment
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.next_command import next_command
from walt_pl.runs.stop_record import StopRecord

__all__ = ["run_dir", "tiny_sections"]  # fixtures


def test_next_command_trains_the_first_stage_that_is_not_done(run_dir: Path) -> None:
    assert next_command(train(run_dir, "vae")) == "make train-base EXP=shapes"
    assert next_command(train(run_dir, "base")) == "python -m walt_pl fit --config experiments/shapes/sr1.yaml"
    chain = train(run_dir, "sr1", "sr2")
    (run_dir / "base" / "model.yaml").write_text("denoiser: {text_width: 8}\n")
    assert next_command(chain) == f"python -m walt_pl sample --run {run_dir} --prompt TEXT"
    train(run_dir, "vae")
    assert next_command(chain) == "make train-base EXP=shapes", "it is stale"


def test_next_command_leaves_out_stages_in_training_and_names_stopped_ones(run_dir: Path) -> None:
    chain = train(run_dir, "vae")
    chain.start("base", chain.check_parents("base"))
    assert next_command(chain).endswith("sr1.yaml")
    chain.stop("base", StopRecord(3, 9))
    assert next_command(chain) == "make train-base EXP=shapes"


def test_next_command_takes_a_base_of_another_name_for_the_base(run_dir: Path) -> None:
    shutil.rmtree("experiments/shapes")
    write_experiment(Path("experiments/shapes"), "vae", "base", "base_l")
    assert next_command(train(run_dir, "vae", "base_l")).startswith("python -m walt_pl sample")


def test_next_command_of_an_autoencoder_alone_scores_it(run_dir: Path) -> None:
    alone = run_dir.with_name("unknown")  # an experiment of this name is not installed with the program either
    assert next_command(train(alone, "vae")) == f"python -m walt_pl evaluate {alone}"


def test_manifest_stop_is_kept_until_the_next_start(run_dir: Path) -> None:
    chain = train(run_dir, "vae")
    chain.start("vae", {})
    chain.stop("vae", StopRecord(38, 5000))
    assert chain.state("vae") == "stopped" and str(chain.stages()["vae"].training and chain.stages()["vae"].training.stop) == (
        "stopped at step 38 of 5000"
    )
    assert set(chain.usable(["vae"])) == {"vae"}, "the artifact of the training before stays"
    chain.start("vae", {})
    assert chain.state("vae") == "training"
    chain.stop("vae", StopRecord(40, None))
    chain.finish("vae", export(run_dir, "vae", {}))
    assert chain.state("vae") == "done"
    chain.stop("vae", StopRecord(38, 5000))
    assert chain.state("vae") == "done", "nothing was in training"


def test_manifest_reads_trainings_of_older_versions_that_have_no_stop(run_dir: Path) -> None:
    chain = Manifest.open(run_dir)
    chain.start("vae", {})
    plain = json.loads(chain.path.read_text())
    del plain["stages"]["vae"]["training"]["stop"]
    chain.path.write_text(json.dumps(plain))
    assert chain.state("vae") == "training"


@pytest.mark.parametrize(("record", "text"), [(StopRecord(3, None), "stopped at step 3"), (StopRecord(3, 9), "stopped at step 3 of 9")])
def test_stop_record_names_the_step_and_the_end(record: StopRecord, text: str) -> None:
    assert str(record) == text
