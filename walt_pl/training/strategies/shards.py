"""Local shards of the float32 weights: read them, gather them and shard them again.

DeepSpeed keeps the float32 weights (the masters, which the optimiser updates) flat, and each rank holds a part of them. The module computes
with copies, which are unsharded (ZeRO 1 and 2) or sharded as well (ZeRO 3), in lower precision if so trained. On one device and under DDP
the local shard is the weight itself. Two attributes of DeepSpeed's are half private: `_hp_mapping` (ZeRO 1 and 2) and `ds_tensor` (ZeRO 3).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from walt_pl.runs.finite import count_non_finite, describe_non_finite

Weights = list[tuple[str, nn.Parameter]]


def trainable_parameters(module: nn.Module) -> Weights:
    """Return the trainable parameters with their names."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def local_shard(p: nn.Parameter) -> Tensor | None:
    """Return this rank's shard of a weight's float32 values, as a live view; None if it holds no part of the weight.

    An engine that only evaluates has no masters. There the shard is that of the working copy, in its precision.
    """
    if in_stage_3(p):
        if not hasattr(p, "_z3_optimizer"):
            return cast(Any, p).ds_tensor.data
        from deepspeed.utils import safe_get_local_fp32_param

        return cast(Tensor, safe_get_local_fp32_param(p))
    if hasattr(p, "_hp_mapping"):
        mapping = cast(Any, p)._hp_mapping
        return None if mapping is None else cast(Tensor, mapping.get_hp_fragment())
    return p.data


def gather(p: nn.Parameter, piece: Tensor | None) -> Tensor:
    """Gather a weight, or an average of it, from the shards of all ranks; all ranks call it.

    Args:
        p: the weight.
        piece: this rank's shard, as `local_shard` returns it.

    Returns:
        The unsharded tensor, float32.
    """
    if in_stage_3(p):
        assert piece is not None
        pieces = [torch.empty_like(piece) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, piece.contiguous())
        return torch.cat(pieces)[: cast(Any, p).ds_numel].view(cast(Any, p).ds_shape).float()
    if hasattr(p, "_hp_mapping"):
        flat = torch.zeros(p.numel(), dtype=torch.float32, device=p.device)
        if piece is not None:
            flat[_place(p)] = piece
        dist.all_reduce(flat)
        return flat.view(p.shape)
    assert piece is not None
    return piece.float()


def shard(p: nn.Parameter, full: Tensor) -> Tensor | None:
    """Return this rank's shard of a tensor, on the tensor's device; None if it holds no part of the weight.

    Args:
        p: the weight that defines the sharding.
        full: unsharded tensor of the shape of the weight.
    """
    if in_stage_3(p):
        size, rank = cast(Any, p).ds_tensor.numel(), dist.get_rank()
        mine = full.flatten()[rank * size : (rank + 1) * size]
        return torch.cat([mine, mine.new_zeros(size - len(mine))])  # the shards of the last ranks are padded
    if hasattr(p, "_hp_mapping"):
        return None if cast(Any, p)._hp_mapping is None else full.flatten()[_place(p)]
    return full


def non_finite_pieces(module: nn.Module, pieces: Mapping[str, Tensor]) -> str | None:
    """Describe nan and infinite values in the trained weights or in their averages; all ranks call it.

    Args:
        module: module that has the weights.
        pieces: this rank's shard of each weight or average, by parameter name.

    Returns:
        The description, equal on all ranks; None if all values are finite.
    """
    weights = trainable_parameters(module)
    own = dict(zip(pieces, count_non_finite(list(pieces.values())), strict=True))
    counts = torch.tensor([own.get(name, 0) for name, _ in weights], device=weights[0][1].device)
    if dist.is_initialized():
        sharded = in_stage_3(weights[0][1]) or hasattr(weights[0][1], "_hp_mapping")
        dist.all_reduce(counts, dist.ReduceOp.SUM if sharded else dist.ReduceOp.MAX)
    sizes = [int(getattr(p, "ds_numel", p.numel())) for _, p in weights]
    return describe_non_finite([name for name, _ in weights], counts.tolist(), sizes)


def non_finite(module: nn.Module) -> str | None:
    """Describe nan and infinite values in the trained weights, as `non_finite_pieces` does; all ranks call it."""
    return non_finite_pieces(module, {name: piece for name, p in trainable_parameters(module) if (piece := local_shard(p)) is not None})


@contextmanager
def rewriting(module: L.LightningModule) -> Iterator[None]:
    """Allow writes to local shards inside the context; afterwards the module computes with the new values. All ranks call it."""
    optimizer = _engine_optimizer(module)
    stage_3 = [p for _, p in trainable_parameters(module) if in_stage_3(p)]
    gathering = getattr(optimizer, "parameter_offload", optimizer)
    if stage_3:  # otherwise weights that are still gathered from the last pass would be used again
        gathering.partition_all_parameters()
    yield
    with torch.no_grad():
        for p in stage_3:
            piece = local_shard(p)
            assert piece is not None
            cast(Any, p).ds_tensor.data.copy_(piece)
    if stage_3 and gathering.persistent_parameters:  # small weights stay gathered
        gathering.persistent_parameters[0].all_gather(gathering.persistent_parameters)
    if hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()


def _engine_optimizer(module: L.LightningModule) -> Any:
    """Return DeepSpeed's optimiser, which keeps the masters.

    An engine that only evaluates has another object there at stage 3, and None at lower stages.
    """
    strategy = module.trainer.strategy
    return strategy.deepspeed_engine.optimizer if isinstance(strategy, DeepSpeedStrategy) else None


def in_stage_3(p: nn.Parameter) -> bool:
    """Return whether the weight itself is sharded by DeepSpeed, as in ZeRO 3."""
    return hasattr(p, "ds_id")


def _place(p: nn.Parameter) -> slice:
    """Return the range of this rank's shard in the flat weight."""
    address = cast(Any, p)._hp_mapping.lp_fragment_address
    return slice(address.start, address.start + address.numel)
