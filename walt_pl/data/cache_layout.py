"""Layout of the latent caches: the sizes, the key and the folder of each bucket's caches."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from walt_pl.data.batch import Kind
from walt_pl.data.cache import LatentCache
from walt_pl.data.selection import Bucket, Selection
from walt_pl.data.transforms import ClipTransform
from walt_pl.media.decode_options import DecodeOptions

_READING = 3
"""Version of reading: raised when a file gives other pixels than before, so that its latents are computed again."""


def bucket_sizes(bucket: Bucket, clip_transform: ClipTransform) -> list[tuple[int, int]]:
    """Return rows and columns of each resolution at which the pictures of a bucket are read, the smallest first."""
    rows, columns = bucket
    if clip_transform.low_res_size is None:
        return [(rows, columns)]
    low_res = (rows * clip_transform.low_res_size // clip_transform.size, columns * clip_transform.low_res_size // clip_transform.size)
    return [low_res, (rows, columns)]


def whole_transform(clip_transform: ClipTransform, rows: int, columns: int, views: int) -> ClipTransform:
    """Return the clip transform of whole pictures of one resolution, with `views` views."""
    # View 0 is never mirrored, so one view needs no flip.
    return replace(clip_transform, size=rows, aspect=columns / rows, low_res_size=None, views=views, flip=clip_transform.flip and views > 1)


def cache_name(clip_transform: ClipTransform, split: str, limit: int) -> str:
    """Return the folder name of a split's caches. `limit` 0 stands for all clips."""
    rows, columns = clip_transform.shape(clip_transform.size)
    rate = f"-{clip_transform.fps:g}fps" if clip_transform.fps else f"-every{clip_transform.stride}" if clip_transform.stride > 1 else ""
    return f"{split}-{rows}x{columns}-{clip_transform.frames}f{rate}-{clip_transform.views}v-{limit or 'all'}"


def cache_key(clip_transform: ClipTransform, split: str, vae_sha256: str, index_sha256: str, dtype: torch.dtype) -> dict[str, object]:
    """Return everything that the latents of a split depend on, as plain values.

    Args:
        clip_transform: A clip transform of whole pictures.
        split: Part of the data set.
        vae_sha256: Hash of the autoencoder's weights.
        index_sha256: Hash of the index file.
        dtype: Type in which the autoencoder computes.
    """
    return {
        "vae": vae_sha256,
        "index": index_sha256,
        "split": split,
        "transform": "bicubic antialias until it covers the picture, centre or view",
        "reading": _READING,
        "size": list(clip_transform.shape(clip_transform.size)),
        "computed_in": str(dtype),
        **{
            name: getattr(clip_transform, name)
            for name in ("fps", "stride", "flip")
            if getattr(clip_transform, name) != getattr(ClipTransform, name)
        },
        **{
            name: getattr(clip_transform.decoding, name)
            for name in ("background", "deinterlace")
            if getattr(clip_transform.decoding, name) != getattr(DecodeOptions, name)
        },
    }


def bucket_caches(
    folder: Path, key: Mapping[str, object], clip_transform: ClipTransform, selections: Mapping[Kind, Selection], number: int
) -> dict[Kind, LatentCache]:
    """Return the cache of each kind that a bucket has. Stages that read equal pictures share caches.

    Args:
        folder: Folder of the split's caches.
        key: Everything that the latents depend on, except the frames.
        clip_transform: A clip transform of whole pictures.
        selections: Selection of clips and of images of the split.
        number: Number of the bucket.
    """
    frames: dict[Kind, int] = {"video": clip_transform.frames, "image": 1}
    caches: dict[Kind, LatentCache] = {}
    for kind, selection in selections.items():
        places = np.flatnonzero(selection.bucket == number)
        if not len(places):
            continue
        # A stage without classes may read equal pictures of all clips: it must not find the folder with the first ones alone.
        items = None if places[-1] == len(places) - 1 and not selection.of_classes else places
        of_bucket = folder if items is None else folder.with_name(f"{folder.name}-{_short_hash(items)}")
        caches[kind] = LatentCache(of_bucket / f"{kind}s", {**key, "frames": frames[kind]}, len(places), clip_transform.views, items)
    return caches


def _short_hash(items: NDArray[np.int64]) -> str:
    return hashlib.sha256(np.ascontiguousarray(items).data).hexdigest()[:8]
