"""Read images with Pillow. Pillow opens images here and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import numpy as np
from PIL import Image, ImageOps

from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.max_pixels import check_pixels
from walt_pl.media.media_file import Media
from walt_pl.media.types import Frames, MediaError, reason

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Formats of `extensions.IMAGES`. Pillow recognises a format by its content, and for others it may start programs: Ghostscript for EPS."""
_LIMIT = Lock()


def read_pillow(media: Media, options: DecodeOptions = DecodeOptions()) -> Frames:
    """Return an image as a one-frame video, uint8 [1 h w 3], turned upright as its EXIF data say.

    Args:
        media: The file or member.
        options: Options of reading. Rows x columns are checked before the pixels are decoded.

    Raises:
        MediaError: The file is missing, is no image, or is too large.
    """
    media.check()
    try:
        with _open(media) as picture:
            check_pixels(media, picture.height, picture.width, options.max_pixels)
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))[None]
    except MediaError:
        raise
    except Exception as error:  # for damaged files Pillow's plugins raise errors of many kinds
        raise MediaError(f"{media}: not an image that can be read: {reason(error)}") from error


@contextmanager
def _open(media: Media) -> Iterator[Image.Image]:
    """Open an image, without decoding it, and without Pillow's own limit: it warns about sizes that `max_pixels` allows."""
    with _LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            picture = Image.open(media.open() if media.offset >= 0 else media.path, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with picture:
        yield picture
