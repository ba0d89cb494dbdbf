"""Refuse spans that name no frames."""

from __future__ import annotations

import pytest

from walt_pl.media.spans import FrameRange


def test_frame_range_refuses_wrong_values() -> None:
    for wrong in ({"frames": 0}, {"frames": 1, "stride": 0}, {"frames": 1, "fps": 0.0}, {"frames": 1, "start": -1}):
        with pytest.raises(ValueError, match="a span wants"):
            FrameRange(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"starts at a whole frame, got 1\.5"):
        FrameRange(3, start=1.5)
    with pytest.raises(ValueError, match="a stride or a rate"):
        FrameRange(3, fps=4, stride=2)
