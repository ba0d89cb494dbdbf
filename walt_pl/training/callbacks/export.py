"""Export a finished training as an artifact, and record it in the manifest. A training that stopped before its end is only recorded.

Each checkpoint also gets the description that `export` needs to make an artifact of it.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from walt_pl.plain_records import build_record
from walt_pl.runs.artifact_writing import component_states, save_artifact
from walt_pl.runs.card import check_replaceable
from walt_pl.runs.card_entries import TrainingFacts
from walt_pl.runs.checkpoint import Checkpoint, recovery_hint
from walt_pl.runs.checkpoint_card import validation_values
from walt_pl.runs.finite import NonFiniteError
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.next_command import next_command
from walt_pl.runs.portable_command import portable_command
from walt_pl.runs.stage_names import ManifestError, kind_of
from walt_pl.runs.stop_record import StopRecord
from walt_pl.training.callbacks.checkpoints import Checkpoints, samples_seen
from walt_pl.training.callbacks.ema import find_averages
from walt_pl.training.callbacks.last_write import LastWrite
from walt_pl.training.callbacks.metrics import Metrics
from walt_pl.training.callbacks.record_start import describe_machine
from walt_pl.training.callbacks.training_end import has_reached_end, is_out_of_time, render_metrics, validation_metrics
from walt_pl.training.measurement import MeasuredStage
from walt_pl.training.strategies.shards import gather, local_shard, non_finite, trainable_parameters
from walt_pl.untrusted import UntrustedError


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


def check_same_parents(manifest: Manifest, parents: Mapping[str, str]) -> None:
    """Check that no parent was trained again since the start of the command: its new weights may have been loaded.

    Raises:
        ManifestError: a parent has other weights now.
    """
    stages = manifest.stages()
    for parent, sha256 in parents.items():
        done = stages[parent].artifact if parent in stages else None
        if done is None or done.sha256 != sha256:
            raise ManifestError(
                f'stage "{parent}" was trained again while this stage started ({sha256[:12]} -> {done.sha256[:12] if done else "none"}): '
                "type the same command again"
            )


class ExportArtifact(L.Callback):
    """Write the artifact with the averaged weights when training ends by itself, and record it in the manifest.

    A training that stops before its end, by trainer.max_time or a signal, has no artifact. The manifest records the step where it stopped.
    The last lines of the output say where the artifact or the checkpoint lies, the validation's figures, and the next command.

    A checkpoint gets the description of its artifact. `export` therefore needs neither the class of the stage nor its run.

    Args:
        run: folder of the run.
        stage: name of the stage; the artifact is written to `run/stage`.
        parents: hashes of the parents that training started from.
        train_config: the resolved configuration, as YAML.
        resume_command: command that goes on after a stop.
        command: command of this start as it was typed, for the card; empty if it is not known.
        experiment: folder of the experiment, for the manifest and for the next command after the end.
        rescue: folder for the artifact if there is no room for it in the run at the end.
    """

    def __init__(
        self,
        run: Path,
        stage: str,
        parents: Mapping[str, str],
        train_config: str,
        resume_command: str = "the same command",
        command: str = "",
        experiment: Path | None = None,
        rescue: Path | None = None,
    ) -> None:
        self.run = run
        self.stage = stage
        self.parents = dict(parents)
        self.train_config = train_config
        self.resume_command = resume_command
        self.command = command
        self.experiment = experiment
        self.rescue = rescue
        self._started = False
        self._began = time.monotonic()
        self._first_step = 0
        self._starts = 1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the start in the manifest. At this point all errors of the configuration have been raised."""
        if trainer.is_global_zero:
            if self.rescue is not None:
                check_replaceable(self.rescue)
            manifest = Manifest.open(self.run, self.experiment)
            check_same_parents(manifest, self.parents)
            manifest.start(self.stage, self.parents)
        self._started = True
        self._began = time.monotonic()
        self._first_step = trainer.global_step

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
            "training": self._training(trainer),
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count this start. Checkpoints of older versions have no count, and those starts count as one."""
        try:
            facts = checkpoint.get(DESCRIPTION, {}).get("training", {})
            self._starts = 1 + build_record(TrainingFacts, facts, f"the checkpoint's {DESCRIPTION}: training").starts
        except (UntrustedError, AttributeError, TypeError) as error:  # the number is for people alone
            rank_zero_warn(f"the starts of this training are counted from 1 again ({error})")

    def _training(self, trainer: L.Trainer) -> dict[str, Any]:
        """Return the command and the machine of the training for people, see `TrainingFacts`."""
        return {"command": portable_command(self.command), "starts": self._starts, "machine": describe_machine(trainer)}

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
        if not trainer.strategy.broadcast(has_reached_end(trainer)):  # ranks have clocks of their own
            self._record_stop(trainer)
            return
        averages = find_averages(trainer)
        pl_module.to(trainer.strategy.root_device)  # Lightning has moved the module to the CPU by now
        pl_module.eval()
        found = non_finite(pl_module)  # `save_artifact` checks the averages
        if found:
            raise NonFiniteError(self._describe_refusal(trainer, f"{self.run / self.stage} is not written: {found}"))
        with averages.swap_weights(pl_module):
            state = dict(pl_module.state_dict())
            # The state dict has these weights empty under ZeRO 3, and in low precision under ZeRO 1 and 2.
            for name, p in trainable_parameters(pl_module):
                full = gather(p, local_shard(p))
                if trainer.is_global_zero:
                    state[name] = full.cpu()
            with trainer.precision_plugin.forward_context():
                card_entries = cast(ExportableStage, pl_module).card_entries()
            folder, failure = self._last_write(trainer).run(lambda folder: self._save(folder, trainer, pl_module, state, card_entries))
        pl_module.train()
        if failure is not None:
            refused = isinstance(failure, NonFiniteError)
            raise NonFiniteError(self._describe_refusal(trainer, str(failure))) if refused else failure
        if trainer.is_global_zero:
            print(f'stage "{self.stage}" is done after step {trainer.global_step}; artifact: {folder}')
            print(render_metrics(self._metrics(trainer)))
            print(f"next: {next_command(Manifest.open(self.run, self.experiment))}", flush=True)

    def _last_write(self, trainer: L.Trainer) -> LastWrite:
        """Return how the artifact is written when the disk is full."""
        writer = next((c for c in trainer.callbacks if isinstance(c, Checkpoints)), None)  # type: ignore[attr-defined]
        index = f" --index {trainer.datamodule.index}" if kind_of(self.stage) == "vae" else ""  # type: ignore[attr-defined]
        export = f"python -m walt_pl export {self._checkpoint_folder(trainer)} --out DIR{index}"
        minutes, is_stopping = (writer.retry_minutes, writer.is_stopping) if writer else (0.0, lambda: False)
        return LastWrite(trainer, Manifest.open(self.run), self.stage, self.rescue, minutes, is_stopping, export)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Record the stop after a signal. After an error the message says what to do."""
        if self._started and isinstance(exception, SystemExit):
            self._record_stop(trainer)
        elif isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:  # while it trains, Ctrl-C is no exception
            when = "while the artifact was written" if self._started else "before the first step"
            print(f"stopped {when}; the same command goes on from there", flush=True)

    def _record_stop(self, trainer: L.Trainer) -> None:
        """Record and report a stop before the end, with the step of the newest checkpoint."""
        if not trainer.is_global_zero:
            return
        last = Checkpoint.newest(self._checkpoint_folder(trainer))
        max_steps = trainer.max_steps if trainer.max_steps >= 0 else None
        stop = StopRecord(last.step if last else 0, max_steps)
        Manifest.open(self.run).stop(self.stage, stop)
        reason = " by trainer.max_time" if is_out_of_time(trainer) else ""
        print(f'stage "{self.stage}" {stop}{reason}; checkpoint: {last.path if last else "none"}')
        print(render_metrics(self._metrics(trainer)))
        print(f"next: {self.resume_command}", flush=True)

    def _metrics(self, trainer: L.Trainer) -> dict[str, float]:
        """Return the figures of the last validation, those of the checkpoint if this start has made no step."""
        last = Checkpoint.newest(self._checkpoint_folder(trainer))
        return validation_metrics(trainer) or (validation_values(last.metrics) if last and last.step == trainer.global_step else {})

    def _checkpoint_folder(self, trainer: L.Trainer) -> Path:
        return next((c.folder for c in trainer.callbacks if isinstance(c, Checkpoints)), self.run)  # type: ignore[attr-defined]

    def _describe_refusal(self, trainer: L.Trainer, found: str) -> str:
        """Return the error message for an artifact that was refused: the reason and what to do."""
        return f'stage "{self.stage}" is not done, {found}; {recovery_hint(self._checkpoint_folder(trainer), trainer.global_step)}'

    def _save(
        self,
        folder: Path,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        state: Mapping[str, Tensor],
        card_entries: Mapping[str, Any],
    ) -> None:
        """Write the artifact into a folder."""
        stage = cast(ExportableStage, pl_module)
        metrics = self._metrics(trainer)
        measured = [callback for callback in trainer.callbacks if isinstance(callback, Metrics)]  # type: ignore[attr-defined]
        averaged = bool(find_averages(trainer).decay)
        in_training = measured[0].card_entries(cast(MeasuredStage, pl_module), averaged) if measured else {}
        card = {
            **card_entries,
            "parents": self.parents,
            "index": self._index(trainer),
            "steps": trainer.global_step,
            "epochs": trainer.fit_loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
            "samples": samples_seen(trainer),
            "training": {
                **self._training(trainer),
                "seconds": round(time.monotonic() - self._began, 1),
                "from_step": self._first_step,
            },
            "metrics": {
                "protocol": f"the validation clips of the index, view 0{', averaged weights' * averaged}",
                "values": metrics,
                **in_training,
            },
        }
        states = component_states(state, stage.components())
        save_artifact(
            folder,
            kind=stage.kind,
            models={name: (states[name], cast(Any, model).config) for name, model in stage.components().items()},
            sampling_config=self._sampling_config(trainer, stage),
            card=card,
            train_config=self.train_config,
            files=stage.extra_files(),
        )
