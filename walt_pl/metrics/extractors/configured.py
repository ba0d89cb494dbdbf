"""The base of the extractors of this folder: one constructor for all, exact arithmetic, batches of clips of one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from walt_pl.metrics.extractor import ClipBatch, Extractor
from walt_pl.metrics.protocol import EvaluationProtocol


@dataclass(frozen=True)
class ExtractorSettings:
    """Everything that an extractor is made from."""

    protocol: EvaluationProtocol
    file: str | None = None
    """Path of its file or folder, as typed; `MODEL@FILE` for clip."""
    sha256: str | None = None
    """Hash that the file must have, as typed; None for the known one."""
    device: str = "cpu"


class ConfiguredExtractor(Extractor):
    """An extractor that `walt_pl.metrics.extractors.choice` finds by its kind. Defining a subclass in a file of this folder registers it.

    Args:
        settings: of the extractor.
    """

    takes_file: ClassVar[bool] = False
    of_images: ClassVar[bool | None] = None
    """True if it takes images alone, False for videos alone, None for both."""
    is_default: ClassVar[bool] = True
    """False if another kind gives its rows unless this one is named."""

    def __init__(self, settings: ExtractorSettings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute without gradients, in float32 without autocast and TF32, and in the same way on every call.

    The executor of torchscript optimises after its first calls, which would move the last digits of later rows.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
            torch.jit.optimized_execution(False),  # type: ignore[attr-defined]
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def compute_by_shape(clips: Sequence[Tensor], compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the rows of clips, float32 [b d] on the CPU. Clips of one shape are computed together.

    Args:
        clips: tensors of any shapes.
        compute: maps a stack [n ...] of equal shape to rows [n d].
    """
    groups: dict[torch.Size, list[int]] = {}
    for position, clip in enumerate(clips):
        groups.setdefault(clip.shape, []).append(position)
    rows: list[Tensor] = [torch.empty(0)] * len(clips)
    for positions in groups.values():
        for position, row in zip(positions, compute(torch.stack([clips[i] for i in positions])).float().cpu(), strict=True):
            rows[position] = row
    return torch.stack(rows) if rows else torch.empty(0, 0)


def check_finite(rows: Tensor, kind: str) -> Tensor:
    """Return rows unchanged.

    Raises:
        ValueError: a value is infinite or no number.
    """
    if not bool(rows.isfinite().all()):
        bad = int((~rows.isfinite().all(dim=1)).nonzero()[0])
        raise ValueError(f"the extractor {kind} gives values that are not finite for clip {bad} of the batch; is its file right?")
    return rows


def pairs_of(batch: ClipBatch, kind: str, least: int) -> list[tuple[Tensor, Tensor]]:
    """Return each clip with its original, uint8 [t h w 3].

    Args:
        batch: clips with originals.
        kind: of the extractor, for messages.
        least: smallest number of rows and columns.

    Raises:
        ValueError: there are no originals, shapes differ, or frames are too small.
    """
    if batch.originals is None:
        raise ValueError(f"{kind} compares each clip with its original, and these clips have none; use a paired protocol or a run")
    pairs = list(zip(batch.clips, batch.originals, strict=True))
    for position, (clip, original) in enumerate(pairs):
        if clip.shape != original.shape:
            found, wanted = ("x".join(map(str, one.shape[:3])) for one in (clip, original))
            raise ValueError(f"{kind}: clip {position} of the batch has {found} (frames, rows, columns), its original {wanted}; set --size")
        if min(clip.shape[1:3]) < least:
            raise ValueError(f"{kind} wants frames of at least {least}x{least} pixels, got {clip.shape[1]}x{clip.shape[2]}")
    return pairs
