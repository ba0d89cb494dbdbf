"""Clips of several aspects: buckets, what is used and why not, quarantine and caches of each bucket."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.joint import JointData
from tests.helpers.joint_data import FakeVAE, make
from walt_pl.data.index import write_index
from walt_pl.media.writing import write_image, write_video

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*files could not be read and counted for nothing"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*(exists and is not empty|dirpath has changed)"),
]


SHAPES = [(32, 48), (48, 32), (40, 40)]
BUCKETS = [(16, 24), (24, 16), (16, 16)]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve clips and nine images of three shapes, wide, tall and square; two clips are too short."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for split in ("train", "val"):
        for kind, count in (("video", 12), ("image", 9)):
            for number in range(count):
                height, width = SHAPES[number % 3]
                frames = 1 if kind == "image" else 3 if number in (4, 8) else 7
                path = folder / f"{split}-{number}{'.mp4' if kind == 'video' else '.png'}"
                picture = rng.integers(0, 256, (frames, height // 8, width // 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
                if kind == "video":
                    write_video(path, picture, fps=8)
                else:
                    write_image(path, picture[0])
                size = {"frames": frames, "fps": 8.0, "width": width, "height": height, "bytes": 1, "duration": frames / 8}
                words = {"caption": f"{kind} {number}", "label": number, "split": split}
                rows.append({"path": path.name, "kind": kind, **size, **words})
    write_index(rows, folder / "index.parquet")
    return str(folder / "index.parquet")


def make_buckets(index: str, **changes: Any) -> JointData:
    return make(index, **{"buckets": BUCKETS, "videos_per_batch": 2, "image_stacks_per_batch": 1, "val_videos": 12, **changes})


@pytest.fixture
def quarantined(shapes: str) -> Iterator[Callable[..., None]]:
    """Puts clips on the quarantine list, which is empty again afterwards."""
    path = Path(shapes).with_suffix(".quarantine.csv")

    def write(*numbers: int) -> None:
        path.write_text("path,offset,reason\n" + "".join(f"train-{number}.mp4,-1,corrupt: painted so\n" for number in numbers))

    yield write
    path.unlink(missing_ok=True)


def test_joint_data_every_batch_has_clips_of_one_bucket(shapes: str) -> None:
    loader = make_buckets(shapes, low_res_size=8).train_dataloader()
    seen = set()
    for batch in [batch for _ in range(3) for batch in loader]:
        rows, columns = batch.videos.shape[3:]
        assert batch.images.shape[3:] == (rows, columns)
        assert batch.low_res_videos is not None and batch.low_res_videos.shape[3:] == (rows // 2, columns // 2)
        assert {SHAPES[label % 3] for label in batch.labels.tolist()} == {SHAPES[BUCKETS.index((rows, columns))]}
        assert batch.weight.all()
        seen.add((rows, columns))
    assert seen == set(BUCKETS)


@pytest.mark.filterwarnings("ignore:.*of weight 0 so far")
def test_joint_data_one_bucket_of_the_same_size_changes_nothing(index: str) -> None:
    plain, bucket = make(index).train_dataloader(), make(index, buckets=[(16, 16)]).train_dataloader()
    for old, new in zip(plain, bucket, strict=True):
        assert old.paths == new.paths and torch.equal(old.videos, new.videos) and torch.equal(old.images, new.images)


def test_joint_data_validation_goes_through_every_bucket(shapes: str) -> None:
    loader = make_buckets(shapes).val_dataloader()
    assert not isinstance(loader, list)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert {tuple(batch.videos.shape[3:]) for batch in batches} == set(BUCKETS)
    labels = sorted(label for batch in batches for label in batch.labels[: len(batch.videos)].tolist())
    assert labels == [number for number in range(12) if number not in (4, 8)]


def test_joint_data_setup_prints_which_clips_are_used_and_why_not(
    shapes: str, quarantined: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    quarantined(0, 3, 1)
    data = make_buckets(shapes)
    data.setup("fit")
    told = capsys.readouterr().out
    assert "train: 7 of 12 videos used; left out: 3 quarantined, 2 too short (fewer than 5 frames)" in told
    assert "train: 9 of 9 images used\n" in told and "  16 x 24: 2 videos, 3 images" in told
    assert "val: 10 of 12 videos used" in told
    assert data.counts() == {"train_videos": 7, "train_images": 9, "val_videos": 10, "val_images": 9}
    assert list(data.captions()) == [f"video {n}" for n in (2, 5, 6, 7, 9, 10, 11)] + [f"image {n}" for n in range(9)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 9}, r"(?s)no video of split \"train\" can be used.*12 too short \(fewer than 9 frames\)"),
        ({"buckets": [(64, 64), (96, 96)]}, r"(?s)no video and no image.*smaller than every size of data\.buckets"),
    ],
)
def test_joint_data_split_with_nothing_usable_stops_with_the_reasons(settings: dict[str, Any], message: str, shapes: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_buckets(shapes, **settings).setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": 8}, "leave out one of them"),
        ({"aspect": 1.5}, r"leave out data\.aspect"),
        ({"buckets": [(16, 16), (16, 16)]}, "names a size twice: 16 x 16"),
        ({"buckets": [(0, 16), (16, 16)]}, "at least 1, got 0 x 16"),
        ({"low_res_size": 5}, "16 x 24 times .* is no number of pixels"),
    ],
)
def test_joint_data_refuses_buckets_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_buckets("index.parquet", **settings)


def test_joint_data_never_draws_quarantined_clips_and_keeps_the_order_of_others(shapes: str, quarantined: Callable[..., None]) -> None:
    def order() -> list[list[str]]:
        loader = make_buckets(shapes, image_stacks_per_batch=0, videos_per_batch=1).train_dataloader()
        return [batch.paths for _ in range(4) for batch in loader]

    whole = order()
    quarantined(0, 7)
    rest = order()
    assert not [path for path in rest if Path(path[0]).name in ("train-0.mp4", "train-7.mp4")]
    for shape in range(3):
        before, after = ([p for (p,) in paths if int(Path(p).stem[6:]) % 3 == shape] for paths in (whole, rest))
        before = [path for path in before if Path(path).name not in ("train-0.mp4", "train-7.mp4")]
        assert before and all(a == b for a, b in zip(before, after, strict=False))


def test_joint_data_resume_under_another_quarantine_warns_and_continues(shapes: str, quarantined: Callable[..., None]) -> None:
    loader = make_buckets(shapes).train_dataloader()
    wanted = [batch.paths for _ in range(2) for batch in loader]
    first = make_buckets(shapes).train_dataloader()
    begun = [batch.paths for batch in islice(first, 2)]
    quarantined(9)
    second = make_buckets(shapes).train_dataloader()
    with pytest.warns(UserWarning, match=r"quarantine has changed .*videos: 1 more, 0 free again"):
        second.load_state_dict(first.state_dict())
    following = [path for batch in islice(second, 2) for path in batch.paths]
    assert begun == wanted[:2] and not any(path.endswith("train-9.mp4") for path in following)
    quarantined()
    third = make_buckets(shapes).train_dataloader()
    third.load_state_dict(first.state_dict())
    assert next(iter(third)).paths == wanted[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_joint_data_cache_of_every_bucket_gives_the_latents_of_its_pixels(
    workers: int, shapes: str, vae: str, quarantined: Callable[..., None]
) -> None:
    quarantined(2)
    settings: dict[str, Any] = {"views": 2, "size": 32, "buckets": [(32, 48), (48, 32), (32, 32)], "low_res_size": 16, "val_videos": 0}
    cached = make_buckets(shapes, vae=vae, num_workers=workers, **settings)
    cached.prepare_data()
    read = 2 * 2 * (12 - 2 - 1 + 9)  # two sizes and two views of what is neither short nor quarantined; zeros for the quarantined one
    assert FakeVAE.clips == read + 2 * 2
    pixels = make_buckets(shapes, **settings).train_dataloader()
    for latents, seen in zip(cached.train_dataloader(), pixels, strict=True):
        assert latents.paths == seen.paths and latents.weight.all()
        for name in ("videos", "images", "low_res_videos", "low_res_images"):
            assert torch.equal(getattr(latents, name), FakeVAE().encode(getattr(seen, name)).mean.half().float()), name
    cached.teardown("fit")
    before = FakeVAE.clips
    make_buckets(shapes, vae=vae, **settings).build_caches(verify=True)
    assert FakeVAE.clips == before


@pytest.mark.filterwarnings("ignore:.*this shard is rebuilt")
def test_joint_data_flipped_byte_of_the_cache_costs_one_sample_and_is_named(shapes: str, vae: str) -> None:
    make_buckets(shapes, vae=vae, val_videos=0).prepare_data()
    shard = next((Path(vae).parent / "cache").rglob("*-16x24-*/videos/00000.f16"))
    data = bytearray(shard.read_bytes())
    data[0] ^= 1
    shard.write_bytes(data)
    data_module = make_buckets(shapes, vae=vae, val_videos=0)
    data_module.prepare_data()
    with pytest.warns(UserWarning, match=r"00000\.f16: row 0 has changed"):
        batches = list(data_module.train_dataloader())
        lost = [path for batch in batches for path, weight in zip(batch.paths, batch.weight.tolist(), strict=True) if not weight]
        assert lost and {Path(path).name for path in lost} == {"train-0.mp4"}
    make_buckets(shapes, vae=vae, val_videos=0).build_caches(verify=True)
    healed = make_buckets(shapes, vae=vae, val_videos=0).train_dataloader()
    assert all(batch.weight.all() for batch in healed)


# Streams
