"""Logs of a training over several starts: the later start counts, changes of the configuration are found, damage is named."""

import json
from pathlib import Path

import pytest
import yaml

from tests.helpers.run_logs import noise_gif, write_events
from walt_pl.report import training_logs
from walt_pl.report.training_logs import TrainingLogs, compare_starts, read_training
from walt_pl.runs.data_record import DataRecord, KindRecord

RECORD = DataRecord("data/a.parquet", "0" * 64, 17, None, {"train": {"video": KindRecord(10, 8, {"too short": 2}, {"32 x 32": 8})}})


def write_start(folder: Path, number: int, width: int, **more: object) -> Path:
    start = folder / "logs" / f"version_{number}"
    start.mkdir(parents=True)
    config = {"model": {"class_path": "stages.base.BaseStage", "init_args": {"denoiser": {"width": width}}}, **more}
    (start / "config.yaml").write_text(yaml.safe_dump(config))
    return start


def write_incident(folder: Path, step: int, **changes: object) -> None:
    files = [{"global_batch_index": 0, "path": f"clips/{number}.mp4", "read": True} for number in range(5)]
    record = {"step": step, "why": ["the loss is nan"], "action": "skipped", "loss": "nan", "gradient norm": 2.0}
    record |= {"ranks": [{"loss": "nan", "files": files}], "gradient norm by layer": {"head": 1.5, "body": 0.5}} | changes
    (folder / "incidents").mkdir(parents=True, exist_ok=True)
    (folder / "incidents" / f"step={step:08d}.json").write_text(json.dumps(record))


def test_read_training_lets_the_later_start_replace_repeated_steps(tmp_path: Path) -> None:
    """The tenth start comes after the ninth, not after the first."""
    for number, points in ((9, [(9, 1.0), (19, 0.9), (29, 0.8)]), (10, [(19, 0.5), (29, 0.4)])):
        write_events(write_start(tmp_path, number, 8), {"train/loss": points})
    logs = read_training(tmp_path)
    assert [start.name for start in logs.starts] == ["version_9", "version_10"]
    curve = logs.curves["train/loss"]
    assert (curve.steps.tolist(), [round(value, 3) for value in curve.values.tolist()]) == ([9, 19, 29], [1.0, 0.5, 0.4])
    assert logs.starts[0].began is not None and logs.starts[0].ended is not None and logs.starts[0].began <= logs.starts[0].ended


def test_read_training_of_a_stage_without_a_folder_is_empty(tmp_path: Path) -> None:
    logs = read_training(tmp_path / "none")
    assert logs == TrainingLogs() and (logs.data, logs.config) == (None, {})


def test_read_training_keeps_metrics_of_evaluations_and_pictures_in_order(tmp_path: Path) -> None:
    write_events(write_start(tmp_path, 0, 8), {}, {"previews/a": [(20, noise_gif()), (10, noise_gif())]})
    again = write_events(write_start(tmp_path, 1, 8), {"metrics/fvd": [(10, 500.0)]}, {"previews/a": [(15, noise_gif())]})
    write_events(tmp_path / "logs" / "metrics", {"metrics/fvd": [(20, 300.0)]})
    logs = read_training(tmp_path)
    assert logs.curves["metrics/fvd"].values.tolist() == [500.0, 300.0]
    assert [(place.step, place.file == again) for place in logs.pictures["previews/a"]] == [(10, False), (15, True)]


def test_compare_starts_names_each_key_that_differs(tmp_path: Path) -> None:
    write_start(tmp_path, 0, 8, data={"size": 32})
    write_start(tmp_path, 1, 8, data={"size": 32})
    last = write_start(tmp_path, 2, 16, ema={"decay": 0.9})
    (last / "config_1.yaml").write_text((last / "config.yaml").read_text().replace("0.9", "0.99"))
    assert compare_starts(read_training(tmp_path).starts) == [
        ("version_2", "data.size", 32, "not set"),
        ("version_2", "model.denoiser.width", 8, 16),
        ("version_2", "ema.decay", "not set", 0.9),
        ("version_2_1", "ema.decay", 0.9, 0.99),
    ]


def test_read_training_has_the_data_of_the_last_start_with_a_record(tmp_path: Path) -> None:
    RECORD.write(write_start(tmp_path, 0, 8) / "data.json")
    write_start(tmp_path, 1, 8)
    assert read_training(tmp_path).data == RECORD


def test_read_training_names_damaged_configurations_data_and_incidents(tmp_path: Path) -> None:
    start = write_start(tmp_path, 0, 8)
    (start / "config.yaml").write_text("a: [")
    (start / "data.json").write_text('{"index": 3}')
    write_incident(tmp_path, 5)
    write_incident(tmp_path, 7, ranks=3)
    (tmp_path / "incidents" / "step=00000009.json").write_text("{")
    logs = read_training(tmp_path)
    assert (logs.incident_count, [one.step for one in logs.incidents]) == (3, [5])
    told = "\n".join(logs.problems)
    for part in (
        "config.yaml is not YAML",
        "data.json has no entry sha256",
        "step=00000007.json is no incident",
        "step=00000009.json is not JSON",
    ):
        assert part in told
    (incident,) = logs.incidents
    assert (incident.why, incident.loss, incident.gradient_norm) == ("the loss is nan", "nan", "2")
    assert incident.layers == ("head 1.5", "body 0.5")
    assert len(incident.files) == 5


def test_read_training_shows_the_last_incidents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_logs, "MOST_INCIDENTS", 2)
    for step in (1, 2, 3):
        write_incident(tmp_path, step)
    logs = read_training(tmp_path)
    assert (logs.incident_count, [one.step for one in logs.incidents]) == (3, [2, 3])
