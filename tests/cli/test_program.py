"""Every stage through the real command line, and what it says when something is wrong."""

import json
import shutil
from pathlib import Path

import av
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.helpers.environment import ROOT, Walt
from walt_pl.data.index import Index
from walt_pl.media.reading import read_video
from walt_pl.models.vae import VAE
from walt_pl.runs.artifact import load
from walt_pl.runs.checkpoint import Checkpoint

EXPERIMENT = ROOT / "experiments" / "shapes"
SMALL_VAE = ["--model.vae.width", "8", "--model.vae.channel_multipliers", "[1, 1, 2]"]
SMALL_DENOISER = ["--model.denoiser.width", "32", "--model.denoiser.depth", "2", "--model.denoiser.num_heads", "2"]
TINY = {
    "vae": [*SMALL_VAE, "--data.crop", "16", "--data.size", "32", "--data.sizes", "[]", "--data.videos_per_batch", "2"],
    "base": [*SMALL_DENOISER, "--data.videos_per_batch", "2"],
    "sr1": [*SMALL_DENOISER, "--data.videos_per_batch", "2"],
    "sr2": [*SMALL_DENOISER, "--data.videos_per_batch", "2"],
}
TWO_STEPS = [
    *["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--model.warmup_steps", "1", "--data.val_videos", "4"],
    *["--data.num_workers", "0", "--data.image_stacks_per_batch", "1", "--trainer.precision", "32-true"],
]


def sampling_fps(clip: Path) -> float:
    with av.open(str(clip)) as container:
        return float(container.streams.video[0].average_rate or 0)


def fit(walt: Walt, stage: str, run: Path, painted: Path, *more: str, check: bool = True) -> str:
    config = ["--config", str(EXPERIMENT / f"{stage}.yaml"), "--run", str(run), "--data.index", str(painted)]
    done = walt("fit", *config, *TINY[stage.partition("_")[0]], *TWO_STEPS, *more, check=check)
    return done.said


