"""The report of a real training: its plots have the curves that the stages record."""

import json
from pathlib import Path

import pytest

from tests.cli.test_program import EXPERIMENT, TINY
from tests.helpers.environment import Walt
from tests.helpers.run_logs import ReadPage
from walt_pl.runs.start_record import StartRecord

FOUR_STEPS = [
    *[
        "--trainer.max_steps",
        "4",
        "--trainer.val_check_interval",
        "2",
        "--trainer.log_every_n_steps",
        "1",
        "--throughput.every_n_steps",
        "2",
    ],
    *["--data.val_videos", "4", "--data.num_workers", "0", "--data.image_stacks_per_batch", "1", "--trainer.precision", "32-true"],
    *["--model.warmup_steps", "1", "--throughput.every_n_steps", "2"],
]
DISCRIMINATOR = [
    *["--model.discriminator.width", "8", "--model.discriminator.channel_multipliers", "[2, 2]", "--model.discriminator.size", "[16, 16]"],
    *["--model.adversarial_weight", "0.1", "--model.r1_every", "2"],
]
SHARED = {
    "Gradient norm": {"gradient_norm"},
    "Learning rate": {"learning_rate"},
    "Speed": {"clips_per_second"},
    "Waiting for data": {"waiting_for_data"},
}
PLOTS = {
    "vae": {
        **SHARED,
        "Training loss by kind": {"loss", "mse_video", "mse_image"},
        "Other terms of the loss": {"kl"},
        "Validation PSNR": {"psnr_video"},
        "Discriminator: accuracy and pauses": {"discriminator_accuracy", "discriminator_paused"},
        "Discriminator: logits": {"logit_real", "logit_fake", "logit_gap"},
        "Discriminator: loss terms": {"discriminator_loss", "adversarial", "r1"},
        "Discriminator: gradients": {"gradient_ratio", "discriminator_gradient_norm", "discriminator_gradient_norm_with_r1"},
    },
    "base": {
        **SHARED,
        "Training loss by kind": {"loss", "loss_video", "loss_image"},
        "Validation loss by timestep": {"after step 1", "after step 3"},
        "Validation loss": {"loss"},
    },
}
"""Plots of a stage, and the lines of each."""


@pytest.fixture(scope="module")
def run(walt: Walt, painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another name than its experiment: an autoencoder with a discriminator and a base model, four steps each."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    for stage, more in (("vae", DISCRIMINATOR), ("base", [])):
        config = ["--config", str(EXPERIMENT / f"{stage}.yaml"), "--run", str(run), "--data.index", str(painted)]
        walt("fit", *config, *TINY[stage], *FOUR_STEPS, *more)
    return run


@pytest.fixture(scope="module")
def page(walt: Walt, run: Path) -> ReadPage:
    assert "could not be read" not in walt("report", str(run)).said
    return ReadPage((run / "report.html").read_text())


def test_report_of_a_training_has_the_plots_of_its_kind_of_stage(page: ReadPage) -> None:
    alts = [image["alt"] for image in page.all("img")]
    first_of_base = [alt.startswith("Training loss by kind") for alt in alts].index(True, 2)
    for stage, shown in (("vae", alts[1:first_of_base]), ("base", alts[first_of_base:])):
        plots = {title: said for title, separator, said in (alt.partition(", against ") for alt in shown) if separator}
        assert set(plots) == set(PLOTS[stage])
        for title, lines in PLOTS[stage].items():
            assert {line for line in lines if f" {line}: " in plots[title]} == lines, title
        assert [alt.partition(":")[0] for alt in shown if alt.startswith("Moving preview")] == [
            f"Moving preview, {'reconstruction' if stage == 'vae' else 'samples'} of {stage} after {step} steps" for step in (2, 4)
        ]


def test_report_of_a_training_lists_the_stages_of_its_experiment(run: Path, page: ReadPage) -> None:
    records = json.loads((run / "manifest.json").read_text())["stages"]
    assert [record["experiment"] for record in records.values()] == ["experiments/shapes"] * 2
    assert "sr2 is not started" in page.text


def test_report_of_a_training_has_the_machine_of_its_start_and_of_its_card(run: Path, page: ReadPage) -> None:
    start = StartRecord.read(run / "training" / "base" / "logs" / "version_0" / "start.json")
    card = json.loads((run / "base" / "card.json").read_text())
    assert (start.step, start.machine, start.packages) == (0, card["training"]["machine"], card["packages"])
    assert page.text.count(start.machine) == 4, "two stages, each with a start and a card"
