"""Bytes that DDP and the stages of ZeRO hold on each GPU, and bytes of their checkpoints."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

BUCKET, LIVE = 200_000_000, 1_000_000_000
"""Elements of a communication bucket (Lightning's default), and of the parameters that ZeRO-3 keeps gathered (DeepSpeed's default)."""

Engine = Literal["ddp", "zero1", "zero2", "zero2_offload", "zero3"]
"""DDP, the stages of ZeRO, and stage 2 with the optimiser in the memory of the host (experiments/strategy/zero2_offload.yaml)."""


@dataclass(frozen=True)
class EngineMemory:
    """Bytes that one GPU holds, and its process on the host."""

    parameters: int
    gradients: int
    optimizer: int
    """Moments, and under ZeRO also the float32 weights."""
    ema: int
    buffers: int
    """Buffers that the engine sends from and gathers into."""
    activations: dict[str, int]
    """Peak of the activations by way: "kept" through the forward pass, or "recomputed" by activation checkpointing."""
    host: int = 0
    """Bytes in the memory of the host: the average where it is kept there; with offload also float32 weights, gradients and moments."""

    def total(self, way: str) -> int:
        """Return the sum of all parts that are on the GPU.

        Args:
            way: "kept" or "recomputed" activations.
        """
        return self.parameters + self.gradients + self.optimizer + self.ema + self.buffers + self.activations[way]


def engine_bytes(
    engine: Engine,
    count: int,
    moments: int,
    gpus: int,
    precision: str,
    accumulate: int,
    ema: Literal["gpu", "host"] | None,
    activations: dict[str, int],
) -> EngineMemory:
    """Return the bytes that an engine holds of ``count`` trained parameters on each GPU.

    Args:
        engine: DDP as Lightning runs it, or a stage of DeepSpeed's ZeRO.
        count: number of trained parameters.
        moments: bytes of the optimiser's state for unsharded float32 parameters.
        gpus: number of GPUs that share a batch.
        precision: precision of the trainer. "bf16-mixed" keeps float32 weights under DDP; DeepSpeed makes the weights bfloat16.
        accumulate: batches of an optimiser step.
        ema: memory of the average; None for no average. With offload it is always the host's.
        activations: bytes of the activations in the engine's arithmetic, by way.
    """
    if engine == "ddp":
        # DDP's buckets are as large as the gradients, which are copied into them and back.
        average = 4 * count
        buckets = 4 * count * (gpus > 1)
        return EngineMemory(4 * count, 4 * count, moments, average * (ema == "gpu"), buckets, activations, average * (ema == "host"))
    word, stage, offload = 4 if precision == "32-true" else 2, int(engine[4]), engine.endswith("offload")

    def shard(size: int) -> int:
        return math.ceil(size / gpus)

    # Stages 1 and 2 differ only with accumulation: then stage 1 holds the unsharded gradients. The average is of the local shard.
    gradients = word * count if stage == 1 and accumulate > 1 else shard(word * count)
    gathered = word * min(count, LIVE) if stage == 3 else 0
    # One bucket is filled while the other is sent. Gradients are sent as float32.
    buckets = 2 * word * BUCKET + (4 * BUCKET if word < 4 else 0)
    parameters = shard(word * count) if stage == 3 else word * count
    average = shard(4 * count) if ema else 0
    if offload:
        # Gradients leave the GPU from the buckets. The host holds them as float32, and once more while batches are accumulated.
        host = shard(8 * count + moments + word * count * (accumulate > 1)) + average
        return EngineMemory(parameters, 0, 0, 0, buckets, activations, host)
    is_on_gpu = ema == "gpu"
    optimizer = shard(4 * count + moments)
    return EngineMemory(parameters, gradients, optimizer, average * is_on_gpu, gathered + buckets, activations, average * (not is_on_gpu))


def checkpoint_bytes(engine: Engine, weights: int, count: int, moments: int, precision: str, ema: bool) -> int:
    """Return the bytes of one checkpoint on disk, of all ranks together.

    Args:
        engine: engine that writes it.
        weights: elements of the module's parameters and buffers.
        count: number of trained parameters.
        moments: bytes of the optimiser's state, as for `engine_bytes`.
        precision: precision of the trainer, as for `engine_bytes`.
        ema: whether there is an average, which is a separate float32 file.
    """
    if engine == "ddp":
        return 4 * weights + moments + 4 * count * ema
    # The shards hold float32 weights and moments. Stages 1 and 2 also write the weights in compute precision, stage 3 does not.
    word = 4 if precision == "32-true" else 2
    return (0 if engine == "zero3" else word * weights) + 4 * count + moments + 4 * count * ema


def moment_bytes(optimizer: OptimizerCallable, parameters: list[nn.Parameter]) -> dict[bool, int]:
    """Return the bytes of an optimiser's state after a step on float32 parameters.

    Args:
        optimizer: function that makes the optimiser of a list of parameters.
        parameters: trained parameters.

    Returns:
        Bytes by whether the parameters are flattened, as ZeRO does. AdamW then takes the place of Adafactor, which cannot factor a flat
        vector.
    """
    copies = [nn.Parameter(torch.empty_like(p, device="meta", dtype=torch.float32)) for p in parameters]
    made = optimizer(copies)
    for p in copies:
        p.grad = torch.empty_like(p)
    made.step()
    held = sum(
        value.numel() * value.element_size() for state in made.state.values() for value in state.values() if isinstance(value, Tensor)
    )
    # Known by its name: the import of timm takes half a second, and a plan needs nothing else of it.
    factored = any(kind.__name__ == "AdafactorBigVision" for kind in type(made).__mro__)
    return {False: held, True: 8 * sum(p.numel() for p in copies) if factored else held}
