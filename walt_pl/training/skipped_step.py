"""Skip an optimiser step without asking the device whether to: the decision stays a tensor there."""

from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer


def skips_on_device(optimizer: Optimizer) -> bool:
    """Return whether an optimiser can skip a step by a tensor: torch's fused Adam and AdamW.

    All others need the host to decide: timm's, Muon, and those inside DeepSpeed's engine.
    """
    return type(optimizer) in (Adam, AdamW) and all(group.get("fused") for group in optimizer.param_groups)


def skip_where(optimizer: Optimizer, bad: Tensor | None) -> None:
    """Let the next steps of a fused optimiser change nothing where `bad` is true: no weights, no moments, no step counts.

    torch's GradScaler passes its finding to the kernel in the same attribute.

    Args:
        optimizer: one for which `skips_on_device` is true.
        bad: bool scalar on the device of the weights; None takes the steps.
    """
    optimizer.found_inf = None if bad is None else bad.float()  # type: ignore[attr-defined]


def take_step(optimizer: Optimizer, good: Tensor) -> Tensor:
    """Take a step where `good` is true, and where the spike guard has not told the optimiser to skip it.

    Args:
        optimizer: any.
        good: bool scalar on the device of the weights.

    Returns:
        Bool scalar: whether the step was taken.
    """
    if not skips_on_device(optimizer):
        if good:
            optimizer.step()
        return good
    told = getattr(optimizer, "found_inf", None)
    if told is not None:
        good = good & (told == 0)
    skip_where(optimizer, ~good)
    optimizer.step()
    skip_where(optimizer, None)
    return good