@pytest.fixture(scope="module")
def run(walt: Walt, painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all stages, two steps each."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    for stage in TINY:
        fit(walt, stage, run, painted)
    return run


def test_fit_command_trains_every_stage_and_writes_artifacts_that_load(run: Path) -> None:
    states = json.loads((run / "manifest.json").read_text())["stages"]
    assert list(states) == list(TINY)
    for stage in TINY:
        artifact = load(run / stage, verify=True)
        assert artifact.card["steps"] == 2
        assert artifact.models
        assert all(torch.isfinite(p).all() for model in artifact.models.values() for p in model.parameters())


def test_artifact_keeps_the_guidance_of_its_configuration(run: Path) -> None:
    kept = {stage: load(run / stage).config["diffusion"]["guidance"] for stage in ("base", "sr1", "sr2")}
    others = {"shape": "constant", "power": 4.0, "rescale": 0.0}
    assert kept == {"base": {"scale": 2.0, **others}, "sr1": {"scale": 1.0, **others}, "sr2": {"scale": 1.0, **others}}


def test_artifact_and_checkpoint_keep_the_fps_that_sample_writes(walt: Walt, run: Path, painted: Path, tmp_path: Path) -> None:
    assert [load(run / stage).config["video"] for stage in TINY] == [{"fps": 8.0}] * len(TINY), "that of the painted files"
    other = Path(shutil.copytree(run, tmp_path / "other"))
    fit(walt, "base", other, painted, "--data.fps", "16", "--from_scratch", "true")
    walt("export", str(other / "training" / "base" / "checkpoints"), "--out", str(tmp_path / "exported"))
    assert load(other / "base").config["video"] == load(tmp_path / "exported").config["video"] == {"fps": 16.0}
    clip = tmp_path / "clip.mp4"
    prompt = ["--prompt", "a plain red circle moving left", "--steps", "1", "--stages", "base"]
    walt("sample", "--run", str(other), *prompt, "--seconds", "0.5", "--out", str(clip))
    assert (sampling_fps(clip), len(read_video(clip, 8))) == (16, 8)


def test_artifact_reloaded_gives_the_outputs_of_the_trained_ema(run: Path) -> None:
    last = Checkpoint.newest(run / "training" / "vae" / "checkpoints")
    assert last is not None and last.ema is not None
    average = load_file(last.ema)
    artifact = load(run / "vae").models["vae"]
    trained = VAE(artifact.config)  # type: ignore[arg-type]
    trained.load_state_dict({name.removeprefix("vae."): value for name, value in average.items()})
    x = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    assert torch.equal(artifact.encode(x).mean, trained.eval().encode(x).mean)  # type: ignore[operator]


def test_fit_command_does_not_train_a_finished_stage_again(walt: Walt, run: Path, painted: Path) -> None:
    said = fit(walt, "vae", run, painted)
    assert "is done; nothing was trained. It ended after step 2 (trainer.max_steps 2)" in said
    assert "add --trainer.max_steps N with N above 2 to train it longer; add --from_scratch true (make: FRESH=1) to start over" in said


def test_verify_command_names_the_stages_it_read(walt: Walt, run: Path) -> None:
    assert f"{run}: every byte of {', '.join(TINY)} is as its stage left it" in walt("verify", "--run", str(run)).said
    refused = walt("verify", "--run", str(run.parent / "typo"), check=False)
    assert refused.code and f"typo is no run, it has no manifest.json; there are: {run}" in refused.said


def test_validate_command_runs_on_a_finished_stage(walt: Walt, run: Path, painted: Path) -> None:
    config = ["--config", str(EXPERIMENT / "base.yaml"), "--run", str(run), "--data.index", str(painted)]
    shared = [*TINY["base"], "--data.val_videos", "4", "--data.num_workers", "0", "--trainer.precision", "32-true"]
    assert "val/loss" in walt("validate", *config, *shared).said


def test_evaluate_command_scores_a_vae_alone_on_its_training_data(walt: Walt, run: Path) -> None:
    said = walt("evaluate", str(run), "--stages", "vae").said
    assert "psnr_lowest" in said and f"look at {run}/reconstructions.png" in said.replace("\n", "")
    assert (run / "reconstructions.png").stat().st_size and (run / "reconstructions.gif").stat().st_size


def test_sample_command_same_seed_gives_the_same_bytes(walt: Walt, run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        out = str(tmp_path / f"{name}.mp4")
        walt(
            "sample",
            "--run",
            str(run),
            "--prompt",
            "a plain red circle moving left",
            "--steps",
            "2",
            "--seed",
            "4",
            "--out",
            out,
        )
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert (tmp_path / "a.gif").exists()
    assert (tmp_path / "a.png").exists()


def test_sample_command_stops_at_a_stage_and_takes_guidance_by_stage(walt: Walt, run: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a plain red circle moving left\na dotted blue bar growing\n")
    out = str(tmp_path / "base.mp4")
    chosen = [
        "--stages",
        "base",
        "--guidance",
        '{"base": 3}',
        "--negative-prompt",
        "a plain red bar",
        "--tile",
        "4",
        "--chunk",
        "2",
    ]
    walt("sample", "--run", str(run), "--prompts", str(prompts), "--steps", "2", "--out", out, *chosen)
    assert (tmp_path / "base_001.mp4").exists()


def test_sample_command_continues_images_and_clips_after_frame_prediction_training(
    walt: Walt, run: Path, painted: Path, tmp_path: Path
) -> None:
    image, clip, long = painted.parent / "val" / "images" / "00000.png", tmp_path / "clip.mp4", tmp_path / "long.mp4"
    sample = ["sample", "--steps", "1", "--stages", "base"]
    refused = walt(*sample, "--run", str(run), "--image", str(image), "--out", str(clip), check=False)
    assert refused.code
    assert "without frame prediction" in refused.said and "Traceback" not in refused.said
    assert not list(tmp_path.iterdir())
    shutil.copytree(run, tmp_path / "past")
    fit(walt, "base_long_video", tmp_path / "past", painted, "--stage", "base", "--from_scratch", "true")
    walt(*sample, "--run", str(tmp_path / "past"), "--image", str(image), "--out", str(clip))
    walt(*sample, "--run", str(tmp_path / "past"), "--continue", str(clip), "--seconds", "3", "--guidance", "2", "--out", str(long))
    assert len(read_video(clip, 17)) == 17
    assert len(read_video(long, 24)) == 24


def test_sample_command_knows_the_words_and_classes_of_the_training(walt: Walt, run: Path, painted: Path, tmp_path: Path) -> None:
    prompt = ["sample", "--steps", "1", "--stages", "base", "--out", f"{tmp_path}/"]
    said = " ".join(walt(*prompt, "--run", str(run), "--prompt", "a plain purple circle moving left").said.split())
    assert "no training caption has the words purple:" in said
    data = Path(shutil.copytree(painted.parent, tmp_path / "data")) / painted.name
    data.with_suffix(".classes.txt").write_text("".join(f"shape {number}\n" for number in range(64)))
    labelled = Path(shutil.copytree(run, tmp_path / "labelled"))
    overlay = tmp_path / "classes.yaml"
    overlay.write_text("model: {init_args: {text: null, denoiser: {text_width: null, num_classes: 64}}}")
    fit(walt, "base", labelled, data, "--config", str(overlay), "--from_scratch", "true")
    labels = set(Index(data, "train").videos.column("label").tolist()) | set(Index(data, "train").images.column("label").tolist())
    assert load(labelled / "base").config["classes"] == {label: f"shape {label}" for label in sorted(labels)}
    walt(*prompt, "--run", str(labelled), "--label", f"Shape {min(labels)}")
    assert (tmp_path / "clip-2.mp4").exists()
    unknown = min(set(range(64)) - labels)
    refused = walt(*prompt, "--run", str(labelled), "--label", str(unknown), check=False)
    assert refused.code and f"--label {unknown}: the training data had no clip of this class" in refused.said
    walt("export", str(labelled / "training" / "base" / "checkpoints"), "--out", str(tmp_path / "exported"))
    assert load(tmp_path / "exported").config["classes"] == load(labelled / "base").config["classes"]


def test_cache_command_finds_and_repairs_damaged_shards(walt: Walt, run: Path, painted: Path) -> None:
    shard = next((run / "cache").rglob("train-32x32-*/videos/00000.f16"))
    whole = shard.read_bytes()
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    config = ["--config", str(EXPERIMENT / "base.yaml"), "--run", str(run), "--data.index", str(painted)]
    done = walt("cache", *config, *TINY["base"], *TWO_STEPS)
    assert "this shard is rebuilt" in done.said and "cache: whole" in done.said
    assert shard.read_bytes() == whole
    refused = walt("cache", "--config", str(EXPERIMENT / "vae.yaml"), "--run", str(run), "--data.index", str(painted), check=False)
    assert 'cache: stage "vae" trains on pixels' in refused.said and "Traceback" not in refused.said


def test_fit_command_missing_parent_is_one_sentence_with_the_command(walt: Walt, painted: Path, tmp_path: Path) -> None:
    said = fit(walt, "base", tmp_path / "empty", painted, check=False)
    assert "error:" in said
    assert 'needs stage "vae"' in said
    assert f'make train-vae EXP=shapes ARGS="--run {tmp_path / "empty"}"' in said
    assert "Traceback" not in said


def test_fit_command_records_an_exported_parent_and_sample_uses_it(walt: Walt, run: Path, painted: Path, tmp_path: Path) -> None:
    raw, own = tmp_path / "raw", tmp_path / "own"
    walt("export", str(run / "training" / "vae" / "checkpoints"), "--out", str(raw), "--ema", "false", "--index", str(painted))
    refused = fit(walt, "base", run, painted, "--model.vae", str(raw), "--from_scratch", "true", check=False)
    assert f"is not the vae of {run}, which has trained its own ({load(run / 'vae').sha256[:12]})" in refused
    assert "Traceback" not in refused
    fit(walt, "base", own, painted, "--model.vae", str(raw))
    assert load(own / "base").card["parents"] == {"vae": load(raw).sha256}
    assert "is done" in fit(walt, "base", own, painted)
    mixed = fit(walt, "base", own, painted, "--data.vae", str(run / "vae"), "--from_scratch", "true", check=False)
    assert "leave data.vae out" in mixed and "Traceback" not in mixed
    # Those that come after find it without being told.
    fit(walt, "sr1", own, painted)
    assert load(own / "sr1").card["parents"]["vae"] == load(raw).sha256
    walt("sample", "--run", str(own), "--prompt", "a plain red circle moving left", "--steps", "1", "--out", str(tmp_path / "clip.mp4"))


def test_fit_command_names_a_parent_that_changed_under_an_interrupted_stage(walt: Walt, run: Path, painted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    holder = {"host": "elsewhere", "pid": 1, "born": None, "time": manifest["stages"]["base"]["artifact"]["finished"]}
    manifest["stages"]["base"]["training"] = {"holder": holder, "parents": {"vae": "0123456789abcdef" * 4}}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    said = fit(walt, "base", copy, painted, check=False)
    assert (
        f'changed since: "vae" (now {load(copy / "vae").sha256[:12]}, training began with 0123456789ab); to go on all the same add ' in said
    )
    assert f"--ckpt_path {copy}/training/base/checkpoints/step=00000002 --allow_changed true; to start over add --from_scratch" in said
    assert "Traceback" not in said


def test_fit_command_retrained_parent_makes_its_children_stale(walt: Walt, run: Path, painted: Path) -> None:
    fit(walt, "vae", run, painted, "--from_scratch", "true", "--seed_everything", "5")
    sample = [
        "sample",
        "--run",
        str(run),
        "--prompt",
        "a plain red circle moving left",
        "--steps",
        "1",
        "--stages",
        "base",
    ]
    refused = walt(*sample, "--out", str(run / "x.mp4"), check=False)
    assert refused.code
    assert "stale" in refused.said
    walt(*sample, "--out", str(run / "x.mp4"), "--allow-stale", "true")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--model.vae.widht", "8"], "widht"),
        (["--model.vae.width", "wide"], "wide"),
        (["--data.sise", "8"], "sise"),
        (["--trainer.max_stepz", "8"], "max_stepz"),
        (["--model.vae.norm", "batch"], "batch"),
        (["--model.vae.blocks", "[1]"], "blocks"),
    ],
)
def test_fit_command_names_a_wrong_key_or_value(walt: Walt, painted: Path, tmp_path: Path, arguments: list[str], named: str) -> None:
    config = ["--config", str(EXPERIMENT / "vae.yaml"), "--run", str(tmp_path / "r"), "--data.index", str(painted)]
    done = walt("fit", *config, *arguments, check=False)
    assert done.code
    assert named in done.said
    assert "Traceback" not in done.said
    assert not (tmp_path / "r").exists()


def test_fit_command_names_windows_that_do_not_fit(walt: Walt, painted: Path, run: Path) -> None:
    said = fit(
        walt,
        "sr1",
        run,
        painted,
        "--model.denoiser.window_size",
        "[5, 3, 3]",
        "--allow_stale",
        "true",
        "--from_scratch",
        "true",
        check=False,
    )
    assert "denoiser.window_size must divide" in said
    assert "Traceback" not in said


def test_fit_command_trains_with_the_adversarial_term(walt: Walt, painted: Path, tmp_path: Path) -> None:
    discriminator = [
        "--model.discriminator.width",
        "8",
        "--model.discriminator.channel_multipliers",
        "[2, 2]",
        "--model.discriminator.size",
        "[16, 16]",
    ]
    fit(walt, "vae", tmp_path / "gan", painted, *discriminator, "--model.adversarial_weight", "0.1", "--model.r1_every", "2")
    # Two optimisers, and still a step a batch.
    assert load(tmp_path / "gan" / "vae").card["steps"] == 2


def test_fit_command_merges_layered_config_files(walt: Walt) -> None:
    """tests/experiments/test_documented_commands.py parses every file of experiments/ in the combinations that its first lines document."""
    layers = ["experiments/ucf101/base_l_separate.yaml", "experiments/ucf101/rank_4.yaml"]
    said = walt("fit", *(word for layer in layers for word in ("--config", layer)), "--print_config").said
    config = yaml.safe_load(said)
    assert config["model"]["init_args"]["denoiser"]["lora_rank"] == 4  # of the overlay
    assert config["model"]["init_args"]["denoiser"]["num_classes"] == 101  # of base_l, which base_l_separate lies over
    assert config["trainer"]["precision"] == "bf16-mixed"  # of common/gpu.yaml, two files further down


def test_fit_command_finishes_a_stage_killed_before_its_artifact_was_written(walt: Walt, painted: Path, tmp_path: Path) -> None:
    run = tmp_path / "late"
    fit(walt, "vae", run, painted)
    weights = (run / "vae" / "model.safetensors").read_bytes()
    manifest = json.loads((run / "manifest.json").read_text())
    stage = manifest["stages"]["vae"]
    holder = {"host": "elsewhere", "pid": 1, "born": None, "time": stage["artifact"]["finished"]}
    stage["artifact"], stage["training"] = None, {"holder": holder, "parents": {}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(run / "vae")
    assert "going on from" in fit(walt, "vae", run, painted)
    assert (run / "vae" / "model.safetensors").read_bytes() == weights


def test_init_from_starts_with_the_weights_of_an_artifact(walt: Walt, painted: Path, run: Path, tmp_path: Path) -> None:
    still = ["--init", str(run / "vae"), "--model.optimizer.lr", "0", "--ema.decay", "0"]
    fit(walt, "vae", tmp_path / "finetuned", painted, *still)
    before, after = (load(folder / "vae").models["vae"].state_dict() for folder in (run, tmp_path / "finetuned"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    refused = fit(walt, "vae", tmp_path / "wrong", painted, "--init", str(run / "vae"), "--model.vae.width", "16", check=False)
    assert "is of another size: width is 8 there and 16 here; nothing may differ" in refused
    assert "Traceback" not in refused


def test_init_from_starts_a_video_vae_from_an_image_vae(walt: Walt, painted: Path, tmp_path: Path) -> None:
    images = ["--model.vae.time_kernel", "1", "--model.vae.strides", "[[1, 2, 2], [1, 2, 2]]", "--data.frames", "1"]
    fit(walt, "vae", tmp_path / "images", painted, *images)
    still = ["--init", str(tmp_path / "images" / "vae"), "--model.optimizer.lr", "0", "--ema.decay", "0"]
    fit(walt, "vae", tmp_path / "videos", painted, *still)
    image, video = (load(tmp_path / name / "vae").models["vae"] for name in ("images", "videos"))
    assert isinstance(image, VAE) and isinstance(video, VAE)
    assert (image.config.factors, video.config.factors) == ((1, 4, 4), (4, 4, 4))
    x = torch.rand(1, 3, 1, 32, 32) * 2 - 1
    torch.testing.assert_close(video.encode(x).mean, image.encode(x).mean, atol=1e-5, rtol=1e-5)


def test_fit_command_refuses_deepspeed_for_the_vae_with_the_reason(walt: Walt, painted: Path, tmp_path: Path) -> None:
    said = fit(walt, "vae", tmp_path / "zero", painted, "--trainer.strategy", "deepspeed_stage_2", check=False)
    assert "one optimiser" in said
    assert "Traceback" not in said
