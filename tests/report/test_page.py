"""The report of a run: one file, whole and unfinished runs, hostile and damaged files, a size that is kept."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.helpers.run_logs import ReadPage, noise_gif, still_png, write_events
from tests.report.test_training_logs import RECORD, write_incident, write_start
from tests.runs.test_manifest import export, run_dir, tiny_sections, train
from walt_pl.evaluation.card import ErrorBar, MetricCard, write_cards
from walt_pl.report.blocks import pictures_of, shorten
from walt_pl.report.page import MOST_BYTES, describe_run, fit_page, write_report
from walt_pl.report.run_contents import read_run
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.stage_names import ManifestError
from walt_pl.runs.start_record import StartRecord
from walt_pl.training.logger import ResilientTensorBoardLogger

__all__ = ["run_dir", "tiny_sections"]  # fixtures
HOSTILE = '<script>alert("1")</script>'
SECTIONS = [
    "Chain of stages",
    "Training",
    "Samples",
    "Metrics",
    "Data",
    "Incidents",
    "Configuration changes between starts",
    "Environment and cost",
]


def fill(run: Path, caption: str = "a red circle") -> None:
    """Give a run all that a report shows."""
    train(run, "vae", "base")
    for stage in ("vae", "base"):
        folder = run / "training" / stage
        first, second = write_start(folder, 0, 8), write_start(folder, 1, 16)
        RECORD.write(second / "data.json")
        curves = {tag: [(step, 1.0 / (step + 1)) for step in range(9, 50, 10)] for tag in ("train/loss_video", "train/gradient_norm")}
        timesteps = {f"val/loss_{timestep:03d}": [(9, 0.5), (49, 0.25)] for timestep in (50, 550, 950)}
        speeds = {"speed/waiting_for_data": [(9, 0.1), (19, 0.3)], "speed/clips_per_second": [(9, 4.0), (19, 8.0)]}
        write_events(first, {**curves, **timesteps, **speeds}, {"previews/samples": [(step, noise_gif()) for step in (9, 49)]})
        write_incident(folder, 33, why=[f"the loss is nan {caption}"])
    write_events(run / "training" / "vae" / "logs" / "version_1", {"train/discriminator_accuracy": [(59, 0.5), (69, 0.75)]})
    (run / "samples").mkdir()
    (run / "samples" / "clip.gif").write_bytes(noise_gif(comment=f"{caption}\na bar"))
    (run / "demo").mkdir()
    summary = {"scores": {"vae": {"psnr_32": 31.5}}, "seconds": {"vae": 61.0}, "machine": f"a machine {caption}", "load": 0.5, "seed": 1}
    (run / "demo" / "summary.json").write_text(json.dumps(summary))
    card = MetricCard(
        "fvd", 123.4, "min", "styleganv", {"frames": 16}, {}, {"kind": "i3d", "sha256": "d" * 64}, {"clips": 99}, {"clips": 98}, ErrorBar()
    )
    write_cards(run / "metrics" / "base_a_12345678.json", [card])


def report(run: Path, *stages: str) -> ReadPage:
    written = write_report(run, run / "report.html", stages)
    html = written.path.read_bytes()
    assert written.bytes == len(html) <= MOST_BYTES == 10_000_000
    return ReadPage(html.decode())


def check_form(page: ReadPage) -> None:
    """Check that a page is accessible and holds all that it shows."""
    assert [level for level, _ in page.headings].count(1) == 1 and page.headings[0][0] == 1
    assert all(after <= before + 1 for (before, _), (after, _) in zip(page.headings, page.headings[1:], strict=False)), page.headings
    assert page.all("html")[0]["lang"] == "en" and "report" in page.text
    assert all(image["alt"] and image["src"].startswith("data:image/") for image in page.all("img"))
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) and {f"#{one}" for one in ids} == {link["href"] for link in page.all("a")}
    references = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href", "srcset", "style")
    ]
    assert not [value[:60] for value in references if not value.startswith(("data:image/", "#"))]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_report_shows_every_part_of_a_run(run_dir: Path) -> None:
    fill(run_dir)
    page = report(run_dir, "vae", "base", "sr1")
    check_form(page)
    assert [title for level, title in page.headings if level == 2] == SECTIONS
    alts = [image["alt"] for image in page.all("img")]
    for part in (
        "Chain of stages: vae is done",
        "Training loss by kind, against step. loss_video: 0.1 at step 9, 0.02 at step 49",
        "Validation loss by timestep, against timestep. after step 9: 0.5 at timestep 50",
        "Gradient norm",
        "Speed",
        "Waiting for data",
        "Discriminator: accuracy and pauses",
        "Moving preview, samples of base after 49 steps",
        "Moving samples of samples/clip.gif: a red circle; a bar",
    ):
        assert any(part in alt for alt in alts), part
    for part in (
        "Next: python -m walt_pl fit",  # sr1 has not started
        "fvd",
        "123.4",
        "styleganv",
        '"frames": 16',
        "psnr_32",
        "31.5",
        "2 too short",
        "32 x 32: 8",
        "data/a.parquet",
        "the loss is nan a red circle",
        "clips/0.mp4; clips/1.mp4; clips/2.mp4 and 2 more",
        "model.denoiser.width",
        "a machine a red circle",
        "2 of 3 stages are done.",
        "20.0%",  # mean of waiting for data
    ):
        assert part in page.text, part


def test_report_of_an_unfinished_run_says_what_is_missing(run_dir: Path) -> None:
    Manifest.open(run_dir).start("vae", {})
    page = report(run_dir, "vae", "base")
    check_form(page)
    assert [title for level, title in page.headings if level == 2] == SECTIONS
    for part in (
        "0 of 2 stages are done.",
        "No curves: the run has no event file and no metrics.csv of this stage.",
        "This stage has not started. Train it with:",
        "No samples yet: they need a base model. The chain of stages says what to train next.",
        "No metric cards yet. Measure the run with:",
        "No record of sizes and of reasons why clips were left out: vae, base.",
        "No incidents",
        "No key changed between two starts of a training.",
    ):
        assert part in page.text, part


def test_report_of_the_logger_csv_has_curves_and_the_time_of_the_card(run_dir: Path) -> None:
    chain = Manifest.open(run_dir)
    chain.start("vae", {})
    chain.finish("vae", export(run_dir, "vae", {}, training={"seconds": 61.0, "from_step": 10}))
    start = write_start(run_dir / "training" / "vae", 0, 8)
    (start / "metrics.csv").write_text("step,train/loss_video\n9,0.5\n19,0.25\n")
    page = report(run_dir)
    told = "Training loss by kind, against step. loss_video: 0.5 at step 9, 0.25 at step 19"
    assert any(told in image["alt"] for image in page.all("img"))
    assert "61 s from step 10 on" in page.text


@pytest.mark.parametrize(
    ("config", "option"),
    [
        ({"denoiser": {"text_width": 8}}, "--prompt TEXT"),
        ({"denoiser": {"num_classes": 3}}, "--label 0"),
        ({"denoiser": {"frame_prediction": 1.0}, "diffusion": {"context_frames": [2]}}, "--continue CLIP"),
    ],
)
def test_report_without_samples_names_the_condition_of_its_base_model(run_dir: Path, config: dict[str, object], option: str) -> None:
    train(run_dir, "vae", "base")
    (run_dir / "base" / "model.yaml").write_text(yaml.safe_dump(config))
    told = f"No samples yet. Make some with: python -m walt_pl sample --run {run_dir} {option} --out {run_dir}/samples/"
    assert told in report(run_dir).text


@pytest.mark.parametrize("config", [["a"], {"denoiser": ["a"]}, {"denoiser": {"frame_prediction": 1}, "diffusion": {"context_frames": 5}}])
def test_report_names_a_configuration_that_is_no_model(run_dir: Path, config: object) -> None:
    train(run_dir, "vae", "base")
    (run_dir / "base" / "model.yaml").write_text(yaml.safe_dump(config))
    assert "base: model.yaml has no configuration of a base model (" in report(run_dir).text


def test_report_lists_the_captions_of_previews(run_dir: Path) -> None:
    """As the project's own logger writes them. The text that stands for the picture has the first four."""
    train(run_dir, "vae", "base")
    captions = ["a red circle", "a blue <b>bar</b>", "a ring", "a cross", "a fifth\u202e one"]
    logger = ResilientTensorBoardLogger(str(run_dir / "training" / "base"), "logs")
    for step in (7, 17):
        logger.log_previews("prompts", np.zeros((2, 16, 16, 3), np.uint8), 8.0, captions, step)
    logger.finalize("success")
    page = report(run_dir)
    check_form(page)
    told = "Moving preview, prompts of base after 7 steps: a red circle; a blue <b>bar</b>; a ring; a cross; and others"
    assert told in [image["alt"] for image in page.all("img")]
    assert page.text.count("a blue <b>bar</b>a ringa crossa fifth\\u202e one") == 1, "once for equal lists"


