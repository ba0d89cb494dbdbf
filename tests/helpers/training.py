"""A training of a few seconds for tests that start the program: what to type, and what it is trained from."""

import json
import shutil
from pathlib import Path

from tests.helpers.environment import ROOT

STEPS = 12
DISCRIMINATOR = "{width: 8, channel_multipliers: [2, 2], size: [16, 16]}"
DENOISER = ["--model.denoiser.width", "32", "--model.denoiser.depth", "2", "--model.denoiser.num_heads", "2"]
ADAMW = ["--model.optimizer", "{class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}"]
SHARDED = ["--trainer.devices", "2", "--trainer.strategy", "{class_path: walt_pl.strategies.Zero, init_args: {stage: 2, bucket: 1000000}}"]
SMALL = {
    # Everything with a state: the discriminator starts in the middle, and its penalty and running means change with the steps.
    "vae": [
        *["--model.vae.width", "8", "--model.vae.channel_multipliers", "[1, 1, 2]", "--model.discriminator", DISCRIMINATOR, *ADAMW],
        *["--model.adversarial_weight", "0.1", "--model.adversarial_start", "3", "--model.r1_every", "2", "--model.lecam_decay", "0.9"],
        *["--data.crop", "16", "--data.size", "32", "--data.sizes", "[16, 32]"],
    ],
    # Every draw that a step makes: self-conditioning, dropped captions, given frames.
    "base": [*DENOISER, "--model.denoiser.frame_prediction", "0.1", "--model.denoiser.self_conditioning", "0.9"],
    "sr1": [*DENOISER, "--model.denoiser.self_conditioning", "0.9"],
}


def arguments(stage: str, run: Path, index: Path, *more: str) -> list[str]:
    """16 clips by 2: an epoch has 8 steps. It is validated in the middle and at the edge."""
    return ["--config", str(ROOT / "experiments" / "shapes" / f"{stage}.yaml"), "--run", str(run), *options(stage, index, *more)]


def options(stage: str, index: Path, *more: str) -> list[str]:
    """All arguments but those that name the stage and its run."""
    return [
        *["--data.index", str(index), *SMALL[stage], "--model.warmup_steps", "2", "--trainer.max_steps", str(STEPS)],
        *["--trainer.precision", "32-true", "--data.videos_per_batch", "2", "--data.image_stacks_per_batch", "2"],
        *["--data.images_per_stack", "1", "--data.val_videos", "2", "--data.num_workers", "0", "--trainer.val_check_interval", "4"],
        *["--trainer.log_every_n_steps", "1", "--previews.every_n_validations", "0"],
        *["--trainer.accelerator", "cpu", "--trainer.devices", "1", *more],
    ]


def copy_parents(parents: Path, run: Path, stage: str) -> None:
    """A run that has what a stage is trained from, and not the stage."""
    shutil.copytree(parents, run, ignore=shutil.ignore_patterns(*(["training"] if stage == "base" else [])))
    if stage == "base":
        shutil.rmtree(run / "base", ignore_errors=True)
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["stages"].pop("base", None)
        (run / "manifest.json").write_text(json.dumps(manifest))
