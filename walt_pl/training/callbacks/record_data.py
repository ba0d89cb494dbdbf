"""Write the counts of the data of every start of a training beside its logs."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from walt_pl.data.quarantine import finding_of
from walt_pl.data.selection import USED, Bucket, Selection
from walt_pl.runs.data_record import DataRecord, KindRecord

SPLITS = ("train", "val")


class RecordData(L.Callback):
    """Write the counts of a start into the folder of its logs: logs/version_3/data.json. `walt report` shows them."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = Path(str(trainer.log_dir))  # log_dir communicates between ranks, so all of them read it
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("data*.json")))  # without a logger all starts share one folder
        try:
            describe_data(trainer.datamodule).write(folder / f"data{f'_{number}' if number else ''}.json")  # type: ignore[attr-defined]
        except OSError as error:  # as for curves: a full disk must not stop a training
            rank_zero_warn(f"the counts of the data are not recorded in {folder} ({error})")


def describe_data(data: Any) -> DataRecord:
    """Return the record of a `datamodules.joint.JointData`."""
    splits = [split for split in SPLITS if (split == "train" and data.shards is None) or (split == "val" and data.val_videos)]
    return DataRecord(
        index=str(data.index),
        sha256=data.index_sha256 if splits else None,
        frames=data.clip_transform.frames,
        fps=data.clip_transform.fps,
        splits={split: _count(data.choice(split), data.buckets) for split in splits},
        quarantine=dict(Counter(finding_of(reason) or "listed by a person" for reason in data.quarantine.reasons.values())),
        streamed=tuple(data.shards or ()),
    )


def _count(selections: Mapping[Any, Selection], buckets: list[Bucket]) -> dict[str, KindRecord]:
    found = {}
    for kind, selection in selections.items():
        used = np.bincount(selection.bucket[selection.reason == USED], minlength=len(buckets))
        sizes = {str(bucket): int(count) for bucket, count in zip(buckets, used, strict=True)}
        found[str(kind)] = KindRecord(len(selection.reason), selection.used, selection.left_out(), sizes)
    return found
