"""Read images with Pillow. Pillow opens images here and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.extensions import NOT_READ
from walt_pl.media.ffmpeg_filters import OVER_WHITE
from walt_pl.media.max_pixels import check_pixels
from walt_pl.media.media_file import Media
from walt_pl.media.pixel_modes import PixelFormat, to_rgb
from walt_pl.media.types import Frames, MediaError, reason
from walt_pl.media.unread_images import explain_unread

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Formats of `extensions.IMAGES`. Pillow recognises a format by its content, and for others it may start programs: Ghostscript for EPS."""
ANIMATED = "animated"
"""First word of the error for an image of several frames."""
_VIDEO_COMMANDS = {
    "PNG": f"ffmpeg -f apng -i a.png {OVER_WHITE} a.mp4",
    "WEBP": f"""python -c "from PIL import Image; Image.open('a.webp').save('a.gif', save_all=True)" && {NOT_READ["gif"]}""",
}
"""Formats of animated images, with the command that makes a video. FFmpeg does not read an animated WebP."""
_LIMIT = Lock()


def read_pillow(media: Media, options: DecodeOptions = DecodeOptions()) -> Frames:
    """Return an image as a one-frame video, uint8 [1 h w 3], turned upright as its EXIF data say, over the background.

    Args:
        media: The file or member.
        options: Options of reading. Rows x columns are checked before the pixels are decoded.

    Raises:
        MediaError: The file is missing, is no image, is too large, is animated, or has pixel values of unknown range.
    """
    media.check()
    try:
        with _open(media) as picture:
            check_pixels(media, picture.height, picture.width, options.max_pixels)
            _check_still(media, picture)
            pixels = PixelFormat.of(media, picture)
            lower = _read_lower_bits(media) if pixels.halved and pixels.transparent else None
            return to_rgb(ImageOps.exif_transpose(picture), pixels, options.background, lower)[None]
    except MediaError:
        raise
    except Exception as error:  # for damaged files Pillow's plugins raise errors of many kinds
        raise MediaError(f"{media}: not an image that can be read: {reason(error)}") from error


def _check_still(media: Media, picture: Image.Image) -> None:
    """Check that an image has one frame. PNG and WebP count their frames in the header.

    Later pages of a TIFF are not counted: each has to be looked for. Later images of a JPEG are previews, depths and gain maps.

    Raises:
        MediaError: It is animated. The message says how to make a video of it.
    """
    frames = getattr(picture, "n_frames", 1) if picture.format in _VIDEO_COMMANDS else 1
    if frames > 1:
        command = _VIDEO_COMMANDS[str(picture.format)]
        raise MediaError(f"{media}: {ANIMATED}: a {picture.format} of {frames} frames, wanted one; make a video of it, e.g. {command}")


def _read_lower_bits(media: Media) -> Image.Image:
    """Return the lower 8 bits of a PNG of 16 bits a colour, in which Pillow finds the upper 8."""
    with _open(media) as picture:
        picture.tile = [picture.tile[0]._replace(args="RGB;16L")]
        return ImageOps.exif_transpose(picture)


@contextmanager
def _open(media: Media) -> Iterator[ImageFile.ImageFile]:
    """Open an image, without decoding it, and without Pillow's own limit: it warns about sizes that `max_pixels` allows.

    Pillow is given no name: it would map the pixels of a TIFF into memory, and shear those that EXIF data turn by a quarter.
    """
    with media.open() as file:
        with _LIMIT:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = Image.open(file, formats=FORMATS)
            except UnidentifiedImageError as error:
                raise explain_unread(media) from error
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        with picture:
            yield picture
