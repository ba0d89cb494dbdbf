"""JointData under a real Trainer: the same samples after any interruption, on any number of ranks and workers."""

import multiprocessing
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pyarrow.parquet as pq
import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn

from datamodules.joint import JointData
from tests.helpers.joint_data import COUNTS, FakeVAE, make
from walt_pl.data.batch import DataError, JointBatch
from walt_pl.data.index import write_index
from walt_pl.data.loader import BatchLoader
from walt_pl.data.webdataset_loader import StreamLoader
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.runs import card
from walt_pl.training.fingerprints import fingerprints

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*files could not be read and counted for nothing"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*(exists and is not empty|dirpath has changed)"),
]

# Batches


def test_joint_data_frame_rate_is_that_of_the_training_videos(index: str) -> None:
    assert make(index).frame_rate() == 8
    assert make(index, fps=16.0).frame_rate() == 16
    assert make(index, frames=3, stride=2).frame_rate() == 4


def test_joint_data_frame_rate_is_unknown_for_images_alone_and_for_streams(index: str) -> None:
    assert make(index, videos_per_batch=0).frame_rate() is None
    assert make(index, videos_per_batch=0, fps=16.0).frame_rate() is None
    assert make(index, frames=1, fps=16.0).frame_rate() is None
    shards: dict[str, Any] = {"shards": {"video": "clips.tar"}, "image_stacks_per_batch": 0}
    assert make(index, **shards).frame_rate() is None
    assert make(index, **shards, fps=16.0).frame_rate() == 16


# Batches


def test_joint_data_classes_are_those_of_the_used_training_clips(tmp_path: Path) -> None:
    rows = [("a.mp4", 4, "train"), ("b.mp4", 0, "train"), ("c.mp4", 4, "train"), ("d.mp4", -1, "train"), ("e.mp4", 2, "val")]
    sizes = {"kind": "video", "frames": 17, "fps": 8.0, "width": 32, "height": 32, "caption": "", "bytes": 1, "duration": 2.125}
    short = {"path": "short.mp4", "label": 3, "split": "train", **sizes, "frames": 2}
    path = tmp_path / "index.parquet"
    write_index([short, *({"path": name, "label": label, "split": split, **sizes} for name, label, split in rows)], path)
    settings: dict[str, Any] = {"size": 32, "videos_per_batch": 1, "val_videos": 0}
    assert JointData(str(path), **settings).classes() == {0: "", 4: ""}
    (tmp_path / "index.classes.txt").write_text("Archery\nBowling\nCurling\n", encoding="utf-8")
    assert JointData(str(path), **settings).classes() == {0: "Archery", 4: ""}
    assert JointData(str(path), **settings, shards={"video": "clips-{000..001}.tar"}).classes() == {}


def test_joint_batch_has_the_documented_shapes_and_ranges(index: str) -> None:
    batch = next(iter(make(index, low_res_size=8).train_dataloader()))
    assert batch.videos.shape == (4, 3, 5, 16, 16) and batch.images.shape == (4, 3, 1, 16, 16)
    assert batch.low_res_videos is not None and batch.low_res_videos.shape == (4, 3, 5, 8, 8)
    assert batch.low_res_images is not None and batch.low_res_images.shape == (4, 3, 1, 8, 8)
    assert batch.videos.dtype == torch.float32 and batch.videos.abs().max() <= 1
    assert batch.global_batch_index.tolist() == list(range(8)) and batch.space == "pixels"
    assert [caption.split()[0] for caption in batch.captions] == ["video"] * 4 + ["image"] * 4
    assert [int(caption.split()[1]) for caption in batch.captions] == batch.labels.tolist()
    assert all(Path(path).is_absolute() for path in batch.paths)


def test_joint_batch_is_moved_by_lightning_and_by_plain_torch(index: str) -> None:
    batch = next(iter(make(index).train_dataloader()))
    for moved in (move_data_to_device(batch, "meta"), batch.to("meta")):
        assert isinstance(moved, JointBatch)
        assert {moved.videos.device.type, moved.images.device.type, moved.weight.device.type} == {"meta"}
        assert moved.captions == batch.captions and moved.low_res_videos is None
    assert batch.videos.device.type == "cpu"


