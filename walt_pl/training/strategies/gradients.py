"""Gradients between the backward pass and the step, in one piece or in ZeRO's shards: how large they are, and how to let them go."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from walt_pl.training.strategies.shards import in_stage_3, trainable_parameters


def gradient_norms(module: nn.Module) -> dict[str, Tensor]:
    """Norm of the gradient of each trained weight that has one, float32 scalars; the same on all ranks, which call it together."""
    weights = trainable_parameters(module)
    sharded = any(in_stage_3(p) or hasattr(p, "_hp_mapping") for _, p in weights)
    pieces = {name: piece for name, p in weights if (piece := _piece(p)) is not None}
    if sharded:
        squares = torch.zeros(len(weights), dtype=torch.float32, device=weights[0][1].device)
        places = {name: place for place, (name, _) in enumerate(weights)}
        squares[[places[name] for name in pieces]] = torch.stack(_norms(pieces)).square().to(squares)  # from the CPU where offloaded
        dist.all_reduce(squares)
        return dict(zip(places, squares.sqrt(), strict=True))
    return dict(zip(pieces, _norms(pieces), strict=True))


def _norms(pieces: dict[str, Tensor]) -> list[Tensor]:
    return list(torch._foreach_norm(list(pieces.values()), 2, torch.float32)) if pieces else []


def _piece(p: nn.Parameter) -> Tensor | None:
    """What this rank holds of a weight's gradient, averaged over ranks; None where it holds nothing of it."""
    if in_stage_3(p):
        from deepspeed.utils import safe_get_local_grad

        return cast(Tensor, safe_get_local_grad(p))
    if hasattr(p, "_hp_mapping"):
        mapping = cast(Any, p)._hp_mapping
        return None if mapping is None else cast(Tensor, mapping.get_lp_grad_fragment(cast(Any, p)._index_in_param_group))
    return p.grad


def drop_gradients(module: nn.Module, engine: Any = None) -> None:
    """Make the step that follows leave weights and moments as they are; all ranks together.

    Args:
        module: whose gradients these are.
        engine: DeepSpeed's, where there is one. It steps as it will and asks only whether a gradient is not a number: so one is made that.
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
    engine.optimizer.check_grad_overflow = True  # stages 1 and 2 do not ask in bfloat16, unless told to
    cast(Any, weights[0]).set_full_hp_grad(torch.full(weights[0].shape, torch.nan, device=weights[0].device))
