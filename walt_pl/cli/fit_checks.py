"""Check precision and engine of a stage, before anything is read or written."""

import re
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import StrategyRegistry

from walt_pl.blocks.compute import normalize_precision
from walt_pl.runs.checkpoint import STATE, Checkpoint
from walt_pl.runs.experiment_files import EXPERIMENTS, find_experiment
from walt_pl.runs.stage_names import kind_of

ZERO = "walt_pl.strategies.Zero"
"""Class path of the sharding strategy."""


def check_precision(trainer: Any) -> None:
    """Replace the precision in the options of the trainer by its full name; None stays.

    Raises:
        ValueError: the trained weights would not be float32.
    """
    trainer.precision = None if trainer.precision is None else normalize_precision(trainer.precision)


def check_engine(stage: str, options: Any) -> None:
    """Refuse strategies and settings that the stage cannot train with. The autoencoder has two optimisers that alternate.

    Args:
        stage: name of the stage.
        options: parsed arguments.

    Raises:
        ValueError: strategy, clipping, optimiser or precision do not fit; the message says what to type.
    """
    trainer, name = options.trainer, _strategy_name(options.trainer.strategy)
    overlays = sorted(path.stem for path in find_experiment(EXPERIMENTS / "strategy").glob("*.yaml"))
    lay_over = f"add --config experiments/strategy/NAME.yaml (NAME: {', '.join(overlays)})"
    sharded = name == ZERO
    if kind_of(stage) == "vae" and (sharded or "deepspeed" in name.lower()):
        raise ValueError(
            "trainer.strategy: DeepSpeed takes one optimiser, the autoencoder and its discriminator have two that take turns; leave it "
            "out, or add --config experiments/strategy/ddp.yaml (the autoencoder is small: DDP fits every card it trains on)"
        )
    if not sharded and "deepspeed" in name.lower():
        raise ValueError(f"trainer.strategy: {name} resumes and averages nothing here; for ZeRO {lay_over}")
    if name != "auto" and not hasattr(trainer.strategy, "class_path") and name not in StrategyRegistry:
        raise ValueError(f"trainer.strategy: no strategy {name!r}; leave it out for one device or DDP, or {lay_over}")
    if trainer.gradient_clip_val is not None:
        raise ValueError(
            "trainer.gradient_clip_val: the stages clip and log the norm; type "
            f"--model.gradient_clip_val {trainer.gradient_clip_val} instead"
        )
    optimizer = str(options.model.init_args.optimizer.class_path)
    if sharded and re.search("adafactor|muon", optimizer, re.IGNORECASE):
        raise ValueError(
            f"model.optimizer: ZeRO flattens the weights, and {optimizer} looks at their shapes; give "
            "--model.optimizer torch.optim.AdamW (text_to_video: --config experiments/text_to_video/adamw.yaml)"
        )
    if kind_of(stage) == "vae" and trainer.precision == "16-mixed":
        raise ValueError("trainer.precision: the autoencoder's two optimisers cannot share a gradient scaler; choose bf16-mixed or 32-true")


def check_shards(restored: Path | None, trainer: Any) -> None:
    """Refuse to resume from ZeRO shards with another strategy. The strategy itself checks the ZeRO stage.

    Args:
        restored: file or folder that the trainer restores from.
        trainer: options of the trainer.

    Raises:
        ValueError: the checkpoint needs another strategy.
    """
    if restored is None or restored.name != STATE:
        return
    written = Checkpoint.at(restored.parent).strategy
    if written.startswith("zero") and _strategy_name(trainer.strategy) != ZERO:
        raise ValueError(
            f"{restored.parent} was written with {written}: add --config experiments/strategy/{written}.yaml "
            f"(make: STRATEGY={written}) to go on, or start over with --from_scratch true"
        )


def _strategy_name(strategy: Any) -> str:
    """Return a strategy as it was typed: a name of Lightning's, or a class path."""
    return str(strategy.class_path) if hasattr(strategy, "class_path") else str(strategy)
