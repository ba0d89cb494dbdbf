"""Gradients between the backward pass and the optimiser step, unsharded or in ZeRO's shards: their norms, and how to drop them."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from walt_pl.training.strategies.shards import in_stage_3, trainable_parameters


def gradient_norms(module: nn.Module) -> dict[str, Tensor]:
    """Return the gradient norm of each trained weight that has a gradient; all ranks call it.

    Returns:
        Parameter name -> norm, a float32 scalar that is equal on all ranks.
    """
    weights = trainable_parameters(module)
    sharded = any(in_stage_3(p) or hasattr(p, "_hp_mapping") for _, p in weights)
    pieces = {name: piece for name, p in weights if (piece := _piece(p)) is not None}
    if sharded:
        squares = torch.zeros(len(weights), dtype=torch.float32, device=weights[0][1].device)
        places = {name: place for place, (name, _) in enumerate(weights)}
        # Under offload the gradients are on the CPU.
        squares[[places[name] for name in pieces]] = torch.stack(_norms(pieces)).square().to(squares)
        dist.all_reduce(squares)
        return dict(zip(places, squares.sqrt(), strict=True))
    return dict(zip(pieces, _norms(pieces), strict=True))


def _norms(pieces: dict[str, Tensor]) -> list[Tensor]:
    return list(torch._foreach_norm(list(pieces.values()), 2, torch.float32)) if pieces else []


def _piece(p: nn.Parameter) -> Tensor | None:
    """Return this rank's shard of a weight's gradient, averaged over ranks; None if it holds no part of the weight."""
    if in_stage_3(p):
        from deepspeed.utils import safe_get_local_grad

        return cast(Tensor, safe_get_local_grad(p))
    if hasattr(p, "_hp_mapping"):
        mapping = cast(Any, p)._hp_mapping
        return None if mapping is None else cast(Tensor, mapping.get_lp_grad_fragment(cast(Any, p)._index_in_param_group))
    return p.grad


def drop_gradients(module: nn.Module, engine: Any = None) -> None:
    """Make the next optimiser step leave weights and moments unchanged; all ranks call it.

    Args:
        module: module whose gradients are dropped.
        engine: DeepSpeed's engine, if there is one. It always steps, unless a gradient is nan or infinite. Therefore one gradient is set to
            nan.
    """
    weights = [p for _, p in trainable_parameters(module)]
    if engine is None:
        for p in weights:
            p.grad = None
        return
    from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

    if in_stage_3(weights[0]):
        safe_set_local_grad(weights[0], torch.full_like(safe_get_local_grad(weights[0]), torch.nan))
        return
    engine.optimizer.check_grad_overflow = True  # in bfloat16 stages 1 and 2 check for overflow only with this flag
    cast(Any, weights[0]).set_full_hp_grad(torch.full(weights[0].shape, torch.nan, device=weights[0].device))
