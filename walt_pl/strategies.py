"""Class path of the sharding strategy in YAML files: `walt_pl.strategies.Zero`."""

from walt_pl.training.strategies.zero import ZeROStrategy as Zero

__all__ = ["Zero"]
