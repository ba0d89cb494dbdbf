"""Several captions of a clip: drawn in training, equal on any number of workers and ranks, known to the vocabulary."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from datamodules.joint import JointData
from tests.helpers.joint_data import make
from walt_pl.data.batch import JointBatch, SampleRef
from walt_pl.data.caption_draw import draw_caption
from walt_pl.data.index import Index, write_index
from walt_pl.media.writing import write_image

IMAGES = 6
SETTINGS: dict[str, Any] = {"videos_per_batch": 0, "image_stacks_per_batch": 1, "images_per_stack": 2, "val_videos": 4, "seed": 5}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images of 16 pixels with three captions each, but the first, which has one."""
    folder = tmp_path_factory.mktemp("captioned")
    rows: list[dict[str, object]] = []
    for split in ("train", "val"):
        for number in range(IMAGES):
            write_image(folder / f"{split}{number}.png", np.full((16, 16, 3), 9 * number, np.uint8))
            size = {"kind": "image", "frames": 1, "fps": 0.0, "width": 16, "height": 16, "bytes": 1}
            more = [f"{split} {number} {word}" for word in ("two", "three")] if number else []
            words = {"caption": f"{split} {number} one", "more_captions": more, "label": -1, "split": split}
            rows.append({"path": f"{split}{number}.png", **size, **words})
    write_index(rows, folder / "index.parquet")
    return str(folder / "index.parquet")


def told(batches: list[JointBatch]) -> list[tuple[str, str]]:
    return [(Path(path).stem, caption) for batch in batches for path, caption in zip(batch.paths, batch.captions, strict=True)]


def read(data: JointData, epochs: int) -> list[JointBatch]:
    loader = data.train_dataloader()
    batches = [batch for _ in range(epochs) for batch in loader]
    data.teardown("fit")
    return batches


def test_joint_data_draws_a_caption_in_each_epoch(captioned: str) -> None:
    found = told(read(make(captioned, **SETTINGS), 16))
    images = Index(captioned, "train").images
    seen: dict[str, int] = {}
    for name, caption in found:
        item, epoch = int(name.removeprefix("train")), seen.get(name, 0)
        seen[name] = epoch + 1
        assert caption == draw_caption(images[item], SampleRef("image", item, epoch, 0), seed=5)
    assert set(seen.values()) == {16}
    assert {caption for name, caption in found if name == "train0"} == {"train 0 one"}
    assert len({caption for _, caption in found}) == 1 + 3 * (IMAGES - 1)
    assert told(read(make(captioned, **SETTINGS | {"seed": 6}), 16)) != found


def test_joint_data_draws_equal_captions_on_workers_ranks_and_after_a_restart(captioned: str) -> None:
    whole = told(read(make(captioned, **SETTINGS), 3))
    assert told(read(make(captioned, num_workers=2, **SETTINGS), 3)) == whole
    ranks = []
    for rank in range(2):
        data = make(captioned, **SETTINGS | {"image_stacks_per_batch": 2, "images_per_stack": 1})
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]  # all it asks for
        ranks.append(told(read(data, 3)))
    assert [pair for both in zip(*ranks, strict=True) for pair in both] == whole
    begun = make(captioned, **SETTINGS).train_dataloader()
    epoch = len(list(begun))
    first = next(iter(begun))
    resumed = make(captioned, **SETTINGS).train_dataloader()
    resumed.load_state_dict(begun.state_dict())
    assert told([first, next(iter(resumed))]) == whole[2 * epoch :][:4]


def test_joint_data_draws_equal_captions_for_latents_and_pixels(captioned: str, vae: str) -> None:
    cached = make(captioned, vae=vae, **SETTINGS)
    cached.prepare_data()
    assert told(read(cached, 4)) == told(read(make(captioned, **SETTINGS), 4))


@pytest.mark.parametrize("latents", [False, True])
def test_joint_data_validation_reads_the_first_caption(captioned: str, latents: bool, vae: str) -> None:
    data = make(captioned, vae=vae if latents else None, **SETTINGS)
    data.prepare_data()
    loader = data.val_dataloader()
    assert not isinstance(loader, list)
    for _ in range(3):
        assert told(list(loader)) == [(f"val{number}", f"val {number} one") for number in range(4)]


def test_joint_data_captions_are_all_of_training_and_the_first_of_validation(captioned: str) -> None:
    trained = {f"train {number} {word}" for number in range(IMAGES) for word in ("one", "two", "three")[: 3 if number else 1]}
    data = make(captioned, **SETTINGS)
    assert set(data.captions()) == trained
    assert set(data.captions(validation=True)) == trained | {f"val {number} one" for number in range(4)}
