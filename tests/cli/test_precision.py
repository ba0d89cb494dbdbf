"""Precisions that would keep weights in another format than float32 are refused, by every command that reads one."""

from pathlib import Path

import pytest
import yaml

from tests.helpers.environment import ROOT
from walt_pl.cli import main as cli
from walt_pl.cli.plan import PlanCLI

LOW = ["bf16-true", "16-true", "transformer-engine", "transformer-engine-float16"]


def command(stage: str, run: Path, *more: str) -> list[str]:
    return ["--config", f"experiments/shapes/{stage}.yaml", "--run", str(run), "--data.index", str(run / "none.parquet"), *more]


def run_program(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.chdir(ROOT)
    cli.main(words)


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("stage", ["vae", "base", "sr1"])
def test_check_precision_refuses_half_precision_weights_before_anything_is_read(
    stage: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = "float16" if precision == "16-true" or "float16" in precision else "bfloat16"
    said = f"trainer.precision: {precision} keeps the weights in {kept};.* type --trainer.precision bf16-mixed"
    with pytest.raises(SystemExit, match=said):
        run_program(monkeypatch, "fit", *command(stage, tmp_path / "run", "--trainer.precision", precision))
    assert not (tmp_path / "run").exists(), "neither a manifest nor a cache"


@pytest.mark.parametrize("name", ["fit", "validate", "plan", "cache"])
def test_check_precision_refuses_a_config_file_in_every_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = tmp_path / "low.yaml"
    overlay.write_text(yaml.safe_dump({"trainer": {"precision": "bf16-true"}}))
    with pytest.raises(SystemExit, match="bf16-true keeps the weights in bfloat16"):
        run_program(monkeypatch, name, *command("vae", tmp_path / "run", "--config", str(overlay)))


@pytest.mark.parametrize("precision", ["64-true", "64"])
def test_check_precision_refuses_float64(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Averages are float32: each validation would round the weights."""
    with pytest.raises(SystemExit, match=r"keeps the weights in float64;.* type --trainer.precision 32-true$"):
        run_program(monkeypatch, "fit", *command("vae", tmp_path / "run", "--trainer.precision", precision))


@pytest.mark.parametrize(("short", "name"), [("32", "32-true"), ("bf16", "bf16-mixed"), ("16", "16-mixed"), ("bf16-mixed", "bf16-mixed")])
def test_check_precision_of_float32_weights_is_stored_under_its_full_name(short: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert PlanCLI(["--config", "experiments/shapes/base.yaml", "--trainer.precision", short]).options.trainer.precision == name
