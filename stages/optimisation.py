"""Learning-rate schedules and gradient norms, the same for every stage.

Optimisers are those of libraries, by class path: torch.optim.AdamW, torch.optim.Adam with betas [0, 0.99] (autoencoder), and for the
paper's Adafactor timm.optim.AdafactorBigVision. Not torch.optim.Adafactor: it multiplies the rate by each weight's size, 0.001 at
least, so at the paper's 2e-4 the weights that start at zero (every gate, the last layer) would move 2e-7 a step.
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Decay = Literal["cosine", "constant"]


def learning_rate(optimizer: Optimizer, warmup: int, total: int, decay: Decay) -> LambdaLR:
    """Linear warm-up over ``warmup`` steps, then cosine to zero at ``total`` steps, or constant.

    Raises:
        ValueError: a cosine without an end.
    """
    if decay == "cosine" and total <= warmup:
        raise ValueError(
            f"model.decay: cosine wants trainer.max_steps above model.warmup ({warmup}), got {total}; set it or choose constant"
        )

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if decay == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (total - warmup))))

    return LambdaLR(optimizer, factor)


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Norm of all gradients together, which stay as they are."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def clip_gradients(parameters: Iterable[Tensor], limit: float | None) -> Tensor:
    """Scale the gradients down to a total norm of ``limit`` (None: leave them), and give the norm they had."""
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
