"""Files that a configuration lies over, and overlays on the command line."""

import json
from pathlib import Path

import pytest

from tests.helpers.environment import ROOT
from tests.helpers.experiments import EXPERIMENTS, of, planned
from walt_pl.cli.fit import WaltCLI
from walt_pl.cli.plan import PlanCLI


def test_config_files_name_an_overlay_typed_in_place_of_a_stage(tmp_path: Path) -> None:
    wanted = (
        r'unknown stage "rank_16", the name of the first --config: wanted vae, vae_\*, base, base_\*, sr1, sr2, ...; '
        r"an overlay comes second \(--config STAGE.yaml --config rank_16.yaml\), or give --stage NAME"
    )
    with pytest.raises(ValueError, match=wanted):
        planned("--config", "experiments/ucf101/rank_16.yaml", "--config", "experiments/ucf101/base_l.yaml")
    mine = tmp_path / "mine.yaml"  # any name will do where the stage is said
    mine.write_text(f"extends: [{EXPERIMENTS}/ucf101/base_l.yaml]\n")
    assert planned("--config", str(mine), "--stage", "base_mine").stage == "base_mine"
    mine.write_text(f"extends: [{EXPERIMENTS}/ucf101/base_l.yaml]\nstage: base_mine\n")
    assert planned("--config", str(mine)).stage == "base_mine"


def test_config_files_lie_over_those_they_extend_and_under_a_further_config(tmp_path: Path) -> None:
    small = {"width": 16, "depth": 2, "num_heads": 2, "size": [3, 4, 4], "window_size": [3, 2, 2]}
    model = {"class_path": "stages.base.BaseStage", "init_args": {"denoiser": small, "optimizer": {"class_path": "torch.optim.AdamW"}}}
    below = {"model": model, "data": {"index": "x.parquet", "size": 32}, "ema": {"decay": 0.5}}
    own = {"extends": ["deep/below.yaml"], "model": {"init_args": {"denoiser": {"width": 32}}}, "ema": {"decay": 0.7}}
    (tmp_path / "deep").mkdir()
    for name, content in (("deep/below", below), ("base_x", own), ("overlay", {"model": {"init_args": {"denoiser": {"num_heads": 4}}}})):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))
    plan = planned("--config", str(tmp_path / "base_x.yaml"), "--config", str(tmp_path / "overlay.yaml"))
    config = plan.model.denoiser.config
    assert (config.width, config.num_heads, config.depth, plan.options.ema.decay) == (32, 4, 2, 0.7)
    assert (plan.stage, plan.run_dir) == ("base_x", Path("runs") / tmp_path.name)
    (tmp_path / "deep/below.yaml").unlink()
    with pytest.raises(ValueError, match=r"base_x.yaml: extends names deep/below.yaml, but there is no"):
        planned("--config", str(tmp_path / "base_x.yaml"))


def test_config_files_overlay_of_another_optimizer_keeps_the_learning_rate() -> None:
    optimizer = of("text_to_video/base", "text_to_video/adamw").options.model.init_args.optimizer
    assert (optimizer.class_path, optimizer.init_args.lr) == ("torch.optim.AdamW", 2e-4)


def test_plan_command_reports_a_wrong_key_as_fit_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wrong = ["--config", "experiments/shapes/base.yaml", "--model.denoiser.widht", "8"]
    said = []
    for program, arguments in ((PlanCLI, wrong), (WaltCLI, ["fit", *wrong])):
        with pytest.raises(ValueError, match="widht") as raised:
            program(arguments)
        said.append(str(raised.value))
    assert said[0] == said[1].replace("walt fit", "walt plan")
