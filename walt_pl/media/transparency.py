"""Images and frames of a video with alpha, over a background."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from walt_pl.media.ffmpeg_filters import OVER_WHITE
from walt_pl.media.types import Frames, MediaError

TRANSPARENT = "transparent"
"""First word of the error for a video with alpha that is not decoded."""


def has_alpha(video_format: Any) -> bool:
    """Return whether PyAV's format of a video has alpha. The colours of a palette have it, too."""
    return video_format is not None and (video_format.has_palette or any(component.is_alpha for component in video_format.components))


def check_alpha(name: object, stream: Any) -> None:
    """Check that the alpha of a video can be decoded. WebM holds it beside VP8 and VP9, where FFmpeg's own decoders do not look.

    Args:
        name: File or member, for the message.
        stream: PyAV's video stream.

    Raises:
        MediaError: It cannot be decoded, and colours would come out that it hides.
    """
    beside = any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items())
    if beside and not has_alpha(stream.codec_context.format):
        raise MediaError(
            f"{name}: {TRANSPARENT}: found alpha beside {stream.codec_context.name}, which is not decoded, wanted an opaque video; put it "
            f"over a background (libvpx for VP8): ffmpeg -c:v libvpx-vp9 -i a.webm {OVER_WHITE} a.mp4"
        )


def background_of(container: Any, stream: Any, background: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """Return the background of a video, None where its alpha is ignored.

    In an AVI, the fourth byte of plain colours is reserved. Many programs leave 0 there, and FFmpeg takes it for alpha.
    """
    return None if container.format.name == "avi" and stream.codec_context.name == "rawvideo" else background


def frame_to_rgb(converter: Any, frame: Any, background: tuple[int, int, int] | None) -> Frames:
    """Return a frame as uint8 [h w 3], over the background where it is transparent.

    Args:
        converter: PyAV's reformatter.
        frame: PyAV's frame.
        background: Red, green and blue, 0..255; None ignores alpha.
    """
    if background is None or not has_alpha(frame.format):
        opaque: Frames = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return opaque
    return blend(converter.reformat(frame, format="rgba", threads=1).to_ndarray(), background)


def blend(picture: NDArray[np.uint8], background: tuple[int, int, int]) -> Frames:
    """Return red, green and blue of a picture [h w 4] over a background, rounded to the nearest level."""
    image = Image.fromarray(picture)
    return composite(image.convert("RGB"), image.getchannel("A"), background)


def composite(colours: Image.Image, opacity: Image.Image, background: tuple[int, int, int]) -> Frames:
    """Return an RGB image over a background, as uint8 [h w 3]. Pillow takes a third of NumPy's time for it."""
    ground = Image.new("RGB", colours.size, background)
    ground.paste(colours, mask=opacity)
    return np.array(ground)
