"""Export a finished training as an artifact, and record it in the manifest.

Each checkpoint also gets the description that `export` needs to make an artifact of it.
"""

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
    """Attributes and methods of a stage that the export needs."""

    kind: str

    def components(self) -> Mapping[str, nn.Module]:
        """Return the models by section name."""
        ...

    def sampling_config(self) -> dict[str, Any]:
        """Return further plain sections of model.yaml."""
        ...

    def extra_files(self) -> dict[str, bytes]:
        """Return further files, name -> bytes."""
        ...

    def card_entries(self) -> dict[str, Any]:
        """Return further entries of the card; all ranks call it."""
        ...


DESCRIPTION = "export"
"""Key of a checkpoint: all content of an artifact beside the weights, in plain values."""


class ExportArtifact(L.Callback):
    """Write the artifact with the averaged weights when training ends by itself, and record it in the manifest.

    A checkpoint gets the description of its artifact. `export` therefore needs neither the class of the stage nor its run.

    Args:
        run: folder of the run.
        stage: name of the stage; the artifact is written to `run/stage`.
        parents: hashes of the parents that training started from.
        train_config: the resolved configuration, as YAML.
    """

    def __init__(self, run: Path, stage: str, parents: Mapping[str, str], train_config: str) -> None:
        self.run = run
        self.stage = stage
        self.parents = dict(parents)
        self.train_config = train_config

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the start in the manifest. At this point all errors of the configuration have been raised."""
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
        """Return the sampling config of the stage, and the frame rate of its training videos, if it is known."""
        fps = trainer.datamodule.frame_rate()  # type: ignore[attr-defined]
        return {**stage.sampling_config(), **({} if fps is None else {"video": {"fps": fps}})}

    @staticmethod
    def _index(trainer: L.Trainer) -> dict[str, Any]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        return {"sha256": data.index_sha256, "counts": data.counts()}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # This is not on_train_end: a training that was killed between its last step and its artifact has no step left to train.
        averages = next((c for c in trainer.callbacks if isinstance(c, EMA)), EMA(decay=0))  # type: ignore[attr-defined]
        pl_module.to(trainer.strategy.root_device)  # Lightning has moved the module to the CPU by now
        pl_module.eval()
        found = non_finite(pl_module)  # `save_artifact` checks the averages
        if found:
            raise NonFiniteError(self._describe_refusal(trainer, f"{self.run / self.stage} is not written: {found}"))
        failure: Exception | None = None
        with averages.swap_weights(pl_module):
            state = dict(pl_module.state_dict())
            # The state dict has these weights empty under ZeRO 3, and in low precision under ZeRO 1 and 2.
            for name, p in trainable_parameters(pl_module):
                full = gather(p, local_shard(p))
                if trainer.is_global_zero:
                    state[name] = full.cpu()
            with trainer.precision_plugin.forward_context():
                card_entries = cast(ExportableStage, pl_module).card_entries()
            if trainer.is_global_zero:
                try:
                    self._write(trainer, pl_module, state, card_entries)
                except NonFiniteError as error:
                    failure = NonFiniteError(self._describe_refusal(trainer, str(error)))
                except (OSError, ValueError) as error:
                    failure = error
        pl_module.train()
        failure = trainer.strategy.broadcast(failure)  # if only rank zero raised, the other ranks would wait for it
        if failure is not None:
            raise failure

    def _describe_refusal(self, trainer: L.Trainer, found: str) -> str:
        """Return the error message for an artifact that was refused: the reason and what to do."""
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
