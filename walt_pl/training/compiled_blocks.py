"""Choose whether a training compiles the layers of its denoiser (`model.compile`)."""

from typing import Literal

from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_warn

from walt_pl.models.compiled_blocks import find_obstacle
from walt_pl.training.strategies.zero import ZeROStrategy

CompileChoice = Literal["auto"] | bool
"""auto compiles on CUDA alone; true and false hold on every device."""


def is_compiled(choice: CompileChoice, strategy: Strategy) -> bool:
    """Return whether layers are compiled.

    Args:
        choice: `model.compile`.
        strategy: of the trainer, which knows the device of the training.

    Raises:
        ValueError: the choice is true, and the strategy cannot train compiled layers.
    """
    if isinstance(strategy, ZeROStrategy) and strategy.stage == 3:
        # Its hooks gather the weights of each linear layer within a block. Dynamo sees the empty weights of before, and fails.
        if choice is True:
            raise ValueError(
                "model.compile is true, and ZeRO 3 gathers weights within the layers, which torch.compile cannot: set model.compile to "
                "auto (none with ZeRO 3) or false, or train with experiments/strategy/zero2.yaml"
            )
        return False
    if choice != "auto":
        return choice
    if strategy.root_device.type != "cuda":
        return False
    obstacle = find_obstacle(strategy.root_device)
    if obstacle is not None:
        rank_zero_warn(
            f"model.compile: torch.compile fails on {strategy.root_device}, and the layers run uncompiled, at about half the speed "
            f"({obstacle}); it needs Triton, a C compiler and Python's headers. Set model.compile to false to try no more"
        )
    return obstacle is None
