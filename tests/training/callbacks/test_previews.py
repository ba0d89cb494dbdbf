"""Moving pictures reach the event file."""

import io
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import Tensor
from torch.utils.data import DataLoader

from walt_pl.data.batch import JointBatch
from walt_pl.text.features import CachedTextEncoder
from walt_pl.text.small_encoder import PretrainedTextConfig
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


class Prompted(L.LightningModule):
    """Shows the number of each clip of a batch as its brightness, and keeps the batches."""

    def __init__(self, classes: int | None) -> None:
        super().__init__()
        self.denoiser = SimpleNamespace(config=SimpleNamespace(num_classes=classes))
        self.text_encoder = None
        self.batches: list[JointBatch] = []

    def validation_step(self, batch: JointBatch, batch_idx: int) -> None: ...

    def measured_clips(self, batch: JointBatch) -> Tensor:
        self.batches.append(batch)
        return (batch.global_batch_index / 8 - 1)[:, None, None, None, None].expand(-1, *batch.videos.shape[1:])


class OfClasses(OneBatch):
    def classes(self) -> dict[int, str]:
        return {0: "Archery", 2: "Band"}


@pytest.mark.parametrize(("classes", "videos"), [(None, 9), (None, 0), (5, 2)])
def test_previews_of_prompts_show_each_prompt_once_in_order(classes: int | None, videos: int, tmp_path: Path) -> None:
    """They are sampled in parts of at most 8 and of the batch, also where it has images alone. The log has whole captions."""
    names = ["band", "Archery", "2"] if classes else [f"clip {number} {'of many words ' * 9}".strip() for number in range(10)]
    (tmp_path / "prompts.txt").write_text("".join(f"{name}\n" for name in names))
    pixels, images = torch.zeros(videos, 3, 5, 16, 16), torch.zeros(3, 3, 1, 16, 16)
    tail = torch.full((videos + 3,), -1)
    batch = JointBatch(pixels, images, ["x"] * len(tail), tail, tail * 1.0, tail, None, None, "pixels", ["x"] * len(tail))
    stage = Prompted(classes)
    trainer = L.Trainer(
        callbacks=[Previews(prompts=str(tmp_path / "prompts.txt"))],
        logger=ResilientTensorBoardLogger(tmp_path),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.validate(stage, datamodule=OfClasses(batch, 8.0), verbose=False)
    size = min(8, videos or 3)
    assert [len(one.videos) for one in stage.batches] == [min(size, len(names) - first) for first in range(0, len(names), size)]
    assert torch.cat([one.global_batch_index for one in stage.batches]).tolist() == list(range(len(names)))
    assert torch.cat([one.labels for one in stage.batches]).tolist() == ([2, 0, 2] if classes else [-1] * 10)
    assert [caption for one in stage.batches for caption in one.captions] == ([""] * 3 if classes else names)
    assert all(one.videos.shape[1:] == (3, 5 if videos else 1, 16, 16) and not len(one.images) for one in stage.batches)
    (event,) = [event for event in EventFileLoader(str(next(Path(str(trainer.log_dir)).glob("events*")))).Load() if event.summary.value]
    (value,) = event.summary.value
    assert value.tag == "previews/prompts"
    assert value.metadata.summary_description == "\n".join(f"{number}. {name}" for number, name in enumerate(names, 1))
    picture = Image.open(io.BytesIO(value.tensor.string_val[2])).convert("L")
    cells = [picture.getpixel((128 * (number % 4) + 64, (128 + 28) * (number // 4) + 64)) for number in range(len(names))]
    assert cells == pytest.approx([16 * number for number in range(len(names))], abs=2)


def test_previews_refuse_a_prompt_that_is_no_class_of_the_training_data(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Bant\n")
    callback, trainer = (
        Previews(prompts=str(tmp_path / "prompts.txt")),
        SimpleNamespace(logger=None, fast_dev_run=False, datamodule=OfClasses(None, None)),
    )  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'previews\.prompts: "Bant": .* did you mean Band\?'):
        callback.on_fit_start(trainer, Prompted(5))  # type: ignore[arg-type]


def test_previews_encode_prompts_once_before_training_with_a_pretrained_encoder(tiny_t5: Path, tmp_path: Path) -> None:
    config = PretrainedTextConfig(kind="t5", path=str(tiny_t5), width=16, max_length=8)
    encoder = CachedTextEncoder(config, "0" * 64, tmp_path / "cache")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue bar\n")
    stage = SimpleNamespace(denoiser=SimpleNamespace(config=SimpleNamespace(num_classes=None)), text_encoder=encoder)
    strategy = SimpleNamespace(barrier=lambda name: None)
    trainer = SimpleNamespace(logger=None, fast_dev_run=False, global_rank=0, world_size=1, is_global_zero=True, strategy=strategy)
    Previews(prompts=str(tmp_path / "prompts.txt")).on_fit_start(trainer, stage)  # type: ignore[arg-type]
    assert encoder.cache.missing(["a red circle", "a blue bar", "other"]) == ["other"]
    assert encoder._encoder is None, "its memory is free again"
