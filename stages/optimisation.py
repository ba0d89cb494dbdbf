"""Parameter groups, learning-rate schedules and gradient norms, for every stage.

Optimisers come from libraries, by class path: torch.optim.AdamW, torch.optim.Adam with betas [0, 0.99] (autoencoder), and for the
paper's Adafactor timm.optim.AdafactorBigVision. torch.optim.Adafactor is not suitable: it multiplies the rate by each weight's size,
at least 0.001. At the paper's 2e-4, weights that start at zero (every gate, the last layer) would move by 2e-7 an optimiser step.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from walt_pl.blocks.modulation import AdaLN
from walt_pl.runs.checkpoint import STATE, CheckpointError, read_state

LRSchedule = Literal["cosine", "constant"]

DECAYED: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    _ConvNd: ("weight",),
    nn.MultiheadAttention: ("in_proj_weight",),
    AdaLN: ("down", "up", "weight"),
}
"""Parameters with weight decay, by the module that owns them. All other parameters have none."""
GROUPS = "parameter_groups"
"""Key of a checkpoint: number of parameters in each group of each optimiser."""


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return the two parameter groups of an optimiser: with weight decay, and without.

    With decay: matrices and convolution kernels, since decay bounds their gain. They include the modulation: the shared MLP, the LoRA pair
    of each layer, and the matrices of the separate mode. Decay pulls a layer towards the shared modulation, which is the purpose of the
    low rank. Without decay: norms and biases, which set scales and offsets; relative-position tables, position embeddings, class and word
    embeddings, and the null text. A row of a table gets a gradient only when its entry occurs, and decay would shrink rare rows in
    between.

    The rule uses the owner of a parameter, not its number of dimensions: tables are 2D, and ZeRO-3 flattens all parameters. Within a
    group, the order is that of `module.parameters()`. Frozen parameters are in neither group.

    The first group takes `weight_decay` from the optimiser's arguments, the second sets it to 0.0. timm's Muon uses the shape of each
    parameter, not its group. In both groups it orthogonalises matrices, tables too, and updates vectors with AdamW.
    """
    decayed = {
        id(owner._parameters.get(name))
        for owner in module.modules()
        for kind, names in DECAYED.items()
        if isinstance(owner, kind)
        for name in names
    }
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) in decayed]},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]


def group_sizes(modules: Sequence[nn.Module]) -> list[list[int]]:
    """Return the number of parameters in each group of the optimiser of each module, for checkpoints."""
    return [[len(group["params"]) for group in parameter_groups(module)] for module in modules]


def check_groups(checkpoint: str | Path | None, modules: Sequence[nn.Module]) -> None:
    """Compare the parameter groups of a checkpoint with those of `modules`.

    Args:
        checkpoint: to resume from; None for none.
        modules: one for each optimiser.

    Raises:
        CheckpointError: the groups differ, or the checkpoint has no record of them, as from older versions with one group.
    """
    if checkpoint is None:
        return
    path, wanted = Path(checkpoint), group_sizes(modules)
    found = read_state(path, mapped=True).get(GROUPS)
    if found != wanted:
        folder = path.parent if path.name == STATE else path
        raise CheckpointError(
            f"{path}: the optimiser's groups have {found or 'no record (one group, as older programs wrote)'}, wanted {wanted} weights: "
            "weight decay leaves out norms, biases, tables and embeddings, which are a group of their own. Go on with the program that "
            f"wrote it; or keep the weights and start the optimiser anew: python -m walt_pl export {folder} --out DIR, then your command "
            "with --from_scratch true --init DIR"
        )


def fuse_on_gpu(optimizer: Optimizer) -> Optimizer:
    """Let torch's Adam and AdamW update GPU weights in one kernel: the one place that chooses it.

    It is faster, and can skip a step without asking the host (walt_pl/training/skipped_step.py). On CPUs it would round otherwise, so
    the optimiser stays as it is there. Under ZeRO the weights come to the GPU after the optimiser was made: the engine keeps torch's own
    choice. Set `fused`, `foreach`, `capturable` or `differentiable` in `init_args`, and nothing is changed.

    Args:
        optimizer: of the stage, with its parameter groups.

    Returns:
        The optimiser itself.
    """
    if type(optimizer) not in (Adam, AdamW):
        return optimizer
    asked = [optimizer.defaults.get(name) for name in ("fused", "foreach", "capturable", "differentiable")]
    on_gpu = all(p.device.type == "cuda" and p.is_floating_point() for group in optimizer.param_groups for p in group["params"])
    if asked == [None, None, False, False] and on_gpu:
        optimizer.defaults["fused"] = True
        for group in optimizer.param_groups:
            group["fused"] = True

    def keep_choice(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        # Else the choice of the start that wrote the state would count, and its step counts would be on the wrong device.
        groups = [{**group, "fused": optimizer.defaults["fused"]} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(keep_choice)
    return optimizer


def learning_rate(optimizer: Optimizer, warmup_steps: int, total: int, lr_schedule: LRSchedule) -> LambdaLR:
    """Return a schedule of the learning rate: linear warm-up, then cosine to zero or constant.

    Args:
        optimizer: its learning rate is the maximum.
        warmup_steps: optimiser steps of warm-up.
        total: optimiser step at which the cosine reaches zero.
        lr_schedule: "cosine" or "constant".

    Raises:
        ValueError: the schedule is cosine, and `total` is not above `warmup_steps`.
    """
    if lr_schedule == "cosine" and total <= warmup_steps:
        raise ValueError(
            f"model.lr_schedule: cosine wants trainer.max_steps above model.warmup_steps ({warmup_steps}), got {total}; set it or choose "
            "constant"
        )

    return LambdaLR(optimizer, lambda step: lr_factor(step, warmup_steps, total, lr_schedule))


def lr_factor(step: int, warmup_steps: int, total: int, lr_schedule: LRSchedule) -> float:
    """Return the factor of the learning rate at a step, counted from 0; arguments as in `learning_rate`."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if lr_schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / (total - warmup_steps))))


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the total norm of all gradients, without changing them."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def clip_gradients(parameters: Iterable[Tensor], limit: float | None) -> Tensor:
    """Scale the gradients down to a total norm of `limit` (None: no limit), and return their norm before."""
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
