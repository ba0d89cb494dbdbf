"""PNG and TIFF files of every depth, written byte by byte: Pillow writes only some of them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
"""Colour types of PNG."""


def png(pixels: NDArray[np.generic], depth: int, kind: int, **chunks: bytes) -> bytes:
    """Return a PNG.

    Args:
        pixels: Levels [h w] or [h w c], below 2**depth; of rows that fill whole bytes.
        depth: Bits of a level.
        kind: Colour type.
        chunks: Chunks before the pixels, such as `tRNS`.
    """
    height, width = pixels.shape[:2]
    rows = [b"\0" + _packed(row, depth, ">") for row in pixels]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *((name.encode(), data) for name, data in chunks.items())]
    parts += [(b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    body = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _packed(row: NDArray[np.generic], depth: int, order: str) -> bytes:
    if depth >= 8:
        return row.astype(f"{order}{row.dtype.kind}{depth // 8}").tobytes()
    bits = row.reshape(-1, 1).astype(np.int64) >> np.arange(depth)[::-1] & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def tiff(pixels: NDArray[np.generic], depth: int, photometric: int, order: str = "<", **tags: int) -> bytes:
    """Return a TIFF of one strip without compression.

    Args:
        pixels: Levels [h w] or [h w c].
        depth: Bits of a level; 12 packs two into three bytes.
        photometric: 0 white is zero, 1 black is zero, 2 RGB.
        order: "<" or ">".
        tags: `extra` (1 premultiplied, 2 straight alpha), `sample_format` (1 unsigned, 2 signed, 3 float) and `orientation`.
    """
    height, width = pixels.shape[:2]
    planes = pixels.size // (height * width)
    if depth == 12:
        data = np.packbits((pixels.reshape(-1, 1).astype(np.int64) >> np.arange(12)[::-1] & 1).astype(np.uint8)).tobytes()
    else:
        data = _packed(pixels, depth, order)
    fields: Mapping[int, list[int]] = {
        **{256: [width], 257: [height], 258: [depth] * planes, 259: [1], 262: [photometric], 273: [8]},
        **({274: [tags["orientation"]]} if "orientation" in tags else {}),
        **{277: [planes], 278: [height], 279: [len(data)], 284: [1]},
        **({338: [tags["extra"]]} if "extra" in tags else {}),
        **({339: [tags["sample_format"]] * planes} if "sample_format" in tags else {}),
    }
    data += bytes(len(data) % 2)
    entries, arrays, place = b"", b"", 8 + len(data) + 2 + 12 * len(fields) + 4
    for tag, values in fields.items():
        words = struct.pack(f"{order}{len(values)}H", *values) if max(values) < 1 << 16 else struct.pack(f"{order}I", *values)
        kind = 3 if max(values) < 1 << 16 else 4
        if len(words) > 4:
            words, arrays = struct.pack(f"{order}I", place + len(arrays)), arrays + words
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + words.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    return start + data + struct.pack(f"{order}H", len(fields)) + entries + bytes(4) + arrays
