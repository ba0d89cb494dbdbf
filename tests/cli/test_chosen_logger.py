"""The logger that one key names."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonargparse import Namespace

from tests.helpers.environment import Walt
from tests.helpers.training import arguments
from walt_pl.cli import chosen_logger
from walt_pl.cli.chosen_logger import check_logger, open_logger
from walt_pl.runs.manifest import Manifest
from walt_pl.training.callbacks.previews import Previews
from walt_pl.training.csv_logger import ResilientCSVLogger
from walt_pl.training.logger import PreviewLogger, ResilientTensorBoardLogger


def options(name: str, other: Any = None) -> Any:
    return Namespace(logger=name, trainer=Namespace(logger=other))


@pytest.mark.parametrize(("name", "version"), [("wandb", "0.31.0"), ("mlflow", "3.17.2")])
def test_check_logger_names_a_missing_package(name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen_logger, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=f"^--logger {name} needs {name}: pip install '{name}=={version}'$"):
        check_logger(options(name))
    monkeypatch.setattr(chosen_logger, "find_spec", lambda module: module)
    check_logger(options(name))


@pytest.mark.parametrize("other", [False, Namespace(class_path="lightning.pytorch.loggers.CSVLogger")])
def test_check_logger_refuses_two_loggers(other: Any) -> None:
    with pytest.raises(ValueError, match=r"logger: found csv, but trainer\.logger is set as well"):
        check_logger(options("csv", other))
    check_logger(options("tensorboard", other))
    check_logger(options("csv", True))


def test_open_logger_returns_one_that_takes_previews_except_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(name: Any) -> Any:
        return open_logger(name, tmp_path, "base", Manifest.open(tmp_path), False)

    assert isinstance(opened("tensorboard"), PreviewLogger)
    assert isinstance(opened("csv"), ResilientCSVLogger) and not isinstance(opened("csv"), PreviewLogger)
    monkeypatch.setattr(chosen_logger, "is_rank_zero", lambda: False)
    assert isinstance(opened("mlflow"), ResilientTensorBoardLogger), "it writes nothing on other ranks, and opens no database"


@pytest.mark.parametrize("every", [0, 1])
def test_previews_say_once_that_a_logger_takes_none(every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("walt_pl.training.callbacks.previews.rank_zero_info", said.append)
    for logger in (ResilientCSVLogger(str(tmp_path), "logs", False), ResilientTensorBoardLogger(str(tmp_path)), None):
        Previews(every).on_fit_start(SimpleNamespace(logger=logger, fast_dev_run=False), None)  # type: ignore[arg-type]
    assert said == ["ResilientCSVLogger takes numbers alone: there are no previews"] * every


def test_fit_command_with_the_csv_logger_goes_on_in_one_file(walt: Walt, painted: Path, tmp_path: Path) -> None:
    command = [*arguments("vae", tmp_path, painted, "--model.lr_schedule", "constant", "--previews.every_n_validations", "1")]
    for steps in ("2", "4"):
        said = walt("fit", *command, "--logger", "csv", "--trainer.max_steps", steps).said
        assert said.count("ResilientCSVLogger takes numbers alone: there are no previews") == 1 and "changed since" not in said
    logs = tmp_path / "training" / "vae" / "logs"
    with (logs / "version_0" / "metrics.csv").open(newline="") as file:
        steps_of_loss = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps_of_loss == [0, 1, 2, 3]
    assert sorted(path.name for path in logs.rglob("*") if path.is_file()) == [
        *["config.yaml"] * 2,
        *["data.json"] * 2,
        "metrics.csv",
        *["start.json"] * 2,
    ]
