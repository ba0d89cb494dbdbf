"""Tell which of several processes this is."""

from lightning.pytorch.utilities import rank_zero_only


def is_rank_zero() -> bool:
    """Return whether this process is rank zero, also before the ranks are connected, when the trainer does not know it yet."""
    return getattr(rank_zero_only, "rank", 0) == 0
