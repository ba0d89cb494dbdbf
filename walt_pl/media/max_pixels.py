"""Largest picture that is decoded. A small file can claim any size, and its decoder then asks for memory of that size."""

MAX_PIXELS = 200_000_000
"""Rows x columns of an image, or of a frame of a video: the largest sensors of cameras have 200 million pixels (600 MB as RGB)."""


def check_pixels(name: object, rows: int, columns: int, max_pixels: int) -> None:
    """Check the size of a picture, as its header says it, before it is decoded.

    Args:
        name: file or member, for the message.
        rows: height in pixels.
        columns: width in pixels.
        max_pixels: largest rows x columns.

    Raises:
        MediaError: the picture is larger.
    """
    from walt_pl.media.types import MediaError  # it needs NumPy, and `walt index --help` only the number

    if rows * columns > max_pixels:
        raise MediaError(
            f"{name}: too large: {columns:,} x {rows:,} = {rows * columns:,} pixels, at most {max_pixels:,} wanted (index --max-pixels, "
            "data.max_pixels)"
        )
