"""Animated previews in the log of a training, with fixed clips or prompts and fixed noise."""

from collections.abc import Mapping
from typing import Any, Protocol, cast

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from walt_pl.data.batch import JointBatch, images_as_videos, of_conditions
from walt_pl.data.class_labels import find_classes
from walt_pl.data.frame_rate import DEFAULT_FPS
from walt_pl.media.contact_sheet import captioned_grid
from walt_pl.models.denoiser import Denoiser
from walt_pl.text.caption_words import warn_of_unseen
from walt_pl.text.features import CachedTextEncoder
from walt_pl.text.prompt_file import read_preview_prompts
from walt_pl.text.small_encoder import SmallTextEncoder, TextEncoder
from walt_pl.training.logger import PreviewLogger

AT_ONCE = 8
"""Largest number of prompts that are sampled at once."""
Shown = Mapping[str, tuple[Tensor, list[str], int]]
"""Name -> clips [b 3 t h w] in -1..1, a caption for each, and the number of clips in a row."""


class PreviewedStage(Protocol):
    """Methods of a stage that `Previews` needs."""

    def previews(self, batch: JointBatch) -> Shown:
        """Return the previews of a batch."""
        ...


class PromptedStage(Protocol):
    """Parts of a base stage that `Previews` needs for prompts."""

    denoiser: Denoiser

    @property
    def text_encoder(self) -> TextEncoder | None:
        """Return the encoder of the captions; None for models without text."""
        ...

    def measured_clips(self, batch: JointBatch) -> Tensor:
        """Return a sample for each video of a batch, [b 3 t h w] in -1..1."""
        ...


class Previews(L.Callback):
    """Log a stage's previews of the first validation batch, after a validation, with the averaged weights.

    ``add_video`` of TensorBoard writes nothing without moviepy; an animated GIF in an image summary plays in the browser. It plays at the
    rate of the training videos, as `sample` writes; at 8 frames a second if that rate is unknown. Previews are written by the program's own
    loggers for TensorBoard, wandb and MLflow, which tolerate a failing write. Other loggers get no previews.

    Args:
        every_n_validations: validations between two previews; 0 for none.
        prompts: file with a prompt a line, for a base model: at most 16, which are sampled in place of the captions of validation clips.
            For a class-conditional model a line is the name of a class. Empty lines, and lines that begin with #, are left out.

    Raises:
        ValueError: `every_n_validations` is negative, or the file cannot be used.
    """

    def __init__(self, every_n_validations: int = 1, prompts: str | None = None) -> None:
        if every_n_validations < 0:
            raise ValueError(f"previews.every_n_validations must be at least 0, got {every_n_validations}")
        self.every_n_validations = every_n_validations
        self.prompts = [] if prompts is None else read_preview_prompts(prompts)
        self._labels: list[int] = []
        self._validations = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prepare the prompts, and say where the logger takes no previews; all ranks call it."""
        logger, is_trial = trainer.logger, trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.every_n_validations and not is_trial and logger is not None and not isinstance(logger, PreviewLogger):
            rank_zero_info(f"{type(logger).__name__} takes numbers alone: there are no previews")
        if not self.prompts:
            return
        stage = cast(PromptedStage, pl_module)
        self._labels = self._find_labels(trainer, stage)
        encoder = stage.text_encoder
        if isinstance(encoder, CachedTextEncoder):  # later, the encoder would be loaded beside the model in training
            encoder.fill(self.prompts, trainer.global_rank, trainer.world_size, lambda: trainer.strategy.barrier("prompts"))
        if isinstance(encoder, SmallTextEncoder) and trainer.is_global_zero:
            warn_of_unseen(encoder.words, self.prompts)

    def _find_labels(self, trainer: L.Trainer, stage: PromptedStage) -> list[int]:
        """Return the class of each prompt, -1 for a model without classes.

        Raises:
            ValueError: a prompt is no class of the training data.
        """
        count = stage.denoiser.config.num_classes
        if not count:
            return [-1] * len(self.prompts)
        known = trainer.datamodule.classes()  # type: ignore[attr-defined]
        return find_classes(self.prompts, known or dict.fromkeys(range(count), ""), "previews.prompts:")

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
        if self.prompts:
            batch = images_as_videos(batch)  # a prompt makes an image where the model is trained on images alone
        if not len(batch.videos) or (self._validations - 1) % self.every_n_validations or not isinstance(trainer.logger, PreviewLogger):
            return
        # All ranks compute previews, each of its own batch: the ranks of a sharded model must run together.
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            if self.prompts:
                shown = self._sample_prompts(trainer, cast(PromptedStage, pl_module), batch)
            else:
                shown = cast(PreviewedStage, pl_module).previews(batch)
        if not trainer.is_global_zero:
            return
        fps = trainer.datamodule.frame_rate() or DEFAULT_FPS
        for name, (clips, captions, columns) in shown.items():
            trainer.logger.log_previews(name, captioned_grid(clips, captions, columns), fps, captions, trainer.global_step)

    def _sample_prompts(self, trainer: L.Trainer, stage: PromptedStage, batch: JointBatch) -> Shown:
        """Return a clip for each prompt, from noise that depends on the seed and its place in the file alone."""
        labels = self._labels or self._find_labels(trainer, stage)  # `validate` does not fit
        captions = [""] * len(labels) if stage.denoiser.config.num_classes else self.prompts
        size = min(AT_ONCE, len(batch.videos))  # no more memory than the previews of the batch need
        parts = [slice(first, first + size) for first in range(0, len(self.prompts), size)]
        clips = [stage.measured_clips(of_conditions(batch, captions[part], labels[part], part.start)) for part in parts]
        return {"prompts": (torch.cat(clips), self.prompts, 4)}


def prompts_of(trainer: L.Trainer) -> list[str]:
    """Return the prompts of the previews of a training; none without a file of prompts."""
    return [prompt for callback in trainer.callbacks if isinstance(callback, Previews) for prompt in callback.prompts]  # type: ignore[attr-defined]
