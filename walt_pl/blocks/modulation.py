"""AdaLN-LoRA: every layer's modulation is the shared one plus a low-rank correction of its own (section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdaLN(nn.Module):
    """Condition vector to (shift, scale, gate) for the attention and the feed-forward part of every layer.

    ``A^i = MLP(cond) + W_b^i W_a^i cond``. ``W_b`` and the MLP's last layer start at zero, so every block starts as the identity.

    Args:
        width: d.
        depth: number of transformer layers.
        rank: r of the correction, or None for a linear layer of each layer's own (the paper's "separate" AdaLN).
    """

    def __init__(self, width: int, depth: int, rank: int | None) -> None:
        super().__init__()
        self.rank = rank
        if rank is None:
            self.weight = nn.Parameter(torch.zeros(depth, 6 * width, width))
            self.bias = nn.Parameter(torch.zeros(depth, 6 * width))
            return
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 6 * width))
        nn.init.zeros_(self.mlp[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.mlp[2].bias)  # type: ignore[arg-type]
        self.down = nn.Parameter(torch.randn(depth, rank, width) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(depth, 6 * width, rank))

    def forward(self, cond: Tensor) -> Tensor:
        """[s d] to [layers s 6 d]."""
        cond = F.silu(cond)
        if self.rank is None:
            out = cond @ self.weight.transpose(1, 2) + self.bias[:, None]
        else:
            out = self.mlp(cond) + (cond @ self.down.transpose(1, 2)) @ self.up.transpose(1, 2)
        return out.unflatten(-1, (6, -1))


class FinalModulation(nn.Module):
    """Shift and scale of the last norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """[s d] to two of [s d]."""
        shift, scale = self.linear(F.silu(cond)).chunk(2, dim=-1)  # 2 x [s d]
        return shift, scale


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift [f n d] by values of each frame [f d]."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])