def test_report_has_the_machine_and_the_time_of_a_finished_training(run_dir: Path) -> None:
    chain = Manifest.open(run_dir)
    chain.start("vae", {})
    command = "python -m walt_pl fit --config experiments/shapes/vae.yaml"
    facts = {"command": command, "machine": "a GPU of NVIDIA, 8 processes", "seconds": 7500.0}
    chain.finish("vae", export(run_dir, "vae", {}, training=facts))
    page = report(run_dir)
    for part in ("a GPU of NVIDIA, 8 processes", "2.1 hours", f"vae was trained with: {command}"):
        assert part in page.text, part
    assert "No machine is recorded" not in page.text


def test_report_of_an_unfinished_training_has_the_machine_of_each_start(run_dir: Path) -> None:
    chain = Manifest.open(run_dir)
    for stage in ("vae", "base"):
        chain.start(stage, {})
    folder = run_dir / "training" / "vae"
    for number, machine in enumerate(("one machine", "another machine")):
        start = write_start(folder, number, 8)
        StartRecord(number * 1500, machine, "0123abcd", {"torch": "2.9.1"}, "2026-01-31T12:00:00+00:00").write(start / "start.json")
    page = report(run_dir)
    for part in ("one machine", "another machine", "1,500", "0123abcd", "torch 2.9.1", "2026-01-31 12:00:00"):
        assert part in page.text, part
    assert "No machine is recorded of base." in page.text


