"""Options of reading, for videos and images alike."""

from dataclasses import dataclass

from walt_pl.media.max_pixels import MAX_PIXELS

WHITE = (255, 255, 255)
"""Background where no other is asked for."""


@dataclass(frozen=True)
class DecodeOptions:
    """Options with which clips and images are read. They are keys of the data module: `data.max_pixels` and so on."""

    max_pixels: int = MAX_PIXELS
    """Largest rows x columns of an image, or of a frame of a video."""
    background: tuple[int, int, int] = WHITE
    """Red, green and blue, 0..255, that show through where a picture is transparent."""
    deinterlace: bool = False
    """True if interlaced frames are turned into progressive ones."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "background", tuple(self.background))  # a stored configuration has a list
        if self.max_pixels < 1:
            raise ValueError(f"data.max_pixels must be at least 1, got {self.max_pixels}")
        if len(self.background) != 3 or not all(0 <= level <= 255 for level in self.background):
            raise ValueError(f"data.background is red, green and blue from 0 to 255, such as [255, 255, 255], got {list(self.background)}")
