"""The data module of an experiment's stage, for commands that train nothing."""

from collections.abc import Sequence
from pathlib import Path

from datamodules.joint import JointData
from walt_pl.cli.class_count import fill_classes
from walt_pl.cli.fit import WaltCLI


class _Data(WaltCLI):
    """LightningCLI that builds only the data module of a config."""

    command = "fit"  # its help explains the keys

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(words, run=False)

    def before_instantiate_classes(self) -> None:
        self._name()
        self._fill_parents()
        fill_classes(self.options)

    def instantiate_classes(self) -> None:
        self.datamodule = JointData(**self.options.data.as_dict())


def data_of(config: Path, index: Path, overrides: Sequence[str] = ()) -> JointData:
    """Return the data module of an experiment's stage with another index. Classes that the config names are imported.

    Args:
        config: experiments/EXP/STAGE.yaml.
        index: the index in place of that of the config.
        overrides: options and values of other keys, as fit takes them.
    """
    return _Data(["--config", str(config), *overrides, "--data.index", str(index)]).datamodule
