"""The data module reads with the options of decoding that it is given."""

from pathlib import Path

import numpy as np
import yaml

from tests.helpers.clips import encode
from tests.helpers.joint_data import make
from walt_pl.data.index import write_index
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.runs.stored_config import clip_arguments


def interlaced_index(folder: Path) -> str:
    """Write an index of one clip, 64 x 64 pixels, whose upper lines are black and whose lower ones are white."""
    clip = np.zeros((5, 64, 64, 3), np.uint8)
    clip[:, 1::2] = 255
    encode(folder / "a.mp4", clip, "libx264", flags="+ilme+ildct", **{"x264-params": "tff=1"})
    facts = {"frames": 5, "fps": 8.0, "width": 64, "height": 64, "bytes": (folder / "a.mp4").stat().st_size, "decoder": "pyav"}
    write_index([{"path": "a.mp4", "kind": "video", "caption": "", "label": 0, "split": "train", **facts}], folder / "index.parquet")
    return str(folder / "index.parquet")


def test_joint_data_reads_with_its_deinterlace(tmp_path: Path) -> None:
    index, one = interlaced_index(tmp_path), {"size": 64, "videos_per_batch": 1, "image_stacks_per_batch": 0, "val_videos": 0}
    combs = {}
    for on in (False, True):
        data = make(index, deinterlace=on, **one)
        assert data.clip_transform.decoding == DecodeOptions(deinterlace=on)
        (batch,) = data.train_dataloader()
        combs[on] = (batch.videos[..., 1:-1, :] - batch.videos[..., 2:, :]).abs().mean().item()
    assert combs[False] > 1 > 0.1 > combs[True]
    assert make(index, **one).clip_transform.decoding == DecodeOptions()


def test_joint_data_of_stored_clip_arguments_reads_with_equal_options(tmp_path: Path) -> None:
    index = interlaced_index(tmp_path)
    for given in ({"deinterlace": True, "background": [1, 2, 3]}, {"deinterlace": False, "background": [255, 255, 255]}, {}):
        stored = clip_arguments(yaml.safe_dump({"data": {"index": index, **given}}), "train.yaml")
        assert stored == given
        wanted = make(index, **given).clip_transform.decoding
        assert make(index, **stored).clip_transform.decoding == wanted == DecodeOptions(**given)
