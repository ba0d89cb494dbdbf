"""Images of every mode of Pillow, of every depth and kind of transparency, compared with numpy and with FFmpeg's decoders."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from tests.helpers.clips import entry_of
from tests.helpers.image_files import COLOUR, COLOUR_ALPHA, GREY, GREY_ALPHA, PALETTE, png, tiff
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.pixel_modes import PixelFormat, to_rgb
from walt_pl.media.probing import Probe
from walt_pl.media.reading import picture_sizes, read_image
from walt_pl.media.types import Frames, MediaError

RAMP = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, 0)
COLOURS = np.stack([RAMP, RAMP[:, ::-1], np.roll(RAMP, 100, 1)], -1)
OPACITY = np.roll(RAMP, 37, 1)[..., None]
WHITE, BLUE = (255, 255, 255), (10, 20, 200)


def grey(read: Frames) -> NDArray[np.float64]:
    """Return the levels [h w] of a grey image that was read."""
    assert (read == read[..., :1]).all()
    return read[0, ..., 0].astype(np.float64)


# ---- Depth ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "white"),
    [
        (png(RAMP, 16, GREY), 65535),
        (tiff(RAMP, 16, 1, "<"), 65535),
        (tiff(RAMP, 16, 1, ">"), 65535),
        (tiff(RAMP >> 4, 12, 1), 4095),
        (tiff(RAMP >> 8, 8, 1), 255),
        (png(RAMP >> 8, 8, GREY), 255),
        (png(RAMP >> 12, 4, GREY), 15),
        (png(RAMP >> 14, 2, GREY), 3),
        (png(RAMP >> 15, 1, GREY), 1),
    ],
    ids=["png16", "tiff16", "tiff16_big_endian", "tiff12", "tiff8", "png8", "png4", "png2", "png1"],
)
def test_read_image_scales_grey_of_each_depth_to_8_bits(content: bytes, white: int, tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(content)
    levels = RAMP.astype(np.float64) // ((65535 + 1) // (white + 1))
    found = grey(read_image(tmp_path / "a.img"))
    assert np.abs(found - levels / white * 255).max() <= 0.5
    assert found.mean() == pytest.approx(127.5, abs=0.5), "a ramp from black to white"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_read_image_inverts_tiffs_in_which_white_is_zero(depth: int, order: str, tmp_path: Path) -> None:
    (tmp_path / "a.tiff").write_bytes(tiff(RAMP >> 16 - depth, depth, 0, order))
    if (depth, order) == (16, ">"):  # when this fails, Pillow opens them: compare the levels
        with pytest.raises(MediaError, match="not an image that can be read"):
            read_image(tmp_path / "a.tiff")
        return
    white = 2**depth - 1
    assert np.abs(grey(read_image(tmp_path / "a.tiff")) - (255 - (RAMP >> 16 - depth) / white * 255)).max() <= 0.5


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits"])
def test_read_image_scales_compressed_tiffs_of_16_bits(compression: str, tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.tiff", compression=compression)
    assert np.abs(grey(read_image(tmp_path / "a.tiff")) - RAMP / 257).max() <= 0.5


def test_read_image_scales_a_png_of_16_bits_that_pillow_opens_as_32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PngImagePlugin._MODES, (16, 0), ("I", "I;16B"))  # as Pillow did before version 11
    (tmp_path / "a.png").write_bytes(png(RAMP, 16, GREY))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "I"
    assert np.abs(grey(read_image(tmp_path / "a.png")) - RAMP / 257).max() <= 0.5


@pytest.mark.parametrize("content", [png(COLOURS, 16, COLOUR), tiff(COLOURS, 16, 2, "<"), tiff(COLOURS, 16, 2, ">")])
def test_read_image_scales_colours_of_16_bits(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(content)
    assert np.abs(read_image(tmp_path / "a.img")[0] - COLOURS / 257).max() <= 1, "Pillow keeps the upper 8 bits"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (tiff(RAMP / np.float32(65535), 32, 1, sample_format=3), "floating point numbers"),
        (tiff(RAMP.astype(np.uint32) << 16, 32, 1, sample_format=1), "numbers of 32 bits"),
        (tiff(RAMP.astype(np.int32) << 15, 32, 1, sample_format=2), "numbers of 32 bits with a sign"),
        (tiff(RAMP.astype(np.int32) - 32768, 16, 1, "<", sample_format=2), "numbers of 16 bits with a sign"),
        (tiff(RAMP.astype(np.int32) - 32768, 16, 1, ">", sample_format=2), "numbers of 16 bits with a sign"),
        (tiff((RAMP >> 8).astype(np.int16) - 128, 8, 1, sample_format=2), "numbers of 8 bits with a sign"),
    ],
)
def test_read_image_refuses_values_of_unknown_range_with_what_to_type(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "a.tiff").write_bytes(content)
    with pytest.raises(MediaError) as error:
        read_image(tmp_path / "a.tiff")
    assert str(error.value) == (
        f"{tmp_path / 'a.tiff'}: unknown range: found {found}, wanted 8 or 16 bits without a sign, which have a black and a white; "
        "scale them, for example: magick a.tif -auto-level -depth 16 a.png"
    )


# ---- Modes ---------------------------------------------------------------------------------------------------------------

RED = (200, 40, 0)
MODES: dict[str, tuple[object, tuple[int, int, int] | None]] = {
    "1": (1, WHITE),
    "L": (77, (77, 77, 77)),
    "P": (3, RED),
    "RGB": (RED, RED),
    "RGBX": ((*RED, 0), RED),
    "CMYK": ((55, 215, 255, 0), RED),
    "YCbCr": ((83, 81, 211), (199, 40, 0)),  # JPEG's equations, within 1
    "HSV": ((9, 255, 200), (200, 42, 0)),
    "LAB": ((138, 128, 128), (128, 129, 129)),  # L* 54, without colour: ImageCms differs from the formula by less than 2 levels
    "LA": ((100, 0), BLUE),
    "La": ((0, 0), BLUE),
    "PA": ((3, 0), BLUE),
    "RGBA": ((*RED, 0), BLUE),
    "RGBa": ((0, 0, 0, 0), BLUE),
    "I;16": (257 * 60, (60, 60, 60)),
    "I;16L": (257 * 60, (60, 60, 60)),
    "I;16B": (257 * 60, (60, 60, 60)),
    "I;16N": (257 * 60, (60, 60, 60)),
    "I": (60, None),
    "F": (0.5, None),
}
"""Mode: a pixel, and its colour over blue; None where it has no known range."""


def test_to_rgb_has_a_decision_for_each_mode_of_pillow() -> None:
    assert set(MODES) == set(Image.MODES)


@pytest.mark.parametrize("mode", MODES)
def test_to_rgb_of_each_mode_gives_its_colour_or_is_refused(mode: str) -> None:
    pixel, colour = MODES[mode]
    picture = Image.new(mode, (3, 2), pixel)  # type: ignore[arg-type]  # a number for some modes, a colour for others
    if mode in ("P", "PA"):
        picture.putpalette([0, 0, 0] * 3 + list(RED))
    if colour is None:
        with pytest.raises(MediaError, match=r"^a: unknown range"):
            PixelFormat.of("a", picture)
        return
    found = to_rgb(picture, PixelFormat.of("a", picture), BLUE)
    assert found.shape == (2, 3, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - colour).max() <= {"YCbCr": 1, "LAB": 2}.get(mode, 0)


# ---- Transparency --------------------------------------------------------------------------------------------------------


def decoded_by_ffmpeg(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return colours and opacity, 0..1, as FFmpeg decodes an image."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    name = "rgba64le" if "64" in frame.format.name or "16" in frame.format.name else "rgba"
    found = frame.reformat(format=name).to_ndarray() / (65535 if name == "rgba64le" else 255)
    return found[..., :3], found[..., 3:]


KEY_16 = tuple(int(level) for level in COLOURS[0, 77])
TRANSPARENT = {
    "rgba.png": png(np.concatenate([COLOURS, OPACITY], -1) >> 8, 8, COLOUR_ALPHA),
    "rgba16.png": png(np.concatenate([COLOURS, OPACITY], -1), 16, COLOUR_ALPHA),
    "la.png": png(np.concatenate([RAMP[..., None], OPACITY], -1) >> 8, 8, GREY_ALPHA),
    "la16.png": png(np.concatenate([RAMP[..., None], OPACITY], -1), 16, GREY_ALPHA),
    "palette_index.png": png(RAMP >> 8 & 3, 8, PALETTE, PLTE=bytes(range(0, 240, 20)), tRNS=bytes([255, 0])),
    "palette_bytes.png": png(RAMP >> 8 & 3, 8, PALETTE, PLTE=bytes(range(0, 240, 20)), tRNS=bytes([255, 0, 90, 200])),
    "palette_4_bits.png": png(RAMP >> 12, 4, PALETTE, PLTE=bytes(range(0, 240, 5)), tRNS=bytes(range(0, 240, 16))),
    "grey.png": png(RAMP >> 8, 8, GREY, tRNS=struct.pack(">H", 77)),
    "rgb.png": png(COLOURS >> 8, 8, COLOUR, tRNS=struct.pack(">3H", *(level >> 8 for level in KEY_16))),
    "rgba.tiff": tiff(np.concatenate([COLOURS, OPACITY], -1) >> 8, 8, 2, extra=2),
    "rgba16.tiff": tiff(np.concatenate([COLOURS, OPACITY], -1), 16, 2, extra=2),
}


@pytest.mark.parametrize("name", TRANSPARENT)
@pytest.mark.parametrize("background", [WHITE, BLUE])
def test_picture_sizes_shows_the_background_through_transparency(name: str, background: tuple[int, int, int], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(TRANSPARENT[name])
    colours, opacity = decoded_by_ffmpeg(tmp_path / name)
    assert opacity.min() == 0 and opacity.max() == 1, "the file has both"
    wanted = 255 * colours * opacity + np.array(background) * (1 - opacity)
    (found,) = picture_sizes(entry_of(tmp_path / name, Probe()), (None,), DecodeOptions(background=background))
    assert np.abs(found[0] - wanted).max() <= (1.5 if "16" in name else 0.51), "Pillow keeps the upper 8 of 16 bits"


@pytest.mark.parametrize(("depth", "level"), [(1, 0), (1, 1), (2, 1), (4, 7), (8, 77)])
def test_read_image_finds_the_transparent_level_of_each_depth(depth: int, level: int, tmp_path: Path) -> None:
    levels = RAMP >> 16 - depth
    (tmp_path / "a.png").write_bytes(png(levels, depth, GREY, tRNS=struct.pack(">H", level)))
    found = read_image(tmp_path / "a.png", DecodeOptions(background=(99, 99, 99)))
    assert (grey(found) == np.where(levels == level, 99, levels * (255 // (2**depth - 1)))).all()


def test_read_image_compares_all_16_bits_with_the_transparent_level(tmp_path: Path) -> None:
    near = np.array([[1000, 1001, 999, 1000 + 256]] * 2, np.uint16)
    (tmp_path / "a.png").write_bytes(png(near, 16, GREY, tRNS=struct.pack(">H", 1000)))
    assert grey(read_image(tmp_path / "a.png"))[0].tolist() == [255, 4, 4, 5]
    colours = np.stack([near, np.full_like(near, 5), near], -1)
    (tmp_path / "b.png").write_bytes(png(colours, 16, COLOUR, tRNS=struct.pack(">3H", 1000, 5, 1000)))
    assert read_image(tmp_path / "b.png")[0, 0].tolist() == [[255, 255, 255], [3, 0, 3], [3, 0, 3], [4, 0, 4]]


@pytest.mark.parametrize("name", ["rgb", "grey"])
def test_read_image_of_premultiplied_tiffs_adds_the_background(name: str, tmp_path: Path) -> None:
    straight = (COLOURS if name == "rgb" else RAMP[..., None]) >> 8
    opacity = OPACITY.astype(np.int64) >> 8
    premultiplied = np.rint(straight * opacity / 255).astype(np.int64)
    (tmp_path / "a.tiff").write_bytes(tiff(np.concatenate([premultiplied, opacity], -1), 8, 2 if name == "rgb" else 1, extra=1))
    assert np.abs(read_image(tmp_path / "a.tiff")[0] - (premultiplied + 255.0 - opacity)).max() <= 1


def test_read_image_of_a_webp_hides_the_hidden_colour(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (8, 6), (200, 0, 0, 255))
    picture.paste((0, 200, 0, 0), (0, 0, 4, 6))
    picture.save(tmp_path / "a.webp", lossless=True, exact=True)
    assert read_image(tmp_path / "a.webp")[0, 0].tolist() == [[255, 255, 255]] * 4 + [[200, 0, 0]] * 4


@pytest.mark.parametrize("mask", [0, 0xFF000000])
def test_read_image_of_a_bmp_takes_the_fourth_byte_for_alpha_only_with_a_mask(mask: int, tmp_path: Path) -> None:
    pixels = bytes([0, 200, 0, 0, 0, 0, 200, 255])  # blue, green, red, alpha
    header = struct.pack("<IiiHHIIiiII4I", 56, 2, 1, 1, 32, 3, len(pixels), 0, 0, 0, 0, 0xFF0000, 0xFF00, 0xFF, mask)
    (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 70 + len(pixels), 0, 0, 70) + header + pixels)
    assert read_image(tmp_path / "a.bmp")[0, 0].tolist() == [[255, 255, 255] if mask else [0, 200, 0], [200, 0, 0]]


def test_read_image_of_a_paletted_tiff_with_alpha_shows_the_background(tmp_path: Path) -> None:
    picture = Image.new("PA", (2, 1), (1, 0))
    picture.putpalette([0, 0, 0, *RED])
    picture.putpixel((1, 0), (1, 255))
    picture.save(tmp_path / "a.tiff")
    assert read_image(tmp_path / "a.tiff")[0, 0].tolist() == [[255, 255, 255], list(RED)]


@pytest.mark.parametrize("depth", [8, 16])
def test_read_image_turns_an_image_with_its_transparency(depth: int, tmp_path: Path) -> None:
    levels = np.arange(2 * 3 * 3).reshape(2, 3, 3) * 1000 >> 16 - depth
    key = tuple(int(level) for level in levels[1, 2])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    chunks = {"tRNS": struct.pack(">3H", *key), "eXIf": exif.tobytes().removeprefix(b"Exif\0\0")}
    (tmp_path / "a.png").write_bytes(png(levels, depth, COLOUR, **chunks))
    found = read_image(tmp_path / "a.png")[0]
    assert found.shape == (3, 2, 3)
    assert np.argwhere((found == 255).all(-1)).tolist() == [[2, 0]], "the last pixel of the last row comes below, on the left"


def test_read_image_without_transparency_is_as_pillow_converts_it(tmp_path: Path) -> None:
    Image.fromarray((COLOURS >> 8).astype(np.uint8)).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as picture:
        assert (read_image(tmp_path / "a.jpg")[0] == np.array(picture.convert("RGB"))).all()
    (tmp_path / "b.png").write_bytes(png(RAMP >> 8, 8, GREY, tRNS=struct.pack(">H", 300)))
    assert (grey(read_image(tmp_path / "b.png")) == RAMP >> 8).all(), "a transparent level that no pixel can have"
