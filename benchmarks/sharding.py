"""Bytes that each of two ranks holds of a denoiser in training, DDP and ZeRO 1, 2, 3, against the formulas of ``python -m walt_pl plan``.

    python -m benchmarks.sharding [--millions 20 200] [--engines ddp zero1 zero2 zero3]

Two CPU processes (gloo), float32, AdamW. Counted are the bytes of every distinct storage: of the weights and moments after a step, of the
gradients between the backward pass and the step. "gathered" are bytes that ZeRO 3 would hold whole; buckets are counted by none.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from stages.latent_diffusion import LatentDiffusion
from walt_pl.data.batch import JointBatch
from walt_pl.evaluation.program import machine
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.engine_memory import engine_bytes
from walt_pl.training.strategies.zero import ZeROStrategy

SHAPES = {20: (384, 10), 200: (1024, 15)}
"""Width and layers for so many millions of parameters."""
RANKS = 2


class Bare(LatentDiffusion):
    """The shared stage without parents: its batches are latents."""

    def setup(self, stage: str) -> None:
        pass


class Weigh(L.Callback):
    """Weighs what the ranks hold."""

    def __init__(self, ema: EMA) -> None:
        self.ema = ema
        self.bytes: dict[str, int] = {}

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        engine = _engine_optimizer(trainer)
        held = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if engine is not None:
            held += [g for gradients in engine.averaged_gradients.values() if gradients for g in gradients if g is not None]
        self.bytes["gradients"] = weigh(held)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        engine = _engine_optimizer(trainer)
        plain = trainer.optimizers[0] if engine is None else engine.optimizer
        state = [value for values in plain.state.values() for value in values.values() if isinstance(value, Tensor)]
        # Under ZeRO the optimiser's own parameters are the shards of the float32 weights.
        masters = [] if engine is None else [p for group in plain.param_groups for p in group["params"]]
        masters += getattr(engine, "fp32_partitioned_groups_flat", [])
        self.bytes["parameters"] = weigh(p.ds_tensor if hasattr(p, "ds_tensor") else p for p in pl_module.parameters())
        self.bytes["optimizer"] = weigh([*state, *masters])
        self.bytes["ema"] = weigh(self.ema._average.values())


def _engine_optimizer(trainer: L.Trainer) -> Any:
    return trainer.strategy.deepspeed_engine.optimizer if isinstance(trainer.strategy, ZeROStrategy) else None


def weigh(tensors: Iterable[Tensor]) -> int:
    """Bytes of distinct storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def train(engine: str, millions: int) -> None:
    """Two steps on every rank; rank zero prints what each holds."""
    width, layers = SHAPES[millions]
    torch.manual_seed(0)
    denoiser = DenoiserConfig(width=width, depth=layers, num_heads=width // 64, size=(3, 2, 2), window_size=(3, 2, 2))
    module = Bare(denoiser, lambda parameters: torch.optim.AdamW(parameters, lr=1e-4), warmup_steps=1)
    weights = [p.numel() for p in module.parameters()]
    ema = EMA(0.9)
    watch = Weigh(ema)
    zero = engine.startswith("zero")
    trainer = L.Trainer(
        accelerator="cpu",
        devices=RANKS,
        strategy=ZeROStrategy(int(engine[4]), bucket=2_000_000, keep_whole=0) if zero else engine,  # type: ignore[arg-type]
        max_steps=2,
        callbacks=[ema, watch],
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    video = torch.randn(1, denoiser.latent_channels, *denoiser.size)
    global_batch_index = torch.tensor([int(os.environ.get("LOCAL_RANK", 0))])
    batch = JointBatch(
        video, video[:0, :, :1], [""], global_batch_index - 1, torch.ones(1), global_batch_index, None, None, "latents", [""]
    )
    trainer.fit(module, DataLoader([batch, batch], collate_fn=lambda batches: batches[0]))
    everyones: list[Any] = [None] * RANKS
    dist.all_gather_object(everyones, watch.bytes)
    if trainer.is_global_zero:
        moments = 8 * sum(weights) + 4 * (len(weights) if not zero else RANKS)  # and a step count for each tensor that is optimised
        wanted = engine_bytes(engine, sum(weights), moments, RANKS, "32-true", 1, True, {})  # type: ignore[arg-type]
        figures: dict[str, Any] = {"engine": engine, "count": sum(weights)}
        for name in ("parameters", "gradients", "optimizer", "ema"):
            figures[name] = {"ranks": [held[name] for held in everyones], "formula": getattr(wanted, name)}
        print("FIGURES " + json.dumps(figures), flush=True)


def main() -> None:
    """Run each engine in processes of its own and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--engines", nargs="+", default=["ddp", "zero1", "zero2", "zero3"])
    parser.add_argument("--one", action="store_true", help="this process is a rank")
    arguments = parser.parse_args()
    if arguments.one:
        train(arguments.engines[0], arguments.millions[0])
        return
    results = []
    for millions in arguments.millions:
        for engine in arguments.engines:
            command = [sys.executable, "-m", "benchmarks.sharding", "--one", "--millions", str(millions), "--engines", engine]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append(next(json.loads(line[8:]) for line in done.stdout.splitlines() if line.startswith("FIGURES ")))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"machine": machine(), "results": results}, indent=2))


if __name__ == "__main__":
    main()
