"""Write videos with PyAV, and images and GIFs with Pillow, each whole or not at all."""

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from walt_pl.files import whole_file
from walt_pl.media.pyav import import_av
from walt_pl.media.types import Frames, MediaError, reason

_BT709 = 1
"""BT.709's number among matrices, primaries and transfer functions (ITU-T H.273)."""


def write_video(path: Path, frames: Frames, fps: float, crf: int = 18) -> None:
    """Write uint8 [t h w 3] as H.264 yuv420p in mp4, whole or not at all.

    Colours are BT.709 of limited range, and the stream and the container say so. GOPs are closed, so that every decoder may seek in
    the file. Equal frames give equal bytes.

    Args:
        path: The file.
        frames: uint8 [t h w 3], h and w even.
        fps: Frames per second.
        crf: Constant rate factor of x264; lower is better and larger.

    Raises:
        ValueError: The array has another form, or an odd size (yuv420p halves both).
        MediaError: The file cannot be written.
    """
    _check_frames(path, frames)
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"{path}: height and width must be even, got {frames.shape[1]} x {frames.shape[2]}")
    _write_whole(path, lambda file: _encode(file, frames, fps, crf))


def write_image(path: Path, frame: Frames) -> None:
    """Write uint8 [h w 3] as JPEG or PNG, by the ending of the file's name, whole or not at all.

    Both are sRGB. JPEG's matrix is BT.601 of full range by definition (JFIF), so neither needs a tag.

    Raises:
        ValueError: The array has another form, or the name another ending.
        MediaError: The file cannot be written.
    """
    _check_frames(path, frame[None])
    options: dict[str, dict[str, Any]] = {
        ".png": {"format": "PNG"},
        ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    }
    if path.suffix not in options:
        raise ValueError(f'{path}: an image file must end in {" or ".join(options)}, got "{path.suffix}"')
    _write_whole(path, lambda file: Image.fromarray(frame).save(file, **options[path.suffix]))


def write_gif(path: Path, frames: Frames, fps: float, captions: Sequence[str] = ()) -> None:
    """Write uint8 [t h w 3] as a GIF that plays for ever, whole or not at all; see `gif_bytes`.

    Raises:
        ValueError: The array has another form.
        MediaError: The file cannot be written.
    """
    _check_frames(path, frames)
    content = gif_bytes(frames, fps, captions)
    _write_whole(path, lambda file: file.write_bytes(content))


def gif_bytes(frames: Frames, fps: float, captions: Sequence[str] = ()) -> bytes:
    """Return uint8 [t h w 3] as the bytes of a GIF that plays for ever. GIF stores times in hundredths of a second.

    Args:
        frames: uint8 [t h w 3].
        fps: Frames per second.
        captions: Captions of the clips in the picture. The GIF's comment holds them, a line each, for programs that read to people.
    """
    pictures = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    duration = max(20, round(1000 / fps))  # browsers slow down below 20 ms
    comment = {"comment": "\n".join(captions).encode()} if captions else {}
    pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0, **comment)
    return file.getvalue()


def _encode(file: Path, frames: Frames, fps: float, crf: int) -> None:
    av = import_av()
    from av.video.reformatter import Interpolation, VideoReformatter

    # AREA gives each chroma sample the mean of its 2 x 2 pixels: BILINEAR mixes in the rows beside them, and loses up to 5 dB.
    # Without the two flags, rounding depends on the instructions of the processor.
    scaling = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    with av.open(str(file), mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # Players take an untagged file of 720 rows or more for BT.709, and a smaller one for BT.601. Its range is limited by default.
        stream.codec_context.colorspace = _BT709
        stream.codec_context.color_primaries = _BT709
        stream.codec_context.color_trc = _BT709
        # One thread, equal algorithms on every processor: the order of work determines the bytes, which must not depend on the machine.
        stream.codec_context.thread_count = 1
        stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "open-gop=0:keyint=48:threads=1:cpu-independent=1"}
        converter = VideoReformatter()
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            planes = converter.reformat(picture, format="yuv420p", dst_colorspace=_BT709, interpolation=scaling, threads=1)
            container.mux(stream.encode(planes))
        container.mux(stream.encode())


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary file beside `path`, then rename that file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            write(temporary)
    except (OSError, ValueError) as error:  # FFmpegError is one of the two, and so is the error of a full disk
        raise MediaError(f"{path}: cannot be written: {reason(error)}") from error


def _check_frames(path: Path, frames: Frames) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"{path}: wanted uint8 frames [t h w 3], got {frames.dtype} {list(frames.shape)}")
