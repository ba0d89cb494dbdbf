"""Draw one of the captions of a clip for each epoch of training."""

import numpy as np

from walt_pl.data.batch import Kind, SampleRef
from walt_pl.data.index import IndexEntry

_KIND_NUMBER: dict[Kind, int] = {"video": 0, "image": 1}
_STREAM = 0xCA9710
"""Last number of the key. Views and crops have shorter keys, so their draws are independent of this one."""


def draw_caption(entry: IndexEntry, draw: SampleRef, seed: int | None) -> str:
    """Return one of the captions of a clip or image. Each is as likely as the others.

    The draw depends on (seed, epoch, item, kind) alone: no number of workers, ranks or restarts changes it.

    Args:
        entry: The clip or image.
        draw: Its reference, with the item and the epoch.
        seed: Seed of the training; None returns the first caption (validation).
    """
    if seed is None or not entry.more_captions:
        return entry.caption
    captions = (entry.caption, *entry.more_captions)
    rng = np.random.default_rng([seed, draw.epoch, draw.item, _KIND_NUMBER[draw.kind], _STREAM])
    return captions[int(rng.integers(len(captions)))]
