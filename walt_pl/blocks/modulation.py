"""AdaLN-LoRA: each layer's modulation is a shared one plus a low-rank correction of that layer (section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdaLN(nn.Module):
    """Adaptive LayerNorm: shift, scale and gate of the attention and the feed-forward part of every layer, from a condition vector.

    `A^i = MLP(cond) + W_b^i W_a^i cond`. `W_b` and the MLP's last layer start at zero, so every block starts as the identity.

    Args:
        width: d, channels of the condition and of the tokens.
        depth: number of transformer layers.
        rank: r of the correction; None gives each layer a full linear layer instead (the paper's "separate" AdaLN).
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
        """Return the modulation of every layer, [layers s 6 d], from conditions [s d]."""
        cond = F.silu(cond)
        if self.rank is None:
            out = cond @ self.weight.transpose(1, 2) + self.bias[:, None]
        else:
            out = self.mlp(cond) + (cond @ self.down.transpose(1, 2)) @ self.up.transpose(1, 2)
        return out.unflatten(-1, (6, -1))


class FinalModulation(nn.Module):
    """Shift and scale of the last norm, from the condition vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and scale, [s d] each, from conditions [s d]."""
        shift, scale = self.linear(F.silu(cond)).chunk(2, dim=-1)  # 2 x [s d]
        return shift, scale


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens `x` [f n d] by one value for each frame and channel [f d]: `x (1 + scale) + shift`."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])
