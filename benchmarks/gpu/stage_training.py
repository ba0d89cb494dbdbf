"""Stages of the experiments on synthetic data, in Lightning's Trainer, without parents and without files of a run."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import ArgumentParser

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.experiments import EXPERIMENTS, QUICK_DENOISER, QUICK_VAE, read_experiment
from benchmarks.gpu.synthetic_data import CAPTIONS, SyntheticData, SyntheticSource
from stages.super_resolution import SuperResolutionStage
from stages.vae import VAEStage
from walt_pl.text.small_encoder import SmallTextConfig, SmallTextEncoder, train_vocabulary
from walt_pl.training.callbacks.ema import EMA

SHORT = {"warmup_steps": 0, "lr_schedule": "constant"}
"""A schedule for trainings of a few steps."""
SMALL_TEXT = {"depth": 1, "num_heads": 2, "vocab_size": 64, "max_length": 12}


def build_stage(experiment: str, changes: Mapping[str, Any]) -> Any:
    """Return the stage of an experiment, as the command line would make it, on the CPU.

    Args:
        experiment: such as ucf101/base_l.
        changes: arguments of the stage in place of the experiment's; of a network, its fields.
    """
    model = read_experiment(EXPERIMENTS / f"{experiment}.yaml")["model"]
    arguments = model["init_args"]
    for key, value in {**SHORT, **changes}.items():
        arguments[key] = {**arguments[key], **value} if isinstance(arguments.get(key), dict) else value
    parser = ArgumentParser()
    parser.add_subclass_arguments(L.LightningModule, "model")
    torch.manual_seed(0)
    stage = parser.instantiate(parser.parse_object({"model": model})).model
    if not isinstance(stage, VAEStage):
        stage.vae_path = "synthetic"
        stage._vae = [torch.nn.Identity()]  # batches are latents: it is never called
    width = None if isinstance(stage, VAEStage) else stage.denoiser.config.text_width
    if isinstance(stage, SuperResolutionStage) and width:
        text = SmallTextEncoder(SmallTextConfig(width=width, **SMALL_TEXT))  # type: ignore[arg-type]
        text.load_vocabulary(train_vocabulary(list(CAPTIONS), 64))
        stage._text = [text]
    return stage


def build_data(stage: Any, videos: int, images: int, clip: tuple[int, int, int]) -> SyntheticData:
    """Return batches for a stage; `clip` is frames, rows and columns of pixels, for an autoencoder alone."""
    if isinstance(stage, VAEStage):
        return SyntheticData(SyntheticSource((3, *clip), "pixels", 0, False), videos, images)
    config = stage.denoiser.config
    shape = (config.latent_channels, *config.size)
    source = SyntheticSource(shape, "latents", config.num_classes or 0, config.super_resolution)
    return SyntheticData(source, videos, images)


def build_trainer(bench: Bench, folder: Path, steps: int, callbacks: Sequence[L.Callback], strategy: Any = "auto") -> L.Trainer:
    """Return a Trainer with the average of the weights, bfloat16 where the device has it, and no files."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return L.Trainer(
        accelerator="gpu" if bench.device.type == "cuda" else "cpu",
        devices=1,
        strategy=strategy,
        precision="bf16-mixed" if bench.dtype == torch.bfloat16 else "32-true",
        max_steps=steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **dict.fromkeys(["enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False),
    )


def average() -> EMA:
    return EMA(0.999)


def quick_changes(experiment: str) -> dict[str, Any]:
    """Return tiny sizes for the stage of an experiment."""
    discriminator = {"width": 8, "channel_multipliers": [1, 1], "size": [16, 16]}
    return {"vae": QUICK_VAE, "discriminator": discriminator} if "vae" in experiment else {"denoiser": QUICK_DENOISER}
