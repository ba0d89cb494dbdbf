"""Loggers of services: Weights & Biases and MLflow. Their packages are imported only if one of them is chosen."""

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from walt_pl.files import write_whole
from walt_pl.media.types import Frames
from walt_pl.media.writing import gif_bytes
from walt_pl.training.log_folder import next_start, read_run_id, write_run_id
from walt_pl.training.logger import ResilientLogger


class ServiceLogger(ResilientLogger):
    """Part of a logger that a package writes to a service, which may fail in any way."""

    def _reason(self, error: Exception) -> Exception:
        return error

    def _remedy(self) -> str:
        return "the service is tried again then"


class ResilientWandbLogger(ServiceLogger, WandbLogger):
    """Log to Weights & Biases, in the mode that its own settings choose (WANDB_MODE).

    Args:
        logs: folder of the stage's logs. Each start has its own folder in it; the id of the run stays for the next start.
        name: of the run.
        goes_on: go on in the run of the last start, if there is one.
    """

    def __init__(self, logs: Path, name: str, goes_on: bool) -> None:
        self._id_file = logs / "wandb_run_id"
        super().__init__(name=name, save_dir=next_start(logs), id=read_run_id(self._id_file) if goes_on else None)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of wandb.

        Raises:
            ValueError: wandb cannot begin it.
        """
        if self._experiment is None:
            Path(str(self.save_dir)).mkdir(parents=True, exist_ok=True)  # wandb would write elsewhere
            try:
                run = super().experiment
            except Exception as error:  # of the network, of a missing login, of its own process
                raise ValueError(f"--logger wandb: the run cannot begin ({error}); WANDB_MODE=offline needs no service") from error
            write_run_id(self._id_file, run.id)
        return self._experiment

    def log_previews(self, name: str, frames: Frames, fps: float, captions: Sequence[str], step: int) -> None:
        """Write a GIF as a video; see `walt_pl.training.logger.PreviewLogger`."""
        video = {"format": ["gif"], "caption": ["\n".join(captions)]}
        self._try(lambda: self.log_video(f"previews/{name}", [io.BytesIO(gif_bytes(frames, fps, captions))], step, **video))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """End the run, so that the state of the training is shown."""
        super().finalize(status)
        if self._experiment is not None:
            self._try(lambda: self.experiment.finish(0 if status == "success" else 1))


class ResilientMLFlowLogger(ServiceLogger, MLFlowLogger):
    """Log to MLflow: to the server of MLFLOW_TRACKING_URI, or to a database in the folder of the logs.

    Args:
        logs: folder of the stage's logs. Each start has its own folder in it; the id of the run stays for the next start.
        experiment: of MLflow, in which the run is.
        name: of the run.
        goes_on: go on in the run of the last start, if there is one.
    """

    def __init__(self, logs: Path, experiment: str, name: str, goes_on: bool) -> None:
        self._id_file, self._start, store = logs / "mlflow_run_id", next_start(logs), logs.absolute() / "mlflow"
        server = os.environ.get("MLFLOW_TRACKING_URI")
        if not server:
            store.mkdir(parents=True, exist_ok=True)  # the database is opened at once
        super().__init__(
            experiment_name=experiment,
            run_name=name,
            tracking_uri=server or f"sqlite:///{store}/mlflow.db",  # MLflow no longer writes plain files
            artifact_location=None if server else (store / "artifacts").as_uri(),
            run_id=read_run_id(self._id_file) if goes_on else None,
        )

    @property
    def save_dir(self) -> str:
        """Folder for the configuration of this start."""
        return str(self._start)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Client of MLflow.

        Raises:
            ValueError: MLflow cannot begin the run.
        """
        if not self._initialized:
            goes_on = self._run_id is not None
            try:
                client = super().experiment
                if goes_on:
                    client.update_run(self._run_id, status="RUNNING")
            except Exception as error:  # of the network, of the database, of a run that was deleted
                raise ValueError(f"--logger mlflow: the run cannot begin ({error}); to begin a new one, remove {self._id_file}") from error
            write_run_id(self._id_file, str(self._run_id))
        return self._mlflow_client

    def log_previews(self, name: str, frames: Frames, fps: float, captions: Sequence[str], step: int) -> None:
        """Write a GIF and a text with the captions as artifacts; see `walt_pl.training.logger.PreviewLogger`."""
        self._try(lambda: self._log_files(f"previews/{name}", f"step_{step:08d}", gif_bytes(frames, fps, captions), "\n".join(captions)))

    def _log_files(self, folder: str, name: str, gif: bytes, text: str) -> None:
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / f"{name}.gif"
            write_whole(file, gif)
            self.experiment.log_artifact(self.run_id, str(file), folder)
        self.experiment.log_text(self.run_id, text, f"{folder}/{name}.txt")
