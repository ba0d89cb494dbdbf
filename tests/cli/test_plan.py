"""The plan of the experiments: its report, days, and what fits on a card."""

import json
from pathlib import Path

import pytest
import torch

from stages.vae import VAEStage
from tests.helpers.experiments import FULL_SIZE, of, planned
from walt_pl.cli.plan import USABLE
from walt_pl.cli.plan_costs import share_of, stage_cost, vae_stage_cost
from walt_pl.training.engine_memory import engine_bytes, moment_bytes


def test_plan_report_of_the_shapes_base_is_complete() -> None:
    plan = of("shapes/base", None, "--json")
    report = json.loads(json.dumps(plan.report()))
    assert report["stage"] == "base" and report["parameters"]["beside"]["text"] > 0
    assert report["tokens"] == {"frame": 16, "video": 80, "spatial_window": 16, "spatiotemporal_window": 80}
    assert report["flops_per_step"] == sum(report["flops_by_kind"].values()) > 0
    assert list(report["bytes_per_gpu"]) == ["ddp", "zero1", "zero2", "zero2_offload", "zero3"]
    held = report["bytes_per_gpu"]["ddp"]
    assert held["fits_gib"] == {"kept": [24, 40, 80], "recomputed": [24, 40, 80]}
    assert held["parameters"] == 4 * (report["parameters"]["total"] + report["parameters"]["beside"]["text"])
    written = report["checkpoint"]["ddp"]
    assert written["bytes"] > 12 * (report["parameters"]["total"] + report["parameters"]["beside"]["text"]), "weights, momentum, average"
    assert written["seconds"] == written["bytes"] / 1e9 and report["time"] is None and report["steps"] == 800


def test_plan_show_prints_every_figure_of_the_report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    plan = of("shapes/base", None, "--tflops", "1")
    plan.show()
    said = " ".join(capsys.readouterr().out.split())
    report = plan.report()
    for word in (
        "parameters",
        f"{report['parameters']['total']:,}",
        "80 a video",
        f"{report['flops_per_step']:.3e}",
        "days for 800 steps",
    ):
        assert word in said, word
    assert all(engine in said for engine in report["bytes_per_gpu"]) and "+ checkpointing" in said and "fits" in said


def test_plan_days_follow_from_tflops_and_gpus() -> None:
    plan = of("text_to_video/base", None, "--tflops", "200", "--gpus", "64", "--disk", "500")
    flops = 10**16
    time = plan._time(flops)
    assert time is not None and time["tflops_per_gpu"] == 200
    assert time["days"][64] == pytest.approx(550_000 * flops / (64 * 200e12) / 86400)
    assert time["days"][8] == pytest.approx(8 * time["days"][64])


