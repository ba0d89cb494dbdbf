"""Check and open the logger that --logger names."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from walt_pl.runs.manifest import Manifest
from walt_pl.training.csv_logger import ResilientCSVLogger
from walt_pl.training.logger import ResilientLogger, ResilientTensorBoardLogger
from walt_pl.training.rank import is_rank_zero
from walt_pl.training.service_loggers import ResilientMLFlowLogger, ResilientWandbLogger

LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]
DEFAULT_LOGGER: LoggerName = "tensorboard"
LOG_FOLDER = "logs"
"""Folder of the logs of a stage's training."""
PACKAGES = {"wandb": "wandb==0.31.0", "mlflow": "mlflow==3.17.2"}
"""Package of a logger that is not among the program's own, as the extra `loggers` pins it (pyproject.toml)."""


def check_logger(options: Any) -> None:
    """Refuse a logger whose package is missing, and one that trainer.logger contradicts.

    Raises:
        ValueError: with what to type.
    """
    name = options.logger
    if name != DEFAULT_LOGGER and options.trainer.logger not in (None, True):
        raise ValueError(f"logger: found {name}, but trainer.logger is set as well, and there is one logger: leave one of them out")
    if name in PACKAGES and find_spec(name) is None:
        raise ValueError(f"--logger {name} needs {name}: pip install '{PACKAGES[name]}'")


def open_logger(name: LoggerName, work: Path, stage: str, manifest: Manifest, goes_on: bool) -> ResilientLogger:
    """Return the logger of a training.

    Args:
        name: of the logger.
        work: folder of the stage's training.
        stage: name of the stage.
        manifest: of the run; the experiment and the stage name the run of a service.
        goes_on: whether the training goes on from a checkpoint, and so in the same log.
    """
    # Only rank zero logs. The others would open the files of CSV and the database of MLflow as well.
    if name == "tensorboard" or not is_rank_zero():
        return ResilientTensorBoardLogger(str(work), name=LOG_FOLDER)
    if name == "csv":
        return ResilientCSVLogger(str(work), LOG_FOLDER, goes_on)
    experiment = (manifest.experiment or manifest.run_dir).resolve().name
    if name == "wandb":
        return ResilientWandbLogger(work / LOG_FOLDER, f"{experiment}/{stage}", goes_on)
    return ResilientMLFlowLogger(work / LOG_FOLDER, experiment, f"{experiment}/{stage}", goes_on)
