"""Joint batches of videos and unrelated images for every stage: as pixels, or as latents of a trained autoencoder."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from datamodules.argument_checks import check_counts, check_kinds, check_seconds, check_shard_kinds
from datamodules.vae_encoder import load_encoder
from walt_pl.blocks.compute import compute_dtype
from walt_pl.data.batch import BucketedSource, Kind, SampleSource
from walt_pl.data.cache import Encode, LatentCache, encode_batch_size
from walt_pl.data.cache_layout import bucket_caches, bucket_sizes, cache_key, cache_name, whole_transform
from walt_pl.data.class_labels import describe_labels
from walt_pl.data.frame_rate import trained_rate
from walt_pl.data.index import Index, IndexEntries, class_names
from walt_pl.data.latent_dataset import LatentDataset
from walt_pl.data.loader import BatchLoader, JointLoader
from walt_pl.data.measured_clips import MeasuredClips, choose_blocks
from walt_pl.data.quarantine import Quarantine
from walt_pl.data.sampler import BucketItems, JointSampler, SequentialSampler, take_whole_units
from walt_pl.data.selection import Bucket, Selection, check_buckets, describe_selection, find_problem, select
from walt_pl.data.transforms import ClipTransform, PixelDataset
from walt_pl.data.webdataset_loader import ShardStream, StreamConfig, StreamLoader
from walt_pl.media.decode_options import WHITE, DecodeOptions
from walt_pl.media.max_pixels import MAX_PIXELS
from walt_pl.runs import card

TRAIN, VALIDATION = "train", "val"


class JointData(L.LightningDataModule):
    """Videos and images in one batch, at a fixed ratio (the trainer needs `use_distributed_sampler: false`).

    Numbers per batch count the global batch, over all ranks. Order, views and crops follow from the seed, the epoch and the item. So
    they do not depend on the number of ranks, workers or restarts.

    Files on the quarantine list beside the index are not read. The list may change between two starts of a run, see JointSampler.

    Args:
        index: Parquet file that lists the clips and images.
        size: Rows in pixels: clips are resized until they cover the picture, and then cropped to it.
        frames: Frames of a video; with an autoencoder of temporal factor f, 1 + a multiple of f.
        videos_per_batch: Videos of the global batch; 0 trains on images alone.
        image_stacks_per_batch: Stacks of unrelated images in the global batch; 0 trains on videos alone.
        images_per_stack: Images of a stack; as many as a video has latent frames, so that a stack costs as much as a video.
        aspect: Columns per row; 1.75 makes 128 x 224 of size 128. It holds for all sizes.
        buckets: Sizes [rows, columns] in pixels in place of `size` x `aspect`. Every batch has one of them. Every clip and image goes into
            the one that crops it least without enlarging it. Low-resolution copies are smaller by low_res_size / size.
        low_res_size: Rows of the low-resolution copies in pixels (super-resolution).
        fps: Frames read per second of every video, whatever its own rate; null reads the file's frames.
        stride: Distance between frames that are read, in frames of the file; only without fps.
        flip: Whether half of the views and windows are mirrored, left to right (not where captions say left or right).
        crop: Side of a random window in pixels, cropped after resizing (autoencoder). Every epoch draws a new start frame and position.
        sizes: More sizes beside `size`: with `crop`, every sample draws one of all sizes. A size that is named twice comes twice as often.
        vae: Folder of a trained autoencoder: the batches hold its latents, which are computed once and cached.
        views: Fixed views (start frame and crop) of each clip. An epoch reads one of them: view = epoch mod views. View 0 is frame 0 and
            the centre. Latents are cached for each view: disk in bytes is clips x views x (values of a latent x 2 + 4).
        cache_dir: Folder of the latents; empty puts them beside the autoencoder's folder. All machines must see it.
        cache_clips: Train only on this number of videos and images, the first ones, to save time and disk; 0 uses all.
        val_videos: Number of videos (and of images) of the split "val" to validate on; 0 does not validate.
        num_workers: Processes that read ahead, per rank. With 0 the training process reads, and a decoder that crashes ends it.
        timeout: Seconds that a worker may spend on one file before it is ended and another one tries. The second time the file fails.
        worker_patience: Seconds without a sign of life after which a worker that reads no file is replaced, such as a stopped process.
            Within a file data.timeout counts alone, because a decoder may keep Python from giving signs.
        seed: Seed of order, crops, and the draw among several captions of a clip.
        max_pixels: Largest rows x columns of an image, or of a frame of a video, that is decoded. Larger ones are left out.
        background: Red, green and blue, 0..255, that show through where a picture is transparent.
        deinterlace: Whether interlaced frames are turned into progressive ones (yadif). Frames that are progressive stay as they are.
        num_classes: Classes of a class-conditional model: a clip is left out if its label is not 0 to num_classes - 1. Set by the program.
        shards: Streams the training set from tar shards in webdataset's notation, '{video: "clips-{000..999}.tar", image: ...}', in
            place of the index, see walt_pl/data/webdataset_loader.py. Validation, and captions for a vocabulary, still use the index.
        allow_schemes: Schemes that names in data.shards may have beside plain files: pipe (runs the command), https, gs, hf and others of
            webdataset. Taken from the command line and from your own configuration, never from one stored with a run or an artifact.

    Raises:
        ValueError: Parameters do not fit together.
    """

    def __init__(
        self,
        index: str,
        size: int,
        frames: int = 17,
        videos_per_batch: int = 8,
        image_stacks_per_batch: int = 0,
        images_per_stack: int = 5,
        aspect: float = 1.0,
        buckets: tuple[tuple[int, int], ...] = (),
        low_res_size: int | None = None,
        fps: float | None = None,
        stride: int = 1,
        flip: bool = False,
        crop: int | None = None,
        sizes: tuple[int, ...] = (),
        vae: str | None = None,
        views: int = 1,
        cache_dir: str = "",
        cache_clips: int = 0,
        val_videos: int = 64,
        num_workers: int = 1,
        timeout: float = 60.0,
        worker_patience: float = 60.0,
        seed: int = 0,
        max_pixels: int = MAX_PIXELS,
        background: tuple[int, int, int] = WHITE,
        deinterlace: bool = False,
        num_classes: int | None = None,
        shards: dict[Kind, str] | None = None,
        allow_schemes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        check_counts(videos_per_batch=videos_per_batch, image_stacks_per_batch=image_stacks_per_batch, cache_clips=cache_clips)
        check_counts(val_videos=val_videos, num_workers=num_workers, seed=seed, num_classes=num_classes or 0)
        check_seconds(timeout=timeout, worker_patience=worker_patience)
        if images_per_stack < 1:
            raise ValueError(f"data.images_per_stack must be at least 1, got {images_per_stack}")
        if not videos_per_batch + image_stacks_per_batch:
            raise ValueError("data.videos_per_batch and data.image_stacks_per_batch are both 0: a batch would be empty")
        if vae is not None and crop is not None:
            raise ValueError("data.vae caches whole pictures and data.crop draws windows: leave out one of them")
        if vae is None and cache_clips:
            raise ValueError("data.cache_clips limits the cache of latents and needs data.vae")
        settings = size, frames, low_res_size, views, tuple(sizes), crop, seed, aspect, fps, stride, flip
        self.clip_transform = ClipTransform(*settings, decoding=DecodeOptions(max_pixels, background, deinterlace))
        self.buckets = [Bucket(*bucket) for bucket in buckets] or [Bucket(*self.clip_transform.shape(size))]
        if buckets:
            check_buckets(self.buckets, self.clip_transform)
        if shards is not None:
            check_shard_kinds(shards, videos_per_batch, image_stacks_per_batch, bool(buckets))
        self.shards = shards
        self._streams = {kind: ShardStream(kind, pattern, seed, allow_schemes) for kind, pattern in (shards or {}).items()}
        self.index = index
        self.num_classes = num_classes
        self.vae = vae
        self.videos_per_batch = videos_per_batch
        self.images_per_batch = image_stacks_per_batch * images_per_stack
        self.image_stacks_per_batch = image_stacks_per_batch
        self.images_per_stack = images_per_stack
        self.cache_dir = Path(cache_dir) if cache_dir or vae is None else Path(vae).absolute().parent / "cache"
        self.cache_clips = cache_clips
        self.val_videos = val_videos
        self.num_workers = num_workers
        self.timeout = timeout
        self.worker_patience = worker_patience
        self.seed = seed
        # Rank zero builds the cache for all machines.
        self.prepare_data_per_node = False
        self._indices: dict[str, Index] = {}
        self._choices: dict[str, dict[Kind, Selection]] = {}
        self._loaders: list[BatchLoader] = []

    # Selection

    @property
    def index_sha256(self) -> str:
        """Return the hash of the index file, for the card of the artifact."""
        return self._index(VALIDATION if self.shards else TRAIN).sha256

    def counts(self) -> dict[str, int]:
        """Return the numbers of videos and images for training and for validation, for the card of the artifact."""
        kinds: tuple[Kind, Kind] = ("video", "image")
        selections = {split: self.selection(split) for split in self._splits()}
        return {f"{split}_{kind}s": of[kind].used if kind in of else 0 for split, of in selections.items() for kind in kinds}

    def frame_rate(self) -> float | None:
        """Return the frames per second of the training videos; None for images alone, and where the rate is not known."""
        if not self.videos_per_batch or self.clip_transform.frames == 1:
            return None
        if self.shards is not None:  # the files in shards were not examined
            return self.clip_transform.fps
        return trained_rate(self._entries(TRAIN)["video"], self.selection(TRAIN)["video"].positions(), self.clip_transform)

    def captions(self, validation: bool = False) -> Iterator[str]:
        """Yield the training captions, all of each clip, for the vocabulary of a text encoder that is trained here.

        Args:
            validation: Whether the validation captions follow.
        """
        trained = [TRAIN] if self.shards is None or TRAIN in self._index(VALIDATION).splits else []
        for split in [*trained, VALIDATION] if validation and self.val_videos else trained:
            for kind, selection in self.selection(split).items():
                entries, positions = self._entries(split)[kind], selection.positions()
                captions, more = entries.column("caption"), entries.column("more_captions")
                for start in range(0, len(positions), 4096):
                    yield from captions.take(positions[start : start + 4096]).to_pylist()
                    if split == TRAIN:  # validation reads the first caption alone
                        yield from more.take(positions[start : start + 4096]).flatten().to_pylist()

    def classes(self) -> dict[int, str]:
        """Return the name of each class of the training data by its label, "" where it has none. Empty where labels are not known."""
        if self.shards is not None:  # labels in shards are read with the clips
            return {}
        labels = [self._entries(TRAIN)[kind].column("label")[used.positions()] for kind, used in self.selection(TRAIN).items()]
        names = dict(enumerate(class_names(Path(self.index))))
        return {number: names.get(number, "") for number in np.unique(np.concatenate(labels)).tolist() if number >= 0}

    def selection(self, split: str) -> dict[Kind, Selection]:
        """Return the selection of each kind that a batch has: the used clips and images of a split, and the reasons for the others.

        Raises:
            ValueError: The split lacks a kind, or nothing of it can be used. The message says the reasons.
        """
        self._entries(split)
        found = self.choice(split)
        # In validation, a batch may lack one of the kinds.
        if problem := find_problem(found, split, every_kind=split == TRAIN):
            lines = self.describe(split)
            ask = f"file by file: python -m walt_pl index {self.index} --report --config experiments/EXP/STAGE.yaml"
            raise ValueError("\n  ".join([f"{self.index}: {problem}:", *lines, ask]))
        return found

    def describe(self, split: str) -> list[str]:
        """Return the selection of a split in words, and for a class-conditional model its labels."""
        found = self.choice(split)
        lines = describe_selection(split, found, self.buckets, self.clip_transform)
        return [*lines, *describe_labels(self._listed(split), found, self.num_classes, class_names(Path(self.index)))]

    def choice(self, split: str) -> dict[Kind, Selection]:
        """Return the selection of each kind, also where nothing can be used, or the split lacks a kind that a batch has.

        Raises:
            ValueError: The index has nothing in this split.
        """
        if split not in self._choices:
            self._choices[split] = self._choose(split)
        return self._choices[split]

    def _choose(self, split: str) -> dict[Kind, Selection]:
        entries = self._listed(split)
        quarantined = {kind: self.quarantine.positions(listed) for kind, listed in entries.items()}
        if split == TRAIN:
            return select(entries, self.clip_transform, self.buckets, quarantined, self.cache_clips, self.num_classes)
        found: dict[Kind, Selection] = {}
        for kind, listed in entries.items():  # each kind by itself: batches of validation may lack one
            found |= select({kind: listed}, self.clip_transform, self.buckets, quarantined, self.val_videos, self.num_classes)
        return found

    @cached_property
    def quarantine(self) -> Quarantine:
        """Return the list of files that must not be read."""
        return Quarantine.beside(self.index)

    def _index(self, split: str) -> Index:
        if split not in self._indices:
            self._indices[split] = Index(self.index, split)
        return self._indices[split]

    def _splits(self) -> list[str]:
        trained = [TRAIN] if self.shards is None else []
        return [*trained, VALIDATION] if self.val_videos else trained

    def _entries(self, split: str) -> dict[Kind, IndexEntries]:
        """Return all clips and images of a split, of the kinds that a batch has.

        Raises:
            ValueError: The training split lacks a kind.
        """
        wanted = self._listed(split)
        if split == TRAIN:
            check_kinds(self.index, split, wanted, self.videos_per_batch, self.images_per_batch)
        return wanted

    def _listed(self, split: str) -> dict[Kind, IndexEntries]:
        index = self._index(split)
        listed: dict[Kind, tuple[IndexEntries, int]] = {
            "video": (index.videos, self.videos_per_batch),
            "image": (index.images, self.images_per_batch),
        }
        return {kind: entries for kind, (entries, per_batch) in listed.items() if per_batch}

    # Latents

    def prepare_data(self) -> None:
        """Compute the latents that are missing, on rank zero. Without `vae`, do nothing."""
        self.build_caches(verify=False)

    def build_caches(self, verify: bool) -> None:
        """Compute the latents that are missing or stale, and those that a quarantine left out and that are free again.

        Args:
            verify: Whether to compare the hash of every byte, too, and compute again what is damaged.
        """
        if self.vae is None:
            return
        self.counts()  # a split that cannot be used is an error before hours of encoding
        for split in self._splits():
            entries, skip = self._entries(split), self._load_skipped(split)
            for number in range(len(self.buckets)):
                for rows, columns in bucket_sizes(self.buckets[number], self.clip_transform):
                    clip_transform = self._whole_transform(split, rows, columns)
                    source = PixelDataset(entries.get("video", ()), entries.get("image", ()), clip_transform)
                    for kind, cache in self._caches(split, number, clip_transform).items():
                        batch_size, readers = encode_batch_size(clip_transform, kind), max(1, self.num_workers)
                        cache.build(source, kind, self._encoder, batch_size, readers, skip[kind], verify, self.timeout)

    def _load_skipped(self, split: str) -> dict[Kind, dict[int, str]]:
        """Return the positions of the quarantined entries in their lists, with the reasons."""
        skipped: dict[Kind, dict[int, str]] = {}
        for kind, entries in self._entries(split).items():
            positions = self.quarantine.positions(entries)
            reasons = map(self.quarantine.reason, entries.places(positions))
            skipped[kind] = {int(position): reason or "" for position, reason in zip(positions, reasons, strict=True)}
        return skipped

    def _whole_transform(self, split: str, rows: int, columns: int) -> ClipTransform:
        return whole_transform(self.clip_transform, rows, columns, views=1 if split == VALIDATION else self.clip_transform.views)

    def _caches(self, split: str, number: int, clip_transform: ClipTransform) -> dict[Kind, LatentCache]:
        """Return the cache of each kind that a bucket has."""
        assert self.vae is not None
        vae_sha256, index_sha256 = card.read_card(self.vae)["sha256"], self._index(split).sha256
        key = cache_key(clip_transform, split, vae_sha256, index_sha256, compute_dtype(self._device()))
        folder = self.cache_dir / cache_name(clip_transform, split, self._limit(split))
        return bucket_caches(folder, key, clip_transform, self.selection(split), number)

    def _limit(self, split: str) -> int:
        return self.val_videos if split == VALIDATION else self.cache_clips

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _encoder(self) -> Encode:
        assert self.vae is not None
        return load_encoder(self.vae, self._device())

    # Loaders

    def setup(self, stage: str) -> None:
        """Check that the data exists and that the ranks divide the batch, and print the selection.

        Raises:
            ValueError: The data is missing or unusable, or the ranks do not divide the batch.
        """
        for split in self._splits():
            self._entries(split)  # the error of missing data comes before that of unusable data
        self.counts()
        _, ranks = self._ranks()
        for name in ("videos_per_batch", "image_stacks_per_batch"):
            found = getattr(self, name)
            if found % ranks:
                below = found - found % ranks
                nearest = f"{below} or {below + ranks}" if below else f"{ranks}"
                raise ValueError(
                    f"data.{name} counts the global batch and must be a multiple of the {ranks} ranks, got {found}: set it to {nearest}, "
                    "or take another number of ranks (trainer.devices x trainer.num_nodes)"
                )
        if stage == "fit":
            self._print_selections()

    @rank_zero_only
    def _print_selections(self) -> None:
        """Print how many clips and images are used, and why the others are not."""
        for kind, pattern in (self.shards or {}).items():
            print(f"{TRAIN}: {kind}s streamed from {pattern}", flush=True)
        for split in self._splits():
            print("\n".join(self.describe(split)), flush=True)

    def train_dataloader(self) -> BatchLoader:
        """Return this rank's endless, resumable stream of batches."""
        rank, ranks = self._ranks()
        if self.shards is not None:
            per_batch: dict[Kind, int] = {"video": self.videos_per_batch, "image": self.images_per_batch}
            given = {kind: per_batch[kind] for kind in self._streams}
            reading = StreamConfig(self._streams, given, self.clip_transform, rank, ranks, self.num_workers, self.worker_patience)
            return self._remember(StreamLoader(replace(reading, num_classes=self.num_classes)))
        items = self._items(TRAIN)
        sampler = JointSampler(items["video"], items["image"], self.videos_per_batch, self.images_per_batch, rank, ranks, self.seed)
        return self._loader(TRAIN, sampler)

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Return this rank's validation batches: the first clips and images of the split, in order, in view 0 (frame 0, the centre).

        Counts are rounded down to whole stacks on every rank, in every bucket, so that the ranks stay in step.

        Raises:
            ValueError: There are fewer clips and images than ranks.
        """
        if not self.val_videos:
            return []
        rank, ranks = self._ranks()
        found, unit = self._items(VALIDATION), {"video": ranks, "image": ranks * self.images_per_stack}
        items = {kind: [take_whole_units(of_bucket, unit[kind]) for of_bucket in of_kind] for kind, of_kind in found.items()}
        if not sum(of_bucket.used for of_kind in items.values() for of_bucket in of_kind):
            counts = {kind: sum(of_bucket.used for of_bucket in of_kind) for kind, of_kind in found.items()}
            raise ValueError(
                f'{self.index}: split "{VALIDATION}" has {counts["video"]} usable videos and '
                f"{counts['image']} usable images, too few for {ranks} ranks and stacks of "
                f"{self.images_per_stack} images; set data.val_videos to 0 or index more"
            )
        sampler = SequentialSampler(items["video"], items["image"], self.videos_per_batch, self.images_per_batch, rank, ranks)
        return self._loader(VALIDATION, sampler)

    def measured_clips(self, samples: int) -> MeasuredClips:
        """Return the first validation clips, for the metrics of a training."""
        blocks = choose_blocks(self.selection(VALIDATION), len(self.buckets), samples, self.val_videos)
        sources = [self._source(VALIDATION, number) for number in range(len(self.buckets))]
        return MeasuredClips(blocks, self.clip_transform, self.buckets, sources, self.num_workers, self.timeout, self.worker_patience)

    def teardown(self, stage: str) -> None:
        """End the workers of every loader, and warn with the names of the files that could not be read."""
        failures = {path: reason for loader in self._loaders for path, reason in loader.failures.items()}
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()
        if failures:
            warnings.warn(
                "\n  ".join([f"{len(failures)} files could not be read and counted for nothing:", *failures.values()]), stacklevel=2
            )

    def _items(self, split: str) -> dict[Kind, list[BucketItems]]:
        """Return the items of each bucket, by kind."""
        selections, buckets = self.selection(split), range(len(self.buckets))
        kinds: tuple[Kind, Kind] = ("video", "image")
        return {kind: [selections[kind].items(b) if kind in selections else BucketItems(range(0)) for b in buckets] for kind in kinds}

    def _loader(self, split: str, sampler: JointSampler | SequentialSampler) -> BatchLoader:
        source = BucketedSource([self._source(split, number) for number in range(len(self.buckets))])
        return self._remember(JointLoader(source, sampler, self.num_workers, self.timeout, self.worker_patience))

    def _remember(self, loader: BatchLoader) -> BatchLoader:
        self._loaders.append(loader)
        return loader

    def _source(self, split: str, number: int) -> SampleSource:
        """Return the source that reads the clips and images of a bucket."""
        entries, sizes = self._entries(split), bucket_sizes(self.buckets[number], self.clip_transform)
        videos, images = entries.get("video", ()), entries.get("image", ())
        caption_seed = None if split == VALIDATION else self.seed
        if self.vae is None:
            rows, columns = self.buckets[number]
            low_res = None if self.clip_transform.low_res_size is None else sizes[0][0]
            clip_transform = replace(
                self.clip_transform, size=rows, aspect=columns / rows, low_res_size=low_res, first_view=split == VALIDATION
            )
            return PixelDataset(videos, images, clip_transform, caption_seed)
        caches = [self._caches(split, number, self._whole_transform(split, *size)) for size in sizes]
        for cache in [cache for of_size in caches for cache in of_size.values()]:
            cache.open()
        low_res_caches = None if self.clip_transform.low_res_size is None else caches[0]
        return LatentDataset(videos, images, caches[-1], low_res_caches, caption_seed)

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