@pytest.mark.filterwarnings("ignore:.*of weight 0 so far")
def test_joint_data_crops_of_several_sizes_share_one_shape_and_change_each_epoch(index: str) -> None:
    def two_epochs(seed: int) -> list[JointBatch]:
        loader = make(index, size=16, sizes=(24, 32), crop=16, seed=seed).train_dataloader()
        return [batch for _ in range(2) for batch in loader]

    first, again, other = two_epochs(1), two_epochs(1), two_epochs(2)
    assert {batch.videos.shape for batch in first} == {(4, 3, 5, 16, 16)}
    assert all(torch.equal(a.videos, b.videos) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].videos, other[0].videos)
    windows: dict[str, list[Tensor]] = {}
    for batch in first:
        for path, video in zip(batch.paths, batch.videos, strict=False):
            windows.setdefault(path, []).append(video)
    changed = [not torch.equal(a, b) for a, b in [pair[:2] for pair in windows.values() if len(pair) > 1] if a.any()]
    assert changed and all(changed)


@pytest.mark.filterwarnings("ignore:.*of weight 0 so far")
def test_joint_data_broken_clip_gets_weight_0(index: str) -> None:
    batches = list(make(index).train_dataloader())
    assert len(batches) == 3
    broken = [(b, n) for b in batches for n, path in enumerate(b.paths) if path.endswith("train-3.mp4")]
    assert broken
    for batch, number in broken:
        assert batch.weight[number] == 0 and not batch.videos[number].any()
        assert batch.weight.sum() == 7


def test_joint_data_max_pixels_leaves_out_larger_entries_and_says_so(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(index, max_pixels=32 * 48, val_videos=0)
    data.setup("fit")
    assert "left out" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"10 of more than data\.max_pixels rows x columns"):
        make(index, max_pixels=32 * 48 - 1, val_videos=0).setup("fit")


def test_joint_data_reads_with_its_background(index: str) -> None:
    assert make(index).clip_transform.decoding.background == (255, 255, 255)
    assert make(index, background=(1, 2, 3)).clip_transform.decoding.background == (1, 2, 3)
    with pytest.raises(ValueError, match=r"data\.background is red, green and blue from 0 to 255"):
        make(index, background=(1, 2, 256))


@pytest.mark.filterwarnings("ignore:.*of weight 0 so far")
def test_joint_data_num_classes_leaves_clips_out_of_batches_validation_and_caches(index: str, vae: str) -> None:
    data = make(index, num_classes=6, val_videos=3, vae=vae, image_stacks_per_batch=0)
    assert data.counts() == {"train_videos": 6, "train_images": 0, "val_videos": 3, "val_images": 0}
    data.prepare_data()
    free = make(index, val_videos=3, vae=vae, image_stacks_per_batch=0)
    free.prepare_data()
    latents = {path: video for batch in free.train_dataloader() for path, video in zip(batch.paths, batch.videos, strict=True)}
    for batch in [*data.train_dataloader(), *cast("BatchLoader", data.val_dataloader())]:
        assert all(0 <= label < 6 for label in batch.labels.tolist())
        assert all(f"-{label}." in path for label, path in zip(batch.labels.tolist(), batch.paths, strict=True))
        assert all(torch.equal(video, latents.get(path, video)) for path, video in zip(batch.paths, batch.videos, strict=True))
    assert set(data.classes()) == set(range(6)) and len(free.classes()) == 10


def test_joint_data_num_classes_of_fitting_labels_keeps_the_identity_of_the_selection(index: str) -> None:
    assert fingerprints(make(index, num_classes=11)) == fingerprints(make(index))
    assert fingerprints(make(index, num_classes=10))["data.selection_sha256"] != fingerprints(make(index))["data.selection_sha256"]


def test_joint_data_num_classes_reaches_the_stream(index: str) -> None:
    loader = make(index, num_classes=3, shards={"video": "clips.tar"}, image_stacks_per_batch=0).train_dataloader()
    assert cast("StreamLoader", loader)._reading.num_classes == 3


