"""The progress bar of a terminal: what a user sees, in a recorded terminal and in a real one."""

import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading
from pathlib import Path

import lightning as L
import pytest
from rich.console import Console

from tests.helpers.starts import start
from tests.helpers.training import arguments
from tests.training.callbacks.test_checkpoints import Line, Numbers
from walt_pl.training.callbacks import progress_bar
from walt_pl.training.callbacks.progress_bar import ProgressBar


def screen(written: str) -> list[str]:
    """Return the lines that a terminal shows after this text."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b["):
            row -= int(part[2:-1] or 1) if part.endswith("A") else 0
            lines[row] = "" if part == "\x1b[2K" else lines[row]
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines if line.strip()]


class Talks(L.Callback):
    """Prints in the middle of a training, and notes the screen in a validation."""

    def __init__(self, output: io.StringIO) -> None:
        self.output = output
        self.seen: list[str] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == 3:
            print("the disk is nearly full")

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        bar = next(c for c in trainer.callbacks if isinstance(c, ProgressBar))  # type: ignore[attr-defined]
        assert bar._progress is not None
        bar._progress.refresh()
        self.seen = screen(self.output.getvalue())


@pytest.mark.parametrize(("steps", "count"), [(7, "step 7/7"), (-1, "step 20")])
def test_progress_bar_is_one_line_over_all_steps(steps: int, count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "SECONDS", 0.0)
    output = io.StringIO()
    talks = Talks(output)
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1 if steps > 0 else 1,
        val_check_interval=5,
        check_val_every_n_epoch=None,
        accelerator="cpu",
        callbacks=[ProgressBar(Console(file=output, force_terminal=True, width=100, legacy_windows=False)), talks],
        **dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"], False),
    )
    trainer.fit(Line((1.0,) * 200), Numbers())
    said, bar = screen(output.getvalue())
    assert said == "the disk is nearly full"
    assert re.fullmatch(rf"{count} ━{{20}}( 0:00:00 left)?.*", bar) and ("left" in bar) == (steps > 0)
    assert re.match(r"step \d+", talks.seen[-2]) and talks.seen[-1].startswith("validation ━"), talks.seen


def test_fit_command_on_a_terminal_shows_the_bar_with_the_losses(painted: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    received: list[bytes] = []

    def read() -> None:
        while (part := os.read(ours, 4096)) != b"":
            received.append(part)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    two = ["--trainer.max_steps", "2", "--model.warmup_steps", "1", "--trainer.val_check_interval", "2"]
    started = start("fit", *arguments("vae", tmp_path / "run", painted), *two, terminal=os.ttyname(theirs))
    code = started.wait()
    os.write(theirs, b"end of the test\n")
    while b"end of the test" not in b"".join(received):
        reader.join(0.1)
    lines = screen(b"".join(received).decode())
    assert code == 0, lines
    bars = [line for line in lines if "━" in line]
    assert len(bars) == 1, lines
    assert re.fullmatch(r"step 2/2 ━+ 0:00:00 left  train/loss \d\S+  val/psnr_video \d\S+", bars[0])
    assert lines[lines.index(bars[0]) + 1].startswith('stage "vae" is done after step 2') and "Epoch" not in "".join(lines)
