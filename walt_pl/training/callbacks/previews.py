"""Animated previews in TensorBoard, with fixed clips and fixed noise."""

from collections.abc import Mapping
from typing import Any, Protocol, cast

import lightning as L
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from walt_pl.data.batch import JointBatch
from walt_pl.data.frame_rate import DEFAULT_FPS
from walt_pl.media.contact_sheet import captioned_grid
from walt_pl.media.writing import gif_bytes
from walt_pl.training.logger import ResilientTensorBoardLogger


class PreviewedStage(Protocol):
    """Methods of a stage that `Previews` needs."""

    def previews(self, batch: JointBatch) -> Mapping[str, tuple[Tensor, list[str], int]]:
        """Return name -> clips [b 3 t h w] in -1..1, a caption for each, and the number of clips in a row."""
        ...


class Previews(L.Callback):
    """Log a stage's previews of the first validation batch, after a validation, with the averaged weights.

    ``add_video`` of TensorBoard writes nothing without moviepy; an animated GIF in an image summary plays in the browser. It plays at the
    rate of the training videos, as `sample` writes; at 8 frames a second if that rate is unknown. Previews are written by the program's own
    logger (`walt_pl.training.logger.ResilientTensorBoardLogger`), which tolerates a full disk. Other loggers get no previews.

    Args:
        every_n_validations: validations between two previews; 0 for none.

    Raises:
        ValueError: `every_n_validations` is negative.
    """

    def __init__(self, every_n_validations: int = 1) -> None:
        if every_n_validations < 0:
            raise ValueError(f"previews.every_n_validations must be at least 0, got {every_n_validations}")
        self.every_n_validations = every_n_validations
        self._validations = 0

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: JointBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx or trainer.sanity_checking or not self.every_n_validations:
            return
        self._validations += 1
        if (
            not len(batch.videos)
            or (self._validations - 1) % self.every_n_validations
            or not isinstance(trainer.logger, ResilientTensorBoardLogger)
        ):
            return
        # All ranks compute previews, each of its own batch: the ranks of a sharded model must run together.
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            shown = cast(PreviewedStage, pl_module).previews(batch)
        if not trainer.is_global_zero:
            return
        fps = trainer.datamodule.frame_rate() or DEFAULT_FPS  # type: ignore[attr-defined]
        for name, (clips, captions, columns) in shown.items():
            frames = captioned_grid(clips, captions, columns)
            image = Summary.Image(
                height=frames.shape[1],
                width=frames.shape[2],
                colorspace=3,
                encoded_image_string=gif_bytes(frames, fps, captions),
            )
            summary = Summary(value=[Summary.Value(tag=f"previews/{name}", image=image)])
            trainer.logger.log_summary(summary, trainer.global_step)
