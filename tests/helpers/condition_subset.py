"""A part of a condition, for tests that compare a batch with its parts."""

from dataclasses import fields, replace

from torch import Tensor

from walt_pl.blocks.frames import FrameLayout
from walt_pl.diffusion.condition import OVER_FRAMES, Condition


def select(condition: Condition, rows: Tensor) -> Condition:
    """Return the condition of the samples where `rows` [s] is true."""
    layout = condition.layout
    frames, videos = layout.per_frame(rows), int(rows[: layout.videos].sum())
    picked = {}
    for item in fields(condition):
        value = getattr(condition, item.name)
        if isinstance(value, Tensor):
            picked[item.name] = value[frames if item.name in OVER_FRAMES else rows]
    return replace(condition, layout=FrameLayout(videos, layout.frames, int(rows.sum()) - videos), **picked)