def test_report_tells_the_starts_of_a_training_that_was_resumed_and_is_done(run_dir: Path) -> None:
    train(run_dir, "vae", "base")
    folder = run_dir / "training" / "vae"
    write_events(write_start(folder, 0, 8), {"train/loss": [(9, 1.0)]})
    StartRecord(20, "a machine", None).write(write_start(folder, 1, 8) / "start.json")
    write_events(write_start(folder, 2, 8), {"train/loss": [(39, 1.0)], "val/loss": [(30, 1.0)]})
    write_start(folder, 3, 8)
    write_start(run_dir / "training" / "base", 0, 8)
    page = report(run_dir)
    assert "No incidents: no step was skipped or rolled back." in page.text
    told = "vae was started 4 times; later starts: from step 20, first value at step 39, first step of 1 unknown."
    assert told in page.text and "base was started" not in page.text


PREDICTION = {
    "figures": [
        {
            **{"stage": "base", "size": [32, 48], "given": 5, "task": "frame prediction from 5 frames", "prediction": prediction},
            **{"windows": 16, "psnr": {"value": psnr, "cases": 7, "low": psnr - 1, "high": psnr + 1}},
            **{"ssim": {"value": 0.75, "cases": 7, "low": 0.5, "high": 0.875}},
            **({"psnr_gain": {"value": psnr - 20, "cases": 7, "low": psnr - 21, "high": psnr - 19}} if prediction == "model" else {}),
        }
        for prediction, psnr in (("model", 24.5), ("repeated frame", 20.0))
    ]
    + [{"stage": "base", "size": [32, 48], "given": 1, "task": "image to video from 1 frame", "prediction": "linear extrapolation"}],
    **{"windows": {"split": "val", "windows": [[0, 0]] * 16}, "steps": {"base": 41}, "guidance": {"base": {"scale": 1.25}}, "seed": 43},
}
"""As `walt evaluate` writes it, see walt_pl/cli/evaluate_prediction.py."""


def test_report_shows_frame_prediction_that_has_no_metric_card(run_dir: Path) -> None:
    train(run_dir, "vae", "base")
    (run_dir / "prediction.json").write_text(json.dumps(PREDICTION))
    (run_dir / "prediction.png").write_bytes(still_png())
    page = report(run_dir)
    check_form(page)
    assert "No metric cards yet" not in page.text
    for part in (
        "24.50 (23.50 to 25.50)",
        "20.00 (19.00 to 21.00)",
        "0.750 (0.500 to 0.875)",
        "+4.50 (+3.50 to +5.50)",
        "32 x 48",
        "repeated frame",
        "not defined: it needs two given frames",
        '"split": "val"',
        '"windows": 16',
        '"base": 41',
        '"scale": 1.25',
        '"seed": 43',
        "prediction.png: true frames, the model's",
    ):
        assert part in page.text, part
    assert page.text.count("+0.00") == 0, "the repeated frame has no gain over itself"
    assert [image["alt"] for image in page.all("img") if image["src"].startswith("data:image/webp")] == [
        "Frame prediction: true frames, the model's, and the repeated frame of some windows"
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "wanted figures of frame prediction"),
        (json.dumps({"figures": [{**PREDICTION["figures"][0], "psnr": "24"}]}), r"figures\[0\]: psnr"),  # type: ignore[dict-item]
        (" " * (16 * 2**20 + 1), "more than 16,777,216 bytes"),
    ],
)
def test_report_names_figures_of_frame_prediction_that_it_cannot_read(run_dir: Path, content: str, told: str) -> None:
    train(run_dir, "vae", "base")
    (run_dir / "prediction.json").write_text(content)
    page = report(run_dir)
    assert re.search(f"Files that could not be read.*prediction.json.*{told}", page.text, re.DOTALL)
    assert "No metric cards yet" in page.text


def test_report_refuses_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"is no run, it has no manifest\.json"):
        write_report(tmp_path, tmp_path / "report.html")
    with pytest.raises(ValueError, match=r"--out must end in \.html"):
        write_report(tmp_path, tmp_path / "report.pdf")
    assert list(tmp_path.iterdir()) == []