def test_joint_data_unusable_validation_is_an_error_before_latents_are_computed(index: str, vae: str, tmp_path: Path) -> None:
    table = pq.read_table(index)
    rows = [{**row, "label": -1} if row["split"] == "val" else row for row in table.to_pylist()]
    write_index([{**row, "path": str(Path("clips") / row["path"])} for row in rows], tmp_path / "index.parquet")
    (tmp_path / "clips").symlink_to(Path(index).parent)
    with pytest.raises(ValueError, match='no video and no image of split "val" can be used'):
        make(str(tmp_path / "index.parquet"), num_classes=11, vae=vae).prepare_data()
    assert not FakeVAE.clips


def test_joint_data_max_pixels_holds_where_the_index_says_smaller(index: str) -> None:
    """Somebody may have written the sizes of the index."""
    data = make(index, val_videos=0)
    data.setup("fit")
    object.__setattr__(data.clip_transform, "decoding", DecodeOptions(32 * 48 - 1))  # after the selection by the index
    with pytest.raises(DataError, match=r"too large: 48 x 32 = 1,536 pixels, at most 1,535 wanted"):
        list(data.train_dataloader())


def test_joint_data_validation_is_in_order_and_equal_every_time(index: str) -> None:
    loader = make(index).val_dataloader()
    assert not isinstance(loader, list)
    first, second = list(loader), list(loader)
    captions = [caption for batch in first for caption in batch.captions]
    assert captions == [f"video {n}" for n in range(4)] + [f"image {n}" for n in range(4)]
    assert all(torch.equal(a.videos, b.videos) for a, b in zip(first, second, strict=True))
    assert make(index, val_videos=0).val_dataloader() == []
    assert make(index).counts() == {"train_videos": 10, "train_images": 11, "val_videos": 4, "val_images": 4}


@pytest.mark.filterwarnings("ignore:.*of weight 0 so far")
def test_joint_data_validation_crop_is_frame_0_and_the_centre(index: str) -> None:
    def validated(**settings: Any) -> list[Tensor]:
        loader = make(index, size=16, **settings).val_dataloader()
        assert not isinstance(loader, list)
        return [batch.videos for batch in loader]

    whole = validated()
    for seed in (1, 2):
        windows = validated(sizes=(24, 32), crop=16, flip=True, seed=seed)
        assert all(torch.equal(a, b) for a, b in zip(whole, windows, strict=True))
    small = validated(crop=8)
    assert all(torch.equal(a[..., 4:12, 4:12], b) for a, b in zip(whole, small, strict=True))


# Latents


@pytest.mark.filterwarnings("ignore:.*of weight 0 so far")
@pytest.mark.parametrize("workers", [0, 2])
def test_joint_data_cache_and_pixels_give_the_same_latents(index: str, vae: str, workers: int) -> None:
    settings: dict[str, Any] = {"views": 2, "low_res_size": 8, "seed": 4}
    cached = make(index, vae=vae, num_workers=workers, **settings)
    cached.prepare_data()
    cached_loader, pixel_loader = cached.train_dataloader(), make(index, **settings).train_dataloader()
    for _ in range(2):
        for latents, pixels in zip(cached_loader, pixel_loader, strict=True):
            assert latents.space == "latents" and latents.captions == pixels.captions
            assert torch.equal(latents.weight, pixels.weight) and torch.equal(latents.global_batch_index, pixels.global_batch_index)
            for name in ("videos", "images", "low_res_videos", "low_res_images"):
                mean = FakeVAE().encode(getattr(pixels, name)).mean
                keep = pixels.weight[:4] if "videos" in name else pixels.weight[4:]
                wanted = mean.half().float() * keep.view(-1, 1, 1, 1, 1)
                assert torch.equal(getattr(latents, name), wanted), name
    cached.teardown("fit")


def test_joint_data_shares_caches_of_the_same_size_between_stages(index: str, vae: str) -> None:
    make(index, vae=vae).prepare_data()
    encoded = FakeVAE.clips
    assert encoded == 10 + 11 + 4 + 4
    make(index, vae=vae, size=32, low_res_size=16).prepare_data()
    assert FakeVAE.clips == 2 * encoded
    make(index, vae=vae, size=32, low_res_size=16).prepare_data()
    assert FakeVAE.clips == 2 * encoded


