"""Write data, machine, code and packages of every start of a training beside its logs."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from walt_pl.data.quarantine import finding_of
from walt_pl.data.selection import USED, Bucket, Selection
from walt_pl.evaluation.program import machine
from walt_pl.runs.artifact_writing import code_revision, package_versions
from walt_pl.runs.data_record import DataRecord, KindRecord
from walt_pl.runs.start_record import StartRecord
from walt_pl.training.log_folder import make_start_folder, suffix_of_start

SPLITS = ("train", "val")


class RecordStart(L.Callback):
    """Write two records of a start into the folder of its logs, for `walt report`: logs/version_3/data.json and start.json.

    The first has the counts of the data; the second has step, machine, code and packages.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = make_start_folder(trainer)
        if folder is None:
            return
        suffix = suffix_of_start(folder, "data*.json")
        start = StartRecord(trainer.global_step, describe_machine(trainer), code_revision(), package_versions())
        try:
            describe_data(trainer.datamodule).write(folder / f"data{suffix}.json")  # type: ignore[attr-defined]
            start.write(folder / f"start{suffix}.json")
        except OSError as error:  # as for curves: a full disk must not stop a training
            rank_zero_warn(f"data and machine of this start are not recorded in {folder} ({error})")


def describe_machine(trainer: L.Trainer) -> str:
    """Return the processor or GPU of a training, and its number of processes."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()
    return f"{name}, {trainer.world_size} process{'es' if trainer.world_size > 1 else ''}"


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
