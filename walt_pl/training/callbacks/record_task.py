"""Record in each checkpoint what defines the training, so that a later start can tell what has changed."""

from collections.abc import Mapping
from typing import Any

import lightning as L

from walt_pl.runs.task_record import TASK, Values, encode_task
from walt_pl.training.callbacks.previews import prompts_of
from walt_pl.training.fingerprints import CLASSES, IndexedData, fingerprints, hash_plain

PROMPTS = "previews.prompts_sha256"
"""Key of the hash of the prompts of the previews; null without them."""


class RecordTask(L.Callback):
    """Write the record of the task into each checkpoint (walt_pl/runs/task_record.py).

    Args:
        settings: keys of the configuration that define the training, with their values.
        parents: hashes of the parents that training started from.
    """

    def __init__(self, settings: Values, parents: Mapping[str, str]) -> None:
        self.settings = settings
        self.parents = parents
        self._fingerprints: dict[str, str] = {}

    def values(self, trainer: L.Trainer, data: IndexedData) -> Values:
        """Return everything that defines the training: settings, number of ranks, parents and data.

        Args:
            trainer: its ranks need not be connected yet.
            data: the data module.
        """
        if not self._fingerprints:
            self._fingerprints = fingerprints(data)
            if not self.settings.get("model.denoiser.num_classes"):
                del self._fingerprints[CLASSES]
        return {
            **self.settings,
            "trainer.ranks": trainer.num_devices * trainer.num_nodes,
            **{f"parents.{name}": sha256 for name, sha256 in self.parents.items()},
            **self._fingerprints,
            PROMPTS: hash_plain(prompts) if (prompts := prompts_of(trainer)) else None,
        }

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[TASK] = encode_task(self.values(trainer, trainer.datamodule))  # type: ignore[attr-defined]
