"""Images and videos that are not what their names say, or that ask for more than a decoder should give."""

import io
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from tests.helpers.clips import counting_clip, encode
from walt_pl.media.writing import write_image, write_video

FAKES = ("gs", "gswin64c", "curl", "wget", "ffmpeg", "ffplay", "djpeg", "convert", "inkscape", "sh", "bash", "python")
"""Programs that a decoder may start. The fakes of `fake_programs` take their place."""
HARMLESS = frozenset(
    [
        "exif_orientation.jpg",
        "exif_entries.jpg",
        "pages.tiff",
        "inflate.png",
        "external.mov",
        "times.mp4",
        "zero_base.mp4",
        "edits.mp4",
        "large.mp4",
        "scale.mkv",
        "index.avi",
        "rate.avi",
    ]
)
"""Hostile files with pictures of their own. A reader may ignore the rest and return these pictures."""


def fake_programs(folder: Path, mark: Path) -> Path:
    """Write programs that leave a mark, and return their folder, for PATH."""
    folder.mkdir(parents=True)
    for name in FAKES:
        (folder / name).write_text(f"#!/bin/sh\n: > {mark}\n")
        (folder / name).chmod(0o755)
    return folder


def write_hostile_media(folder: Path, secret: Path, port: int) -> list[str]:
    """Write the hostile files into a folder, and return their names.

    Args:
        folder: an empty folder.
        secret: a sound mp4 outside of the folder, which no reading may reach.
        port: of a local socket, which no reading may connect to.
    """
    files = {**_images(), **_playlists(secret, port), **_videos(folder / ".parts", secret)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    shutil.copy(secret, folder / "secret.mp4")  # FFmpeg's lists name files beside them
    os.mkfifo(folder / "pipe.mp4")
    os.mkfifo(folder / "pipe.png")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.mkv").symlink_to("/none/at/all.mkv")
    return [*files, "pipe.mp4", "pipe.png", "device.mp4", "loop.png", "nowhere.mkv"]


def write_hostile_shard(path: Path, files: Iterable[Path]) -> list[str]:
    """Write a tar shard with the plain ones of some hostile files as members, and return their names."""
    plain = [file for file in files if file.is_file() and file.name not in HARMLESS]
    with tarfile.open(path, "w") as shard:
        for file in plain:
            shard.add(file, file.name)
    return [file.name for file in plain]


# ---- Images ------------------------------------------------------------------------------------------------------------

_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n0 0 64 64 rectfill\nshowpage\n%%EOF\n"


def _images() -> dict[str, bytes]:
    sound = Image.linear_gradient("L").resize((48, 32)).convert("RGB")
    stored = {name: _saved(sound, name) for name in ("GIF", "ICO", "PPM", "TIFF", "PDF", "JPEG2000", "DDS", "TGA", "IM")}
    png = _saved(sound, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 99
    return {
        "eps.png": _EPS,
        "eps_binary.jpg": b"\xc5\xd0\xd3\xc6" + struct.pack("<6IH", 30, len(_EPS), 0, 0, 0, 0, 0xFFFF) + _EPS,
        "ps.jpg": _EPS.replace(b" EPSF-3.0", b""),
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "psd.png": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 64, 64, 8, 3) + bytes(64),
        "wmf.png": b"\xd7\xcd\xc6\x9a" + bytes(200),
        "mpegts.png": b"G" + bytes(187) * 10,
        **{f"{name.lower()}.png": stored[name] for name in ("GIF", "ICO", "PPM", "PDF", "JPEG2000", "DDS", "TGA", "IM")},
        "large.png": _png(40_000, 40_000),
        "wide.png": _png(2**31 - 1, 1),
        "inflate.png": _png(48, 32, data=zlib.compress(bytes(1 << 26), 9)),
        "text.png": _png(48, 32, extra=(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27), 9))),
        "profile.png": _png(48, 32, extra=(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 27), 9))),
        "truncated.png": png[: len(png) // 2],
        "large.tiff": _tiff(40_000, 40_000),
        "strips.tiff": _tiff(48, 32, strips=2**31 - 1),
        "pages.tiff": _endless_pages(stored["TIFF"]),
        "large.webp": _webp(1 << 24, 200),
        "canvas.webp": _webp(16_383, 16_383),
        "large.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "negative.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, -60_000, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
        "large.jpg": _large_jpeg(sound),
        "exif_orientation.jpg": _saved(sound, "JPEG", exif=exif),
        "exif_entries.jpg": _saved(sound, "JPEG", exif=b"Exif\0\0II*\0\10\0\0\0\xff\xff" + b"\x12\1\3\0\xff\xff\xff\xff\0\0\0\0" * 300),
    }


def _saved(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=name, **options)  # type: ignore[arg-type]
    return file.getvalue()


def _png(width: int, height: int, data: bytes = b"", extra: tuple[bytes, bytes] | None = None) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + (chunk(*extra) if extra else b"") + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _tiff(width: int, height: int, strips: int = 1) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, strips, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, strips, 8)]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)


def _endless_pages(tiff: bytes) -> bytes:
    """Return a TIFF whose page says that it is also the next one."""
    (first,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, first)
    content = bytearray(tiff)
    struct.pack_into("<I", content, first + 2 + 12 * count, first)
    return bytes(content)