@pytest.mark.parametrize("aspect", [1.5, 0.75])
def test_joint_data_aspect_shapes_pixels_latents_and_low_res(index: str, vae: str, aspect: float) -> None:
    settings: dict[str, Any] = {"low_res_size": 16, "size": 32, "aspect": aspect}
    pixels, cached = make(index, **settings), make(index, vae=vae, **settings)
    cached.prepare_data()
    for data, unit in ((pixels, 1), (cached, 4)):
        batch = next(iter(data.train_dataloader()))
        rows, columns = 32 // unit, int(32 * aspect) // unit
        assert batch.videos.shape[3:] == batch.images.shape[3:] == (rows, columns)
        assert batch.low_res_videos is not None and batch.low_res_videos.shape[3:] == (rows // 2, columns // 2)


def test_joint_data_new_vae_makes_the_cache_stale(index: str, vae: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(index, vae=vae).prepare_data()
    encoded = FakeVAE.clips
    monkeypatch.setattr(card, "read_card", lambda path: {"sha256": "2"})
    with pytest.warns(UserWarning, match=r"stale \(vae changed\)"):
        make(index, vae=vae).prepare_data()
    assert FakeVAE.clips == 2 * encoded


def test_joint_data_cache_clips_trains_on_the_first_clips_only(index: str, vae: str) -> None:
    data = make(index, vae=vae, cache_clips=3, val_videos=0, videos_per_batch=3)
    data.prepare_data()
    assert FakeVAE.clips == 6 and data.counts() == {"train_videos": 3, "train_images": 3}
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch.labels[:3].tolist()) == [0, 1, 2]


# Buckets and the quarantine


def test_joint_data_stream_replaces_the_training_split(index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, ending in (("video", "mp4"), ("image", "png")):
        with tarfile.open(tmp_path / f"{kind}.tar", "w") as tar:
            for number in range(3):
                tar.add(Path(index).parent / f"val-{number}.{ending}", f"{number}.{ending}")
    shards = {kind: str(tmp_path / f"{kind}.tar") for kind in ("video", "image")}
    data = make(index, shards=shards)
    data.setup("fit")
    assert "train: videos streamed from" in capsys.readouterr().out
    batch = next(iter(data.train_dataloader()))
    assert batch.videos.shape == (4, 3, 5, 16, 16) and batch.images.shape == (4, 3, 1, 16, 16) and batch.weight.all()
    assert {Path(path).parent.name for path in batch.paths} == {"video.tar", "image.tar"}
    assert data.counts() == {"val_videos": 4, "val_images": 4}
    data.teardown("fit")


@pytest.mark.parametrize("shards", [{"video": "a.tar"}, {}, {"video": "a.tar", "image": "b.tar", "sound": "c.tar"}])
def test_joint_data_refuses_shards_of_other_kinds_than_the_batch(shards: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"data\.shards names the shards of each kind that the batch has"):
        make("index.parquet", shards=shards)


# The Trainer


class Recorder(L.LightningModule):
    """Learns nothing; writes down what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[list[str], float]] = []
        self.validated = 0

    def training_step(self, batch: JointBatch, batch_idx: int) -> Tensor:
        self.seen.append(([Path(path).name for path in batch.paths], float(batch.videos.double().sum())))
        return self.weight * 0

    def validation_step(self, batch: JointBatch, batch_idx: int) -> None:
        self.validated += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: JointData, steps: int, folder: Path, resume: Path | None = None, **settings: Any) -> Recorder:
    module = Recorder()
    checkpoint = L.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(module, data, ckpt_path=resume)
    return module


@pytest.mark.filterwarnings("ignore:.*of weight 0 so far")
@pytest.mark.parametrize("workers", [0, 2])
def test_joint_data_resumes_anywhere_with_the_samples_of_an_uninterrupted_run(index: str, workers: int, tmp_path: Path) -> None:
    # Epochs have 3 steps: step 4 lies in the middle of the second, step 6 at its end.
    settings: dict[str, Any] = {"size": 16, "sizes": (32,), "crop": 16, "seed": 2}
    whole = fit(make(index, **settings), 8, tmp_path / "whole")
    assert len(whole.seen) == 8 and whole.validated > 0
    for stop in (4, 6) if workers == 0 else (4,):
        resumed = fit(make(index, num_workers=workers, **settings), 8, tmp_path, tmp_path / "whole" / f"step={stop}.ckpt")
        assert resumed.seen == whole.seen[stop:]


@pytest.mark.filterwarnings("ignore:.*of weight 0 so far")
def test_joint_data_validation_and_short_epochs_do_not_change_the_order(index: str, tmp_path: Path) -> None:
    whole = fit(make(index), 6, tmp_path / "whole")
    often = fit(make(index), 6, tmp_path / "often", val_check_interval=1)
    short = fit(make(index, num_workers=2), 6, tmp_path / "short", limit_train_batches=2)
    assert not multiprocessing.active_children()
    resumed = fit(make(index), 6, tmp_path / "on", tmp_path / "short" / "step=3.ckpt", limit_train_batches=2)
    assert often.seen == short.seen == whole.seen
    assert often.validated > whole.validated
    assert resumed.seen == whole.seen[3:]


def ranked(data: JointData, rank: int, ranks: int) -> JointData:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)  # type: ignore[assignment]  # all it asks for
    return data


@pytest.mark.filterwarnings("ignore:.*of weight 0 so far")
def test_joint_data_two_ranks_share_the_batch_and_one_resumes(index: str) -> None:
    one = make(index).train_dataloader()
    whole = [batch for _ in range(2) for batch in one]
    pair = [ranked(make(index), rank, 2).train_dataloader() for rank in range(2)]
    for number, (left, right) in enumerate(zip(*pair, strict=True)):
        assert torch.equal(torch.cat([left.videos, right.videos]), whole[number].videos)
        assert torch.equal(torch.cat([left.images, right.images]), whole[number].images)
        assert torch.equal(torch.cat([left.global_batch_index, right.global_batch_index]).sort().values, whole[number].global_batch_index)
    alone = make(index).train_dataloader()
    alone.load_state_dict(pair[0].state_dict())
    assert next(iter(alone)).paths == whole[3].paths


def test_joint_data_refuses_ranks_that_do_not_divide_the_batch(index: str) -> None:
    with pytest.raises(ValueError, match=r"data\.videos_per_batch .* multiple of the 3 ranks, got 4: set it to 3 or 6, or take another"):
        ranked(make(index), 0, 3).setup("fit")
    with pytest.raises(ValueError, match=r"data\.image_stacks_per_batch .* 4 ranks, got 2: set it to 4, or take"):
        ranked(make(index), 0, 4).setup("fit")


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"videos_per_batch": 0, "image_stacks_per_batch": 0}, "a batch would be empty"),
        ({"vae": "runs/x/vae", "crop": 8}, "leave out one"),
        ({"cache_clips": 5}, "needs data.vae"),
        ({"num_workers": -1}, "data.num_workers must be at least 0, got -1"),
        ({"images_per_stack": 0}, "data.images_per_stack must be at least 1"),
    ],
)
def test_joint_data_refuses_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("index.parquet", **settings)


def no_images(row: dict[str, object]) -> bool:
    return row["kind"] == "video"


def no_validation(row: dict[str, object]) -> bool:
    return row["split"] == "train"


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (no_images, "has no images, but the batch wants 4; .* or add images to the source and type the index command again"),
        (no_validation, 'nothing in split "val"'),
    ],
)
def test_joint_data_names_missing_videos_or_images(keep: Callable[[dict[str, object]], bool], message: str, tmp_path: Path) -> None:
    fixed: dict[str, object] = {
        "frames": 1,
        "fps": 0.0,
        "width": 8,
        "height": 8,
        "bytes": 1,
        "caption": "",
        "label": -1,
    }
    rows = [{**fixed, "path": f"{split}.{kind}", "kind": kind, "split": split} for split in COUNTS for kind in ("video", "image")]
    write_index([row for row in rows if keep(row)], tmp_path / "index.parquet")
    data = make(str(tmp_path / "index.parquet"))
    with pytest.raises(ValueError, match=message):
        data.setup("fit")
