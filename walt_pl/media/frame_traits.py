"""Traits of a file that its frames and its codec tell while it is probed: interlaced, HDR, and a pixel aspect that changes."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from walt_pl.media.pixel_aspect import pixel_aspect

_PQ, _HLG = 16, 18
"""Colour transfers smpte2084 and arib-std-b67 (ITU-T H.273, table 3)."""
_WITH_ASPECT = ("mov", "matroska", "avi", "asf")
"""Containers with a pixel aspect of their own. It holds for the whole file, whatever the codec says."""


@dataclass
class FrameTraits:
    """Traits of the frames of a file. Call `note` with each frame, right after it was decoded."""

    container: Any
    """PyAV's container."""
    stream: Any
    """Its video stream."""
    frames: int = 0
    """Frames noted."""
    woven: int = 0
    """Frames among them that are marked as interlaced."""
    hdr: bool = False
    """True if a frame, or the container, has the colour transfer PQ or HLG."""

    def __post_init__(self) -> None:
        self._note_transfer()

    @property
    def interlaced(self) -> bool:
        """Return whether most frames are interlaced."""
        return 2 * self.woven > self.frames

    def note(self, frame: Any) -> str:
        """Note a frame, and return the reason why the file cannot be used from it on, or ""."""
        self.frames += 1
        self.woven += bool(frame.interlaced_frame)
        self._note_transfer()
        return self._aspect_change()

    def _note_transfer(self) -> None:
        # Some decoders replace what the container says, and some know only what it says.
        self.hdr = self.hdr or self.stream.codec_context.color_trc in (_PQ, _HLG)

    def _aspect_change(self) -> str:
        if any(name in self.container.format.name for name in _WITH_ASPECT):
            return ""
        begun, now = pixel_aspect(self.stream), pixel_aspect(self.stream.codec_context)
        # The decoder runs a few frames ahead of display.
        return "" if begun == now else f"the pixel aspect changes from {_ratio(begun)} to {_ratio(now)} near frame {self.frames}"


def _ratio(aspect: Fraction) -> str:
    return f"{aspect.numerator}:{aspect.denominator}"