def test_plan_days_of_a_measured_step_are_steps_times_seconds() -> None:
    plan = of("text_to_video/base", None, "--gpus", "64", "--step_seconds", "2.5")
    time = plan._time(3 * 10**16)
    assert time is not None and time["days"][64] == pytest.approx(550_000 * 2.5 / 86400)
    assert time["tflops_per_gpu"] == pytest.approx(3e16 / 64 / 2.5 / 1e12)
    assert list(time["days"]) == [gpus for gpus in (1, 8, 16, 32, 64, 128) if not plan.datamodule.videos_per_batch % gpus]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tflops", "1", "--step_seconds", "1"], "both say how fast"),
        (["--tflops", "1", "--trainer.max_steps", "-1"], "a training without an end has no days"),
    ],
)
def test_plan_refuses_options_from_which_days_cannot_be_computed(arguments: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        of("ucf101/base_l", None, *arguments)._time(1)


@pytest.mark.parametrize("config", FULL_SIZE, ids=lambda path: "/".join(path.parts[-2:]))
def test_plan_every_experiment_stage_fits_on_80_gb_under_ddp(config: Path) -> None:
    """On cards of 80 GB under DDP."""
    plan = planned("--config", str(config))
    share, stage = share_of(plan.datamodule, plan.gpus), plan.model
    if isinstance(stage, VAEStage):
        peak = vae_stage_cost(stage, plan.datamodule, share, torch.bfloat16).peak
    else:
        peak = stage_cost(stage, stage.denoiser.config, share, 128, torch.float32, torch.bfloat16).peak
    trained = list(stage.parameters())
    moments, count = moment_bytes(stage.optimizer, trained)[False], sum(p.numel() for p in trained)
    held = engine_bytes("ddp", count, moments, plan.gpus, "bf16-mixed", 1, "gpu" if plan.options.ema.decay else None, {"kept": peak})
    assert held.total("kept") <= USABLE * 80 * 2**30


def test_plan_refuses_gpus_that_do_not_divide_the_batch() -> None:
    with pytest.raises(ValueError, match=r"data.videos_per_batch counts the global batch and must be a multiple of the 3 GPUs, got 256"):
        of("ucf101/base_l", None, "--gpus", "3").report()
    assert of("ucf101/base_l").gpus == 8 and of("text_to_video/sr1").gpus == 64


def test_plan_offload_moves_optimizer_and_average_from_the_gpu_to_the_host_of_a_node() -> None:
    held = of("ucf101/base_l", "strategy/zero2_offload").report()["bytes_per_gpu"]
    shared, offloaded = held["zero2"], held["zero2_offload"]
    parameters = shared["parameters"] / 2
    assert offloaded["total"]["kept"] == shared["total"]["kept"] - shared["gradients"] - shared["optimizer"]
    assert offloaded["host_of_node"] == pytest.approx(parameters * (4 + 4 + 8 + 4), rel=1e-4), "weights, gradients, moments and average"
    assert shared["ema"] == 0 and shared["host_of_node"] == pytest.approx(4 * parameters, rel=1e-4), "ema.cpu is true in this overlay"


def test_plan_of_compiled_layers_foresees_less_memory_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    eager, plan = (of("shapes/base", None, f"--model.compile={compile}") for compile in ("false", "true"))
    plan.show()
    said = " ".join(capsys.readouterr().out.split())
    assert "layers compiled" in said
    held = [plan.report()["bytes_per_gpu"]["ddp"]["activations"]["kept"] for plan in (eager, plan)]
    assert held[1] < held[0]


def test_plan_of_zero3_is_without_compilation_and_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """is_compiled of walt_pl/training/compiled_blocks.py: `auto` compiles none of the layers under ZeRO 3."""
    monkeypatch.setenv("COLUMNS", "250")
    eager, plan = (of("shapes/base", None, f"--model.compile={compile}") for compile in ("false", "auto"))
    uncompiled, held = (plan.report()["bytes_per_gpu"] for plan in (eager, plan))
    assert held["zero3"]["activations"] == uncompiled["zero3"]["activations"]
    assert held["zero2"]["activations"]["kept"] < uncompiled["zero2"]["activations"]["kept"]
    plan.show()
    said = capsys.readouterr().out
    assert "│ zero3, eager " in said and "│ zero2 " in said


def test_plan_of_an_autoencoder_says_flops_and_frames_a_second_of_a_clip(tmp_path: Path) -> None:
    """A lighter one is an overlay of its sizes alone."""
    light = tmp_path / "light.yaml"
    light.write_text("model: {init_args: {vae: {width: 64, num_res_blocks: [2, 2, 2, 2]}}}\n", encoding="utf-8")
    full, less = (of("ucf101/vae", None, *more, "--tflops", "200") for more in ((), ("--config", str(light))))
    clip, lighter = full._clip(share_of(full.datamodule, 64), {"tflops_per_gpu": 200}), less.report()["clip"]
    assert clip is not None and clip["frames"] == lighter["frames"] == 17
    # Two clips on one H200 at a3015f6: 757 and 557 frames/s at 199 and 203 TFLOP/s.
    assert clip["frames_per_second"] == pytest.approx({"encode": 757 * 200 / 199, "decode": 557 * 200 / 203}, rel=0.01)
    assert sum(lighter["flops"].values()) < sum(clip["flops"].values()) / 4
    assert lighter["frames_per_second"]["encode"] > 4 * clip["frames_per_second"]["encode"]
