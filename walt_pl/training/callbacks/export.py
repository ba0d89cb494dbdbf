"""Turns a finished training into an artifact and a line of the manifest; and puts into each checkpoint what it takes to export that."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
from torch import Tensor, nn

from walt_pl.runs.artifact_writing import component_states, save_artifact
from walt_pl.runs.checkpoint import recovery_hint
from walt_pl.runs.finite import NonFiniteError
from walt_pl.runs.manifest import Manifest
from walt_pl.training.callbacks.checkpoints import Checkpoints, samples_seen
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.strategies.shards import gather, local_shard, non_finite, trainable_parameters


class ExportableStage(Protocol):
    """What a stage offers to be exported."""

    kind: str

    def components(self) -> Mapping[str, nn.Module]:
        """Models by section name."""
        ...

    def sampling_config(self) -> dict[str, Any]:
        """Further plain sections of model.yaml."""
        ...

    def extra_files(self) -> dict[str, bytes]:
        """Further files."""
        ...

    def card_entries(self) -> dict[str, Any]:
        """Further entries of the card; all ranks call it together."""
        ...


DESCRIPTION = "export"
"""Key of a checkpoint: everything an artifact has beside weights, in plain values."""


class ExportArtifact(L.Callback):
    """Writes the artifact with the averaged weights when training ends by itself, and tells the manifest.

    A checkpoint gets the description of its artifact, so that `export` needs neither the stage's class nor the run it was in.

    Args:
        run: folder of the run.
        stage: name of the stage; the artifact goes to `run/stage`.
        parents: hashes of the parents that training started from.
        train_config: the resolved configuration, as YAML.
    """

    def __init__(self, run: Path, stage: str, parents: Mapping[str, str], train_config: str) -> None:
        self.run, self.stage, self.parents, self.train_config = run, stage, dict(parents), train_config

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the start down, now that everything that can be wrong with the configuration has been found."""
        if trainer.is_global_zero:
            Manifest.open(self.run).start(self.stage, self.parents)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        stage = cast(ExportableStage, pl_module)
        checkpoint[DESCRIPTION] = {
            "kind": stage.kind,
            "components": {name: dataclasses.asdict(cast(Any, model).config) for name, model in stage.components().items()},
            "sampling_config": self._sampling_config(trainer, stage),
            "files": stage.extra_files(),
            "parents": self.parents,
            "index": self._index(trainer),
            "train_config": self.train_config,
        }

    @staticmethod
    def _sampling_config(trainer: L.Trainer, stage: ExportableStage) -> dict[str, Any]:
        """The stage's own, and the rate of the videos that it is trained on, where it is known."""
        fps = trainer.datamodule.frame_rate()  # type: ignore[attr-defined]
        return {**stage.sampling_config(), **({} if fps is None else {"video": {"fps": fps}})}

    @staticmethod
    def _index(trainer: L.Trainer) -> dict[str, Any]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        return {"sha256": data.index_sha256, "counts": data.counts()}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not on_train_end: a training that was killed between its last step and its artifact has no step left to train.
        averages = next((c for c in trainer.callbacks if isinstance(c, EMA)), EMA(decay=0))  # type: ignore[attr-defined]
        pl_module.to(trainer.strategy.root_device)  # which Lightning has let go of by now
        pl_module.eval()
        found = non_finite(pl_module)  # the averages are looked at where the artifact is written
        if found:
            raise NonFiniteError(self._not_finished(trainer, f"{self.run / self.stage} is not written: {found}"))
        failure: Exception | None = None
        with averages.swapped(pl_module):
            state = dict(pl_module.state_dict())
            for name, p in trainable_parameters(pl_module):  # which ZeRO 3 leaves empty there, and other stages have in low precision
                full = gather(p, local_shard(p))
                if trainer.is_global_zero:
                    state[name] = full.cpu()
            with trainer.precision_plugin.forward_context():
                card_entries = cast(ExportableStage, pl_module).card_entries()
            if trainer.is_global_zero:
                try:
                    self._write(trainer, pl_module, state, card_entries)
                except NonFiniteError as error:
                    failure = NonFiniteError(self._not_finished(trainer, str(error)))
                except (OSError, ValueError) as error:
                    failure = error
        pl_module.train()
        failure = trainer.strategy.broadcast(failure)  # raised on one rank, it would leave the others waiting
        if failure is not None:
            raise failure

    def _not_finished(self, trainer: L.Trainer, found: str) -> str:
        """Say what to do after an artifact that was refused."""
        folder = next((c.folder for c in trainer.callbacks if isinstance(c, Checkpoints)), self.run)  # type: ignore[attr-defined]
        return f'stage "{self.stage}" is not done, {found}; {recovery_hint(folder, trainer.global_step)}'

    def _write(
        self, trainer: L.Trainer, pl_module: L.LightningModule, state: Mapping[str, Tensor], card_entries: Mapping[str, Any]
    ) -> None:
        stage = cast(ExportableStage, pl_module)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        card = {
            **card_entries,
            "parents": self.parents,
            "index": self._index(trainer),
            "steps": trainer.global_step,
            "samples": samples_seen(trainer),
            "metrics": {"protocol": "the validation clips of the index, view 0, averaged weights", "values": metrics},
        }
        folder, states = self.run / self.stage, component_states(state, stage.components())
        save_artifact(
            folder,
            kind=stage.kind,
            models={name: (states[name], cast(Any, model).config) for name, model in stage.components().items()},
            sampling_config=self._sampling_config(trainer, stage),
            card=card,
            train_config=self.train_config,
            files=stage.extra_files(),
        )
        Manifest.open(self.run).finish(self.stage, folder)
