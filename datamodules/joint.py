"""Joint batches of videos and unrelated images for every stage: as pixels, or as latents of a trained autoencoder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Dataset

from walt_pl import artifact
from walt_pl.blocks.compute import compute_dtype
from walt_pl.data.batch import Kind, Sample
from walt_pl.data.cache import Encode, LatentCache, LatentDataset, encode_batch_size
from walt_pl.data.index import Entry, Index
from walt_pl.data.sampler import JointLoader, JointSampler, SequentialSampler
from walt_pl.data.transforms import Framing, PixelDataset

TRAIN, VALIDATION = "train", "val"


class JointData(L.LightningDataModule):
    """Videos and images in one batch, at a fixed ratio (the trainer needs `use_distributed_sampler: false`).

    Numbers per batch count the global batch, over all ranks. Order, views and crops follow from the seed, the pass and
    the item, so they are the same whatever the number of ranks, workers or restarts.

    Args:
        index: Parquet file that lists the clips and images.
        size: Rows in pixels: clips are resized until they cover the picture, and what is over is cropped.
        frames: Frames of a video; with an autoencoder of temporal factor f, 1 + a multiple of f.
        videos_per_batch: Videos of the global batch; 0 trains on images alone.
        image_stacks_per_batch: Stacks of unrelated images in the global batch; 0 trains on videos alone.
        images_per_stack: Images of a stack; as many as a video has latent frames, so that stacks and videos cost alike.
        aspect: Columns to a row; 1.75 makes 128 x 224 of size 128. It holds for all sizes.
        low_size: Rows of the low-resolution twins in pixels (super-resolution).
        crop: Side of a random window in pixels, taken after resizing (autoencoder).
        sizes: More sizes beside `size`; with `crop`, every sample draws one of all of them; one named twice comes twice as often.
        vae: Folder of a trained autoencoder: the batches hold its latents, which are computed once and cached.
        views: Fixed views (start frame and crop) of each clip, gone round pass by pass; 1 is frame 0 and the centre.
        cache_dir: Folder of the latents; empty puts them beside the autoencoder's folder. All machines must see it.
        cache_clips: Train on the first so many videos and images only, to save time and disk; 0 takes all.
        val_videos: Validate on so many videos (and images) of the split "val"; 0 does not validate.
        workers: Processes that read ahead, per rank; 0 reads in the training process.
        seed: Seeds order and crops.

    Raises:
        ValueError: If parameters do not fit together.
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
        low_size: int | None = None,
        crop: int | None = None,
        sizes: tuple[int, ...] = (),
        vae: str | None = None,
        views: int = 1,
        cache_dir: str = "",
        cache_clips: int = 0,
        val_videos: int = 64,
        workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        at_least_zero = {
            "videos_per_batch": videos_per_batch,
            "image_stacks_per_batch": image_stacks_per_batch,
            "cache_clips": cache_clips,
            "val_videos": val_videos,
            "workers": workers,
            "seed": seed,
        }
        for name, value in at_least_zero.items():
            if value < 0:
                raise ValueError(f"data.{name} must be at least 0, got {value}")
        if images_per_stack < 1:
            raise ValueError(f"data.images_per_stack must be at least 1, got {images_per_stack}")
        if not videos_per_batch + image_stacks_per_batch:
            raise ValueError("data.videos_per_batch and data.image_stacks_per_batch are both 0: a batch would be empty")
        if vae is not None and crop is not None:
            raise ValueError("data.vae caches whole pictures and data.crop draws windows: leave out one of them")
        if vae is None and cache_clips:
            raise ValueError("data.cache_clips limits the cache of latents and needs data.vae")
        self.framing = Framing(size, frames, low_size, views, tuple(sizes), crop, seed, aspect)
        self.index = index
        self.vae = vae
        self.videos_per_batch = videos_per_batch
        self.images_per_batch = image_stacks_per_batch * images_per_stack
        self.image_stacks_per_batch = image_stacks_per_batch
        self.images_per_stack = images_per_stack
        self.cache_dir = Path(cache_dir) if cache_dir or vae is None else Path(vae).absolute().parent / "cache"
        self.cache_clips = cache_clips
        self.val_videos = val_videos
        self.workers = workers
        self.seed = seed
        # Rank zero builds the cache for all machines.
        self.prepare_data_per_node = False
        self._indices: dict[str, Index] = {}
        self._loaders: list[JointLoader] = []

    # What there is

    @property
    def index_sha256(self) -> str:
        """Hash of the index file, for the card of the artifact."""
        return self._index(TRAIN).sha256

    def counts(self) -> dict[str, int]:
        """Gives how many videos and images are trained and validated on, for the card of the artifact."""
        splits = [TRAIN, VALIDATION] if self.val_videos else [TRAIN]
        entries = {split: self._entries(split) for split in splits}
        return {f"{split}_{kind}s": len(listed) for split in splits for kind, listed in entries[split].items()}

    def captions(self, validation: bool = False) -> Iterator[str]:
        """Gives the captions that are trained on, for the vocabulary of a text encoder of our own; and those validated on, if wanted."""
        for split in [TRAIN, VALIDATION] if validation and self.val_videos else [TRAIN]:
            for listed in self._entries(split).values():
                yield from (entry.caption for entry in listed)

    def _index(self, split: str) -> Index:
        if split not in self._indices:
            self._indices[split] = Index(self.index, split)
        return self._indices[split]

    def _entries(self, split: str) -> dict[Kind, Sequence[Entry]]:
        """Gives the clips and images of a split that are used."""
        index = self._index(split)
        limit = self._limit(split)
        wanted: dict[Kind, tuple[Sequence[Entry], int]] = {
            "video": (index.videos, self.videos_per_batch),
            "image": (index.images, self.images_per_batch),
        }
        used: dict[Kind, Sequence[Entry]] = {}
        for kind, (entries, per_batch) in wanted.items():
            if split == TRAIN and per_batch and not len(entries):
                raise ValueError(
                    f'{self.index}: split "{split}" has no {kind}s, but the batch wants {per_batch}; set '
                    f"data.{'videos_per_batch' if kind == 'video' else 'image_stacks_per_batch'} to 0 or index some"
                )
            used[kind] = entries[: limit or len(entries)] if per_batch else []
        return used

    def _limit(self, split: str) -> int:
        return self.val_videos if split == VALIDATION else self.cache_clips

    # Latents

    def prepare_data(self) -> None:
        """Computes the latents that are missing, on rank zero; without `vae` there is nothing to do."""
        if self.vae is None:
            return
        for split in [TRAIN, VALIDATION] if self.val_videos else [TRAIN]:
            entries = self._entries(split)
            for size in self._sizes():
                framing = self._whole_framing(split, size)
                dataset = PixelDataset(entries["video"], entries["image"], framing)
                for kind, cache in self._caches(split, size).items():
                    batch_size = encode_batch_size(framing, kind)
                    cache.build(dataset, kind, self._encoder, batch_size, readers=max(1, self.workers))

    def _sizes(self) -> list[int]:
        low = self.framing.low_size
        return [self.framing.size] if low is None else [low, self.framing.size]

    def _whole_framing(self, split: str, size: int) -> Framing:
        return Framing(size, self.framing.frames, views=1 if split == VALIDATION else self.framing.views, aspect=self.framing.aspect)

    def _caches(self, split: str, size: int) -> dict[Kind, LatentCache]:
        """Gives the cache of each kind that is used; stages that look at the same pictures share them."""
        assert self.vae is not None
        framing = self._whole_framing(split, size)
        limit = self._limit(split) or "all"
        rows, columns = framing.shape(size)
        folder = self.cache_dir / f"{split}-{rows}x{columns}-{framing.frames}f-{framing.views}v-{limit}"
        key = {
            "vae": artifact.read_card(self.vae)["sha256"],
            "index": self._index(split).sha256,
            "split": split,
            "transform": "bicubic antialias until it covers the picture, centre or view",
            "size": [rows, columns],
            "computed_in": str(compute_dtype(self._device())),
        }
        frames: dict[Kind, int] = {"video": framing.frames, "image": 1}
        return {
            kind: LatentCache(folder / f"{kind}s", {**key, "frames": frames[kind]}, len(entries), framing.views)
            for kind, entries in self._entries(split).items()
            if len(entries)
        }

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _encoder(self) -> Encode:
        assert self.vae is not None
        device = self._device()
        dtype = compute_dtype(device)
        vae = artifact.load(self.vae, device=device).models["vae"]

        @torch.no_grad()
        def encode(pixels: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                mean: Tensor = vae.encode(pixels.to(device)).mean  # type: ignore[operator]  # nn.Module attributes are untyped
            return mean

        return encode

    # Loaders

    def setup(self, stage: str) -> None:
        """Checks that the data is there and that the ranks divide the batch.

        Raises:
            ValueError: If not.
        """
        self.counts()
        _, ranks = self._ranks()
        for name in ("videos_per_batch", "image_stacks_per_batch"):
            if getattr(self, name) % ranks:
                raise ValueError(
                    f"data.{name} counts the global batch and must be a multiple of the {ranks} ranks, got {getattr(self, name)}"
                )

    def train_dataloader(self) -> JointLoader:
        """Gives this rank's endless, resumable stream of batches."""
        rank, ranks = self._ranks()
        entries = self._entries(TRAIN)
        sampler = JointSampler(
            len(entries["video"]),
            len(entries["image"]),
            self.videos_per_batch,
            self.images_per_batch,
            rank,
            ranks,
            self.seed,
        )
        return self._loader(TRAIN, sampler)

    def val_dataloader(self) -> JointLoader | list[JointLoader]:
        """Gives this rank's validation batches: the first clips and images of the split, in order, in view 0.

        Counts are rounded down to whole stacks on every rank, so that the ranks stay in step.

        Raises:
            ValueError: If there are fewer clips and images than ranks.
        """
        if not self.val_videos:
            return []
        rank, ranks = self._ranks()
        entries = self._entries(VALIDATION)
        videos = len(entries["video"]) // ranks * ranks
        images = len(entries["image"]) // (ranks * self.images_per_stack) * ranks * self.images_per_stack
        if not videos + images:
            raise ValueError(
                f'{self.index}: split "{VALIDATION}" has {len(entries["video"])} usable videos and '
                f"{len(entries['image'])} usable images, too few for {ranks} ranks and stacks of "
                f"{self.images_per_stack} images; set data.val_videos to 0 or index more"
            )
        sampler = SequentialSampler(videos, images, self.videos_per_batch, self.images_per_batch, rank, ranks)
        return self._loader(VALIDATION, sampler)

    def teardown(self, stage: str) -> None:
        """Ends the workers of every loader."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def _loader(self, split: str, sampler: JointSampler | SequentialSampler) -> JointLoader:
        loader = JointLoader(self._dataset(split), sampler, self.workers)
        self._loaders.append(loader)
        return loader

    def _dataset(self, split: str) -> Dataset[Sample]:
        entries = self._entries(split)
        if self.vae is None:
            return PixelDataset(entries["video"], entries["image"], self.framing)
        caches = {size: self._caches(split, size) for size in self._sizes()}
        for cache in [cache for of_size in caches.values() for cache in of_size.values()]:
            cache.open()
        low = None if self.framing.low_size is None else caches[self.framing.low_size]
        return LatentDataset(entries["video"], entries["image"], caches[self.framing.size], low)

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
