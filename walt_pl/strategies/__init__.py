"""Training on many ranks: `Zero` shards what training a stage holds."""

from walt_pl.strategies.zero import Zero

__all__ = ["Zero"]
