"""Write the resolved configuration of every start of a training beside its logs."""

import lightning as L

from walt_pl.files import write_whole
from walt_pl.training.callbacks.previews import prompts_of
from walt_pl.training.log_folder import make_start_folder, suffix_of_start


class SaveConfig(L.Callback):
    """Write the resolved configuration of a start into the folder of its logs: logs/version_3/config.yaml.

    The prompts of its previews are written beside it, since their file may change: logs/version_3/prompts.txt.

    Args:
        config: the configuration, as YAML.
    """

    def __init__(self, config: str) -> None:
        self.config = config

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = make_start_folder(trainer)
        if folder is None:
            return
        suffix = suffix_of_start(folder, "config*.yaml")
        write_whole(folder / f"config{suffix}.yaml", self.config.encode())
        if prompts := prompts_of(trainer):
            write_whole(folder / f"prompts{suffix}.txt", "".join(f"{prompt}\n" for prompt in prompts).encode())
