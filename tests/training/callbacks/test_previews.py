"""Moving pictures reach the event file."""

import io
from pathlib import Path

import lightning as L
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from walt_pl.data.batch import JointBatch
from walt_pl.training.callbacks.previews import Previews
from walt_pl.training.logger import ResilientTensorBoardLogger


class Still(L.LightningModule):
    """Shows the clips it is given."""

    def validation_step(self, batch: JointBatch, batch_idx: int) -> None: ...

    def previews(self, batch: JointBatch) -> dict[str, tuple[Tensor, list[str], int]]:
        return {"clips": (batch.videos, batch.captions, 2)}


def one_batch(samples: list[JointBatch]) -> JointBatch:
    return samples[0]


class OneBatch(L.LightningDataModule):
    def __init__(self, batch: JointBatch, rate: float | None) -> None:
        super().__init__()
        self.batch, self.rate = batch, rate

    def val_dataloader(self) -> DataLoader[JointBatch]:
        return DataLoader([self.batch], collate_fn=one_batch)  # type: ignore[arg-type]

    def frame_rate(self) -> float | None:
        return self.rate


@pytest.mark.parametrize(("rate", "milliseconds"), [(20.0, 50), (None, 120)])  # GIF keeps time in hundredths of a second
def test_previews_are_gifs_in_the_event_file(tmp_path: Path, rate: float | None, milliseconds: int) -> None:
    clips = torch.linspace(-1, 1, 5)[None, None, :, None, None].expand(2, 3, 5, 16, 16).clone()
    none = torch.zeros(0, 3, 1, 16, 16)
    tail = torch.zeros(2, dtype=torch.int64)
    batch = JointBatch(clips, none, ["dark to light", "again"], tail, torch.ones(2), tail, None, None, "pixels", ["a", "b"])
    trainer = L.Trainer(
        callbacks=[Previews()],
        logger=ResilientTensorBoardLogger(tmp_path),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.validate(Still(), datamodule=OneBatch(batch, rate), verbose=False)
    events = EventAccumulator(str(trainer.log_dir)).Reload()
    picture = Image.open(io.BytesIO(events.Images("previews/clips")[0].encoded_image_string))
    assert picture.format == "GIF" and picture.info["comment"] == b"dark to light\nagain"
    assert picture.n_frames == 5  # type: ignore[attr-defined]
    assert picture.info["duration"] == milliseconds
