"""Write the artifact of a trained stage although the disk is full: try again, then elsewhere. All ranks wait together."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L

from walt_pl.runs.manifest import Manifest

RETRY = 60.0
"""Seconds between two tries."""
POLL = 5.0
"""Seconds between two messages of rank zero to the ranks that wait for it."""


def call_on_rank_zero(trainer: L.Trainer, work: Callable[[], None]) -> BaseException | None:
    """Call a function on rank zero. All ranks call this, and return when the function has ended.

    Returns:
        The error of the function, on all ranks; None if it succeeded.
    """
    # A rank that waits in a collective for longer than the process group's time-out (10 minutes for NCCL) is ended, and takes the training
    # with it. So rank zero works in a thread, and broadcasts a small message every few seconds: no collective is longer than that.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work) if trainer.is_global_zero else None
        while True:
            has_ended, error = False, None
            if future is not None:
                has_ended = bool(wait([future], POLL).done)
                error = future.exception() if has_ended else None
            has_ended, error = trainer.strategy.broadcast((has_ended, error))
            if has_ended:
                return error


@dataclass(frozen=True)
class LastWrite:
    """The write of an artifact after the last step, when a whole training depends on it. All ranks call its methods."""

    trainer: L.Trainer
    manifest: Manifest
    stage: str
    rescue: Path | None
    """Folder to write to if there is no room in the run; None for none."""
    minutes: float
    """Time for further tries."""
    is_stopping: Callable[[], bool]
    """Returns whether the user or the scheduler wants the program to end, which ends the tries."""
    export: str
    """Command that makes the artifact from the newest checkpoint."""

    def run(self, save: Callable[[Path], None]) -> tuple[Path, BaseException | None]:
        """Write the artifact, and record it in the manifest.

        Args:
            save: writes the artifact into a folder, completely or not at all. Rank zero calls it.

        Returns:
            The folder with the artifact, and the error if there is none. A refusal of the file system is an OSError that says what to do.
        """
        folder = self.manifest.run_dir / self.stage

        def write() -> None:
            save(folder)
            self.manifest.finish(self.stage, folder)

        failure = self._try_again(write)
        if not isinstance(failure, OSError):
            return folder, failure
        told = f'stage "{self.stage}" is trained, and its artifact could not be written to {folder} in {self.minutes:g} minutes: {failure}'
        there = "the last checkpoint stays: once there is room type the same command again"
        if self.rescue is None:
            return folder, OSError(f"{told}; {there}, or write the artifact elsewhere: {self.export}")
        rescue = self.rescue
        failure = call_on_rank_zero(self.trainer, lambda: save(rescue))
        if failure is not None:
            return folder, OSError(f"{told}; nor to --rescue {rescue}: {failure}; {there}, or write it elsewhere: {self.export}")
        failure = call_on_rank_zero(self.trainer, lambda: self.manifest.finish(self.stage, rescue))
        if failure is not None:
            return folder, OSError(f"{told}; the weights are in {rescue}, and {self.manifest.path} does not list them ({failure}); {there}")
        return rescue, None

    def _try_again(self, write: Callable[[], None]) -> BaseException | None:
        """Call a function on rank zero; while the file system refuses, call it again once a minute.

        Returns:
            The error of the last try; None if it succeeded.
        """
        end = time.monotonic() + self.minutes * 60
        while True:
            failure = call_on_rank_zero(self.trainer, write)
            left = 0.0 if self.is_stopping() else end - time.monotonic()
            left = self.trainer.strategy.broadcast(left)  # rank zero decides: clocks of machines differ
            if not isinstance(failure, OSError) or left <= 0:
                return failure
            pause = min(RETRY, left)
            if self.trainer.is_global_zero:
                print(f"the artifact is not written: {failure}")
                print(f"trying again in {pause:.0f} s, for {left / 60:.3g} more minutes (--checkpoint.retry_minutes)", flush=True)
            call_on_rank_zero(self.trainer, partial(self._sleep, pause))

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.is_stopping():
            time.sleep(min(0.5, max(0.0, end - time.monotonic())))