def _webp(width: int, height: int) -> bytes:
    inner = _saved(Image.new("RGB", (16, 16)), "WEBP")[12:]
    frame = bytes(6) + struct.pack("<I", 15)[:3] + struct.pack("<I", 15)[:3] + bytes(4) + inner
    body = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _large_jpeg(image: Image.Image) -> bytes:
    content = bytearray(_saved(image, "JPEG"))
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, 65_500, 65_500)
    return bytes(content)


# ---- Files that name other files -----------------------------------------------------------------------------------------


def _playlists(secret: Path, port: int) -> dict[str, bytes]:
    url = f"http://127.0.0.1:{port}/a.mp4"
    tcp = f"tcp://127.0.0.1:{port}"
    dash = "urn:mpeg:dash:profile:isoff-on-demand:2011"
    texts = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n",
        "hls_http.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n",
        "hls_key.mkv": f'#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n',
        "concat.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
        "concat_http.avi": f"ffconcat version 1.0\nfile {url}\n",
        "concat_option.mov": f"ffconcat version 1.0\nfile {tcp}\noption protocol_whitelist file,tcp,http\n",
        "dash.mp4": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="{dash}" type="static"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
        f"<BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        f"m=video {port} TCP/RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "rtsp.mov": f"rtsptextRTSP://127.0.0.1:{port}/a\n",
        "asx.wmv": f'<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
        "vobsub.mpg": "# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\ntimestamp: 00:00:01:000, filepos: 000000000\n",
        "captions.mp4": '{"captions":[{"duration":1000,"content":"a","startOfParagraph":true,"startTime":0}]}',
        "metadata.mp4": ";FFMETADATA1\ntitle=a\n",
        "concat:secret.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
        "http:x%03d.mp4": f"#EXTM3U\n{url}\n",
    }
    return {name: text.encode() for name, text in texts.items()}


# ---- Videos with absurd contents -----------------------------------------------------------------------------------------


def _videos(folder: Path, secret: Path) -> dict[str, bytes]:
    folder.mkdir()
    encode(folder / "a.mkv", counting_clip(12), "libx264")
    encode(folder / "a.avi", counting_clip(12), "mpeg4")
    encode(folder / "a.nut", counting_clip(12), "libx264")
    write_video(folder / "a.mp4", counting_clip(12), 8)
    write_image(folder / "a.png", counting_clip(1)[0])
    mp4, mkv, avi, nut, png = ((folder / f"a.{ending}").read_bytes() for ending in ("mp4", "mkv", "avi", "nut", "png"))
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    count = struct.pack(">I", 2**31 - 1)
    index = avi.index(b"idx1")
    return {
        "nut.mp4": nut,
        "picture.mp4": png,
        "external.mov": edit_box(mp4, b"dref", lambda _: bytes(4) + struct.pack(">I", 1) + _alias(secret)),
        "frames.mp4": edit_box(mp4, b"stsz", lambda old: old[:8] + count + old[12:]),
        "times.mp4": edit_box(mp4, b"stts", lambda old: old[:8] + count + struct.pack(">I", 1)),
        "zero_base.mp4": edit_box(mp4, b"mdhd", lambda old: old[:12] + bytes(4) + old[16:]),
        "edits.mp4": edit_box(mp4, b"elst", lambda _: bytes(4) + struct.pack(">I", 1 << 28) + struct.pack(">IiI", 1, 0, 1 << 16) * 4096),
        "large.mp4": edit_box(mp4, b"stsd", lambda old: old[:40] + struct.pack(">HH", 65_000, 65_000) + old[44:]),
        "box.mp4": struct.pack(">I4sQ", 1, b"ftyp", 2**63 - 1) + mp4,
        "boxes.mp4": mp4[:32] + b"".join(struct.pack(">I4s", 8 * (4000 - n), b"moov") for n in range(4000)),
        "nested.mkv": mkv[:48] + b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" * 4000,
        "scale.mkv": mkv.replace(b"\x2a\xd7\xb1", b"\x2a\xd7\xb1\x83\0\0\0", 1),
        "size.mkv": mkv[:4] + b"\x01\xff\xff\xff\xff\xff\xff\xfe" + mkv[5:],
        "index.avi": avi[: index + 4] + b"\xff\xff\xff\xff" + avi[index + 8 :],
        "rate.avi": avi[: avi.index(b"strh") + 28] + bytes(8) + avi[avi.index(b"strh") + 36 :],
        "truncated.mp4": mp4[: len(mp4) // 2],
        "random.ts": (b"G" + bytes(range(187))) * 500,
    }


def edit_box(content: bytes, name: bytes, edit: Callable[[bytes], bytes]) -> bytes:
    """Return an mp4 with another content of each box of a name. The sizes of the boxes around it are adjusted."""
    parts, place = [], 0
    while place + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        inner = content[place + 8 : place + size]
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"edts"):
            inner = edit_box(inner, name, edit)
        elif kind == name:
            inner = edit(inner)
        parts.append(struct.pack(">I4s", len(inner) + 8, kind) + inner)
        place += size
    return b"".join(parts)


def _alias(path: Path) -> bytes:
    """Return an entry of a data reference: QuickTime's alias of another file, by its absolute path."""
    text = b"disk:" + str(path).encode()
    text += b"\0" * (len(text) % 2)
    record = bytes(10) + b"\4disk".ljust(28, b"\0") + bytes(12) + bytes([len(path.name)]) + path.name.encode().ljust(63, b"\0")
    record += bytes(16) + struct.pack(">HH", 1, 1) + bytes(16) + struct.pack(">HH", 2, len(text)) + text + b"\xff\xff\0\0"
    return struct.pack(">I4sI", len(record) + 12, b"alis", 0) + record
