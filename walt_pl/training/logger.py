"""Loggers that tolerate a failing write: the shared part, and TensorBoard, which leaves no empty folder."""

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

from walt_pl.media.types import Frames
from walt_pl.media.writing import gif_bytes
from walt_pl.removal import remove_own

RETRY = 600.0
"""Seconds until the next try after a failed write. For TensorBoard, each try opens a new file."""


@runtime_checkable
class PreviewLogger(Protocol):
    """A logger that takes moving pictures."""

    def log_previews(self, name: str, frames: Frames, fps: float, captions: Sequence[str], step: int) -> None:
        """Write moving pictures. A failed write warns.

        Args:
            name: of the previews; the tag is previews/NAME.
            frames: uint8 [t h w 3].
            fps: frames per second.
            captions: of the clips in the pictures, whole; below the clips they are cut.
            step: optimiser steps done.
        """
        ...


class ResilientLogger(Logger):
    """Part of a logger: drop values that cannot be written, with a warning. Training goes on.

    A class names it before the logger of Lightning that does the writing. Logging resumes after `RETRY` seconds.
    """

    _paused_until = 0.0

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        # Lightning's logger has it, and each of its loggers types the values in another way.
        self._try(lambda: super(ResilientLogger, self).log_metrics(metrics, step))  # type: ignore[safe-super, arg-type]

    def save(self) -> None:
        self._try(super().save)

    def finalize(self, status: str = "success") -> None:
        self._try(lambda: super(ResilientLogger, self).finalize(status))

    def _try(self, write: Callable[[], object]) -> None:
        """Write, unless a write has failed a short time ago."""
        if time.monotonic() < self._paused_until:
            return
        try:
            write()
        except Exception as error:  # `_reason` decides: the errors of other libraries have no common class
            reason = self._reason(error)
            if reason is None:
                raise
            self._paused_until = time.monotonic() + RETRY
            self._recover()
            rank_zero_warn(f"no curves for {RETRY / 60:.0f} minutes ({reason}); training goes on; {self._remedy()}")

    def _reason(self, error: Exception) -> Exception | None:
        """Return the error of the disk behind an error; None for a mistake of the caller, which is raised."""
        reason = error if isinstance(error, OSError) else error.__cause__  # Lightning raises ValueError for any error while it logs a value
        return reason if isinstance(reason, OSError) else None

    def _recover(self) -> None:
        """Prepare the next try after a failed write."""

    def _remedy(self) -> str:
        """Return the advice of the warning."""
        return f"make room in {self.log_dir}"


class ResilientTensorBoardLogger(ResilientLogger, TensorBoardLogger):
    """Log to TensorBoard. A start that ends before it has a value or a configuration to keep leaves no folder."""

    _is_empty = True

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._is_empty = False
        super().log_metrics(metrics, step)

    def log_previews(self, name: str, frames: Frames, fps: float, captions: Sequence[str], step: int) -> None:
        """Write a GIF in an image summary, with the captions as its description; see `PreviewLogger`."""
        self._is_empty = False
        gif = gif_bytes(frames, fps, captions)
        image = Summary.Image(height=frames.shape[1], width=frames.shape[2], colorspace=3, encoded_image_string=gif)
        text = SummaryMetadata(summary_description="\n".join(f"{number}. {caption}" for number, caption in enumerate(captions, 1)))
        summary = Summary(value=[Summary.Value(tag=f"previews/{name}", image=image, metadata=text)])
        self._try(lambda: self.experiment._get_file_writer().add_summary(summary, step))

    def finalize(self, status: str = "success") -> None:
        super().finalize(status)
        if self._is_empty and getattr(rank_zero_only, "rank", 0) == 0:
            self._remove_folder()

    def _remove_folder(self) -> None:
        """Remove the folder of this start if it has nothing but an event file of this process. Lightning opens one before `setup`."""
        folder = Path(self.log_dir)
        # The name has host and process: containers with one folder may share the ids of processes.
        ours = (re.escape(self.NAME_HPARAMS_FILE), rf"events\.out\.tfevents\.\d+\.{re.escape(socket.gethostname())}\.{os.getpid()}\.\d+")
        if folder.is_dir() and all(re.fullmatch("|".join(ours), path.name) for path in folder.iterdir()) and not remove_own(folder, ours):
            for parent in (self.root_dir, self.save_dir):
                with contextlib.suppress(OSError):  # it has other starts, or checkpoints
                    os.rmdir(parent)

    def _recover(self) -> None:
        self._experiment = None  # its writer thread has ended; the next experiment writes a new file
