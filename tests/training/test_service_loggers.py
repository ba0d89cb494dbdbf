"""Loggers of services that fail, end and go on."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import Logger

from walt_pl.training.log_folder import read_run_id
from walt_pl.training.service_loggers import ResilientMLFlowLogger, ResilientWandbLogger, ServiceLogger

CLIP = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed: it is in the extra loggers, which is optional")


class Service(Logger):
    """A service without a network."""

    name = version = None
    calls = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.calls += 1
        raise RuntimeError("no network")

    def log_hyperparams(self, *args: object) -> None: ...

    def finalize(self, status: str) -> None:
        raise KeyError("run")


class Resilient(ServiceLogger, Service):
    """A logger of that service."""


def test_service_logger_warns_of_any_error_and_waits_before_the_next_try() -> None:
    logger = Resilient()
    with pytest.warns(UserWarning, match=r"no curves for 10 minutes \(no network\); training goes on; the service is tried again then"):
        for step in range(5):
            logger.log_metrics({"train/loss": 1.0}, step)
    assert logger.calls == 1
    logger._paused_until = 0.0  # ten minutes later
    with pytest.warns(UserWarning, match="'run'"):
        logger.finalize("success")


@needs("wandb")
def test_resilient_wandb_logger_goes_on_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for goes_on in (False, True, False):
        logger = ResilientWandbLogger(tmp_path, "shapes/base", goes_on)
        logger.log_metrics({"train/loss": 1.0}, 0)
        logger.log_previews("prompts", CLIP, 8.0, ["a red circle"], 0)
        ids.append(logger.experiment.id)
        assert read_run_id(tmp_path / "wandb_run_id") == ids[-1] and logger.experiment.name == "shapes/base"
        start = Path(str(logger.save_dir))
        logger.finalize("success")
        assert start.parent == tmp_path and list(start.glob("wandb/offline-run-*/files/media/videos/previews/*.gif"))
    assert ids[0] == ids[1] != ids[2]


@needs("mlflow")
def test_resilient_mlflow_logger_goes_on_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for goes_on, step in ((False, 0), (True, 1)):
        logger = ResilientMLFlowLogger(tmp_path, "shapes", "shapes/base", goes_on)
        logger.log_metrics({"train/loss": 0.5 + step}, step)
        logger.log_previews("prompts", CLIP, 8.0, ["a red circle"], step)
        assert logger.experiment.get_run(logger.run_id).info.status == "RUNNING"
        logger.finalize("success")
    client, run = logger.experiment, logger.run_id
    assert [(one.step, one.value) for one in client.get_metric_history(run, "train/loss")] == [(0, 0.5), (1, 1.5)]
    assert sorted(one.path for one in client.list_artifacts(run, "previews/prompts")) == [
        f"previews/prompts/step_0000000{step}.{end}" for step in (0, 1) for end in ("gif", "txt")
    ]
    found = client.get_run(run)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "shapes/base") and read_run_id(tmp_path / "mlflow_run_id") == run
    assert client.get_experiment(found.info.experiment_id).name == "shapes"
    with pytest.raises(ValueError, match=r"--logger mlflow: the run cannot begin .* remove .*mlflow_run_id"):
        (tmp_path / "mlflow_run_id").write_text("0" * 32)
        _ = ResilientMLFlowLogger(tmp_path, "shapes", "shapes/base", goes_on=True).experiment
