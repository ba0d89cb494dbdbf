"""A trained weight in pieces: what this rank holds of its float32 values, and the way back to the whole.

DeepSpeed keeps the float32 weights (the masters, which the optimiser moves) flat, each rank a part of them; the module computes with
copies that are whole (ZeRO 1 and 2) or sharded once more (ZeRO 3), and of lower precision where so trained. On one device and under DDP the
piece is the weight itself. Two attributes of DeepSpeed's are half private: `_hp_mapping` (ZeRO 1 and 2) and `ds_tensor` (ZeRO 3).
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
    """Trainable parameters with their names."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def local_shard(p: nn.Parameter) -> Tensor | None:
    """What this rank holds of a weight's float32 values, as a live view; None where it holds nothing of it.

    An engine that only evaluates has no masters: there it is the working copy, in its precision.
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
    """All ranks together: the whole weight, float32, from every rank's piece of it (or of an average of it)."""
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
    """This rank's piece of a whole tensor [as the weight], on the tensor's device; None where it holds nothing of the weight."""
    if in_stage_3(p):
        size, rank = cast(Any, p).ds_tensor.numel(), dist.get_rank()
        mine = full.flatten()[rank * size : (rank + 1) * size]
        return torch.cat([mine, mine.new_zeros(size - len(mine))])  # the last ranks' pieces are padded
    if hasattr(p, "_hp_mapping"):
        return None if cast(Any, p)._hp_mapping is None else full.flatten()[_place(p)]
    return full


def non_finite_pieces(module: nn.Module, pieces: Mapping[str, Tensor]) -> str | None:
    """All ranks together: what is nan or infinite in the trained weights, or in their averages; the same on every rank, None for nothing.

    Args:
        module: whose weights they are.
        pieces: what this rank holds of each, by parameter name.
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
    """All ranks together: what is nan or infinite in the trained weights, as `non_finite_pieces` says it."""
    return non_finite_pieces(module, {name: piece for name, p in trainable_parameters(module) if (piece := local_shard(p)) is not None})


@contextmanager
def rewriting(module: L.LightningModule) -> Iterator[None]:
    """Pieces are written to inside, by all ranks; afterwards the module computes with what was written."""
    optimizer = _engine_optimizer(module)
    stage_3 = [p for _, p in trainable_parameters(module) if in_stage_3(p)]
    gathering = getattr(optimizer, "parameter_offload", optimizer)
    if stage_3:  # weights gathered for the last pass would be used again as they were
        gathering.partition_all_parameters()
    yield
    with torch.no_grad():
        for p in stage_3:
            piece = local_shard(p)
            assert piece is not None
            cast(Any, p).ds_tensor.data.copy_(piece)
    if stage_3 and gathering.persistent_parameters:  # small ones stay gathered
        gathering.persistent_parameters[0].all_gather(gathering.persistent_parameters)
    if hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()


def _engine_optimizer(module: L.LightningModule) -> Any:
    """DeepSpeed's, which keeps the masters; one that only evaluates has another thing there at stage 3, and nothing below."""
    strategy = module.trainer.strategy
    return strategy.deepspeed_engine.optimizer if isinstance(strategy, DeepSpeedStrategy) else None


def in_stage_3(p: nn.Parameter) -> bool:
    """Whether DeepSpeed holds this weight as ZeRO 3 does, itself in shards."""
    return hasattr(p, "ds_id")


def _place(p: nn.Parameter) -> slice:
    """Where this rank's piece lies in the flat weight."""
    address = cast(Any, p)._hp_mapping.lp_fragment_address
    return slice(address.start, address.start + address.numel)
