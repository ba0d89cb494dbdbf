"""Silence the messages of libraries that a user of the program cannot act on, and shorten warnings to their text.

Nothing of torch or Lightning is imported here, so that `status` and `--help` start at once. The libraries may be imported before or after.
"""

import logging
import os
import re
import sys
import warnings
from typing import TextIO

from walt_pl.terminal_text import printable

LEAKED = "resource_tracker"
"""Beginning of the warning that Python's resource tracker gives at the end of a training that was killed."""

SILENCED = {
    r"Seed set to": "the seed is in the stored configuration",
    r"(GPU|TPU|HPU|IPU) available: ": "of the machine, not of the training",
    r"LOCAL_RANK: \d+ - CUDA_VISIBLE_DEVICES": "of the machine, not of the training",
    r"💡 Tip: ": "advertises litlogger and litmodels, which the program does not use",
    r"The `srun` command is available": "a machine may have SLURM without a job; trainer_checks.py refuses a job's process without srun",
    r"You are using a CUDA device .* Tensor Cores": "float32_matmul_precision highest is the user's",
    r"Please use the new API settings to control TF32 behavior": "advice for the code, which uses what every supported torch has",
    r"Using (16bit|bfloat16) Automatic Mixed Precision": "repeats trainer.precision",
    r"Trainer already configured with model summary": "the program's own choice",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated": "of Lightning's code",
    r"Total length of `(list|CombinedLoader|DataLoader)`": "data.val_videos 0 asks for no validation",
    r"The number of training batches \(\d+\) is smaller than the logging interval": "steps are counted over epochs here",
    r"The '\w+' does not have many workers": "data.num_workers is the user's, and speed/waiting_for_data shows whether it is too low",
    r"Consider setting `persistent_workers=True`": "the loader of the program is not torch's",
    r"It is recommended to use `self\.log\(.*sync_dist=True": "advice for the code of a stage",
    r"Trying to infer the `batch_size`": "advice for the code of a stage",
    r"Found \d+ module\(s\) in eval mode at the start": "frozen parents are in eval mode on purpose",
    r"You're resuming from a checkpoint that ended before the epoch ended": "the sampler resumes within an epoch by itself",
    r"`weights_only` was not set": "of Lightning's code; checkpoints are read without running code from them",
    r"Restoring states from the checkpoint": "repeats `going on from`",
    r"(Loaded model weights|Restored all states) from the checkpoint": "repeats `going on from`",
    r"`Trainer\.fit` stopped: `max_(steps|epochs)": "the last progress line says so",
    r"Initializing distributed: ": "the ranks are those that the user started",
    r"initializing deepspeed distributed: ": "the ranks are those that the user started",
    r"-+\ndistributed_backend=": "the ranks are those that the user started",
    r"Detected call of `lr_scheduler\.step\(\)` before": "a discriminator that starts later keeps the schedule of the training",
    r"Grad strides do not match bucket view strides": "costs a copy of a small gradient; the layout is cuDNN's choice",
    r"Setting accelerator to CPU": "of the machine, not of the training",
    r"\s*Detected KeyboardInterrupt": "the program says what to type",
    LEAKED: "semaphores of a killed process, which the tracker removes",
}
"""Beginnings of messages (regular expressions) that are not shown -> reason."""
FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
"""Categories of warnings that ask for a change of code. The project has none of these."""
LOGGERS = (
    "DeepSpeed",
    "lightning.fabric.utilities.distributed",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.accelerators.cuda",
    "lightning.pytorch.strategies.deepspeed",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.utilities.rank_zero",
    "lightning_utilities.core.rank_zero",
)
"""Loggers that give such messages. A filter of a logger does not reach the loggers below it, so each is named."""


def silence_libraries() -> None:
    """Show no message of `SILENCED`, and show a warning as `warning: message`, without the line of code under it."""
    warnings.showwarning = show_warning
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_is_wanted)
    # The resource tracker is a process of its own; it reads this variable, or the words after -W, which Python passes on.
    given = os.environ.get("PYTHONWARNINGS")
    if LEAKED not in (given or ""):
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (given, f"ignore:{LEAKED}")))


def show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    """Print a warning unless it is silenced. The arguments are those of `warnings.showwarning`."""
    if not issubclass(category, FOR_DEVELOPERS) and not is_silenced(str(message)):
        print(printable(f"warning: {message}"), file=file or sys.stderr, flush=True)


def is_silenced(message: str) -> bool:
    """Return whether a message of a library is not shown."""
    return any(re.match(f"(\\[rank: \\d+\\] )?{beginning}", message, re.DOTALL) for beginning in SILENCED)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not is_silenced(record.getMessage())
