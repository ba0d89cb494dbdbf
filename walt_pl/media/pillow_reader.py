"""Read images with Pillow."""

import numpy as np
from PIL import Image, ImageOps

from walt_pl.media.media_file import Media
from walt_pl.media.types import Frames, MediaError


def read_pillow(media: Media) -> Frames:
    """Return an image as a one-frame video, uint8 [1 h w 3], turned upright as its EXIF data say.

    Raises:
        MediaError: The file is missing or is no image.
    """
    media.check()
    try:
        with Image.open(media.open() if media.offset >= 0 else media.path) as picture:
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))[None]
    # Pillow raises SyntaxError for a broken PNG and ValueError for some broken headers.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{media}: not an image that can be read: {error}") from error
