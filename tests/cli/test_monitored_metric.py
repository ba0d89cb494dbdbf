"""The metric whose best checkpoint is kept."""

from types import SimpleNamespace
from typing import Any

import pytest

from walt_pl.cli.monitored_metric import fill_monitor


def options(monitor: str | None, mode: str | None = None, every_steps: int = 5, names: tuple[str, ...] = ("psnr",)) -> Any:
    checkpoint = SimpleNamespace(monitor=monitor, mode=mode)
    return SimpleNamespace(checkpoint=checkpoint, metrics=SimpleNamespace(every_steps=every_steps, names=names))


@pytest.mark.parametrize(
    ("stage", "given", "wanted"),
    [
        ("vae", (None, None), ("val/psnr_video", "max")),
        ("sr1", (None, None), ("val/loss", "min")),
        ("base", ("metrics/psnr", None), ("metrics/psnr", "max")),
        ("base", ("metrics/psnr", "min"), ("metrics/psnr", "min")),
        ("base", ("val/loss_050", None), ("val/loss_050", "min")),
        ("vae", ("val/psnr_image", None), ("val/psnr_image", "max")),
        ("vae", ("val/own", "max"), ("val/own", "max")),
    ],
)
def test_fill_monitor_takes_the_mode_of_the_metric(stage: str, given: tuple[Any, Any], wanted: tuple[str, str | None]) -> None:
    filled = options(*given)
    fill_monitor(stage, filled)
    assert (filled.checkpoint.monitor, filled.checkpoint.mode) == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"every_steps": 0}, r"does not measure it \(metrics.names \[psnr\], metrics.every_steps 0\): add --metrics.every_steps 1000, or"),
        ({"names": ()}, r"add --metrics.names '\[psnr\]', or leave checkpoint.monitor out"),
        ({"every_steps": 0, "names": ()}, r"add --metrics.names '\[psnr\]' --metrics.every_steps 1000"),
    ],
)
def test_fill_monitor_refuses_a_metric_that_nothing_measures(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fill_monitor("base", options("metrics/psnr", **given))


def test_fill_monitor_refuses_a_metric_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match='there is no metric "pnsr"'):
        fill_monitor("base", options("metrics/pnsr"))


def test_fill_monitor_wants_the_mode_of_a_metric_that_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"checkpoint.monitor is val/own, .*add --checkpoint.mode min or --checkpoint.mode max"):
        fill_monitor("vae", options("val/own"))
