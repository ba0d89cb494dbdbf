"""Moving pictures reach the event file."""

import io
from pathlib import Path

import lightning as L
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from walt_pl.callbacks.previews import Previews
from walt_pl.data.batch import JointBatch
from walt_pl.logger import Curves


class Still(L.LightningModule):
    """Shows the clips it is given."""

    def validation_step(self, batch: JointBatch, batch_idx: int) -> None: ...

    def previews(self, batch: JointBatch) -> dict[str, tuple[Tensor, list[str], int]]:
        return {"clips": (batch.videos, batch.captions, 2)}


def one_batch(samples: list[JointBatch]) -> JointBatch:
    return samples[0]


def test_previews_are_moving_pictures_in_the_event_file(tmp_path: Path) -> None:
    clips = torch.linspace(-1, 1, 5)[None, None, :, None, None].expand(2, 3, 5, 16, 16).clone()
    none = torch.zeros(0, 3, 1, 16, 16)
    tail = torch.zeros(2, dtype=torch.int64)
    batch = JointBatch(clips, none, ["dark to light", "again"], tail, torch.ones(2), tail, None, None, "pixels", ["a", "b"])
    trainer = L.Trainer(
        callbacks=[Previews()],
        logger=Curves(tmp_path),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.validate(Still(), DataLoader([batch], collate_fn=one_batch), verbose=False)  # type: ignore[arg-type]
    events = EventAccumulator(str(trainer.log_dir)).Reload()
    picture = Image.open(io.BytesIO(events.Images("previews/clips")[0].encoded_image_string))
    assert picture.format == "GIF"
    assert picture.n_frames == 5  # type: ignore[attr-defined]