def test_report_names_damaged_files_and_shows_the_others(run_dir: Path) -> None:
    fill(run_dir)
    (events,) = (run_dir / "training" / "base" / "logs" / "version_0").glob("events*")
    events.write_bytes(events.read_bytes()[:-9])
    (run_dir / "samples" / "clip.gif").write_bytes(b"GIF89a")
    (run_dir / "demo" / "summary.json").write_text("{")
    (run_dir / "metrics" / "base_b.json").write_text("[]")
    (run_dir / "base" / "card.json").write_text("{}")
    page = report(run_dir)
    check_form(page)
    told = page.text.partition("Files that could not be read")[2].rpartition("Files that could not be read")[2]
    for part in (
        f"base: logs/version_0: {events.name} is damaged",
        "samples/clip.gif",
        "summary.json is not JSON",
        "base_b.json",
        "card.json",
    ):
        assert part in told, part
    assert "This picture cannot be read" in page.text
    assert any("Training loss by kind, against step. loss_video: 0.1 at step 9" in image["alt"] for image in page.all("img"))


def test_report_escapes_everything_that_a_file_says(run_dir: Path) -> None:
    fill(run_dir, caption=HOSTILE)
    folder = run_dir / "training" / "base"
    start = write_start(folder, 2, 8, **{HOSTILE: f"{HOSTILE}\u202e"})
    (start / "data.json").write_text((start.parent / "version_1" / "data.json").read_text().replace("too short", "<img src=x onerror=y>"))
    tag = f"{HOSTILE}\u202e"
    write_events(start, {f"metrics/{tag}": [(9, 1.0), (19, 2.0)]}, {f"previews/{tag}": [(9, noise_gif())]})
    shutil.copy(start / "config.yaml", start / "config_\u202e.yaml")
    StartRecord(20, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}).write(start / "start_\u202e.json")
    page = report(run_dir)
    check_form(page)
    html = (run_dir / "report.html").read_text()
    assert "<script" not in html and "onerror=y>" not in html and "\u202e" not in html
    for place in (
        f"a machine {HOSTILE}",
        f"the loss is nan {HOSTILE}",
        f"metrics/{HOSTILE}\\u202e",
        f"Metric {HOSTILE}\\u202e",
        f"{HOSTILE} {HOSTILE}",
        "2 <img src=x onerror=y>",
        f"{HOSTILE}\\u202e",
    ):
        assert place in page.text, place
    alts = [image["alt"] for image in page.all("img")]
    assert any(f"clip.gif: {HOSTILE}; a bar" in alt for alt in alts)
    assert any(alt.startswith(f"Metric {HOSTILE}\\u202e, against step. script>\\u202e: 1 at step 9") for alt in alts)


def test_report_of_a_strangers_manifest_whose_stages_are_parents_of_each_other(run_dir: Path) -> None:
    path = train(run_dir, "vae", "base").path
    plain = json.loads(path.read_text())
    records = {stage: plain["stages"][stage]["artifact"] for stage in ("vae", "base")}
    records["vae"]["parents"] = {stage: records[stage]["sha256"] for stage in ("base", "vae")}
    path.write_text(json.dumps(plain))
    page = report(run_dir)
    check_form(page)
    (told,) = [image["alt"] for image in page.all("img") if image["alt"].startswith("Chain of stages")]
    assert "vae is stale" in told and "trained from base and vae" in told and "base is stale" in told


def test_shorten_limits_text_and_hides_nothing() -> None:
    assert shorten("a" * 1000) == "a" * 299 + "…"
    assert shorten("a\n b\x1b[31m\u2066", 40) == "a b\\x1b[31m\\u2066"


@pytest.mark.parametrize("most", [450_000, 300_000])
def test_fit_page_keeps_its_size_and_says_what_is_left_out(run_dir: Path, most: int) -> None:
    fill(run_dir)
    start = run_dir / "training" / "base" / "logs" / "version_1"
    write_events(start, {}, {f"previews/{n}": [(step, noise_gif(3, 200, seed=step)) for step in range(4)] for n in range(2)})
    page = describe_run(read_run(run_dir))
    html, left_out = fit_page(page, most)
    read = ReadPage(html.decode())
    check_form(read)
    shown = [image for image in read.all("img") if image["src"].startswith("data:image/webp")]
    pictures = [picture for section in page.sections for picture in pictures_of(section.blocks)]
    lost_plots = sum(int(count) for count in re.findall(r"(\d+) plots are left out to keep the page small", read.text))
    assert len(html) <= most and left_out > 0
    assert len(shown) + read.text.count("This picture is left out to keep the page small.") == len(pictures)
    assert left_out == lost_plots + len(pictures) - len(shown)
