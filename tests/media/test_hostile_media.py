"""Hostile media: no program starts, no other file or address is opened, and no picture above the limit is decoded."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers.clips import CLOSED, counting_clip, encode, entry_of, numbers
from tests.helpers.hostile_media import edit_box, fake_programs, write_hostile_media
from walt_pl.data.index import IndexEntry
from walt_pl.media.containers import is_open_to_decord
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.media_file import Media
from walt_pl.media.probing import probe, probe_picture
from walt_pl.media.reading import picture_sizes, read_clip, read_image, read_last_frames, read_picture, read_sizes, read_video
from walt_pl.media.spans import FrameRange
from walt_pl.media.types import MediaError
from walt_pl.media.writing import write_image, write_video


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of hostile media, with a sound video that they refer to beside it."""
    folder = tmp_path_factory.mktemp("hostile")
    write_video(folder / "secret.mp4", counting_clip(20), 8)
    (folder / "media").mkdir()
    write_hostile_media(folder / "media", folder / "secret.mp4", port=9)
    return folder / "media"


def row(path: Path, decoder: str = "decord", **changes: Any) -> IndexEntry:
    """A row of an index that a stranger wrote: it names decord for any file."""
    size = path.stat().st_size if path.is_file() else 1
    return IndexEntry(**{**entry_row(path, size), "decoder": decoder, **changes})


def entry_row(path: Path, size: int) -> dict[str, Any]:
    about: dict[str, Any] = {"kind": "video", "frames": 20, "fps": 8.0, "width": 96, "height": 64, "caption": "", "label": -1}
    return {"path": path, "split": "train", "bytes": size, **about}


@pytest.mark.parametrize("name", ["eps.png", "eps_binary.jpg", "ps.jpg"])
def test_read_image_of_postscript_starts_no_program(name: str, hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "ran"
    monkeypatch.setenv("PATH", f"{fake_programs(tmp_path / 'bin', mark)}{os.pathsep}{os.environ['PATH']}")
    for read in (read_image, lambda path: read_picture(row(path)), lambda path: probe_picture(path).reason):
        try:
            assert "not an image" in read(hostile / name)  # type: ignore[operator]
        except MediaError as error:
            assert str(error).startswith(f"{hostile / name}: not an image that can be read")
    assert not mark.exists()


def test_pillow_alone_starts_ghostscript_for_postscript(hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, Pillow has changed and the test above shows nothing."""
    mark = tmp_path / "ran"
    monkeypatch.setenv("PATH", f"{fake_programs(tmp_path / 'bin', mark)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    with pytest.raises(Exception), Image.open(hostile / "eps.png") as picture:  # noqa: B017 - the fake Ghostscript writes no picture
        picture.load()
    assert mark.exists()


@pytest.mark.parametrize("name", ["hls.mp4", "concat.mp4", "concat:secret.mp4", "sdp.mp4", "vobsub.mpg", "nut.mp4", "captions.mp4"])
def test_readers_of_videos_open_no_file_that_names_others(name: str, hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decord = pytest.importorskip("decord")
    monkeypatch.setattr(decord, "VideoReader", lambda *_, **__: pytest.fail("decord was given the file"))
    path = hostile / name
    reads: list[Callable[[], object]] = [
        lambda: read_video(path, 5),
        lambda: read_last_frames(path, 5),
        lambda: read_clip(row(path), FrameRange(5)),
    ]
    for read in reads:
        with pytest.raises(MediaError, match="not a video that can be read"):
            read()
    assert probe(path).reason.startswith("not a video that can be read")


def test_pyav_alone_opens_the_files_that_a_list_names(hostile: Path) -> None:
    """If this fails, FFmpeg has changed and the test above shows nothing."""
    with av.open(f"file:{hostile / 'concat.mp4'}", options={"protocol_whitelist": "file,subfile"}) as container:
        assert container.format.name == "concat" and len(list(container.decode(video=0))) == 20


def test_read_clip_never_gives_decord_a_list_behind_the_header_of_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV and decord must agree about the format: each has an FFmpeg of its own."""
    decord = pytest.importorskip("decord")
    monkeypatch.setattr(decord, "VideoReader", lambda *_, **__: pytest.fail("decord was given the file"))
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(12) + b"#EXTM3U\n")
    with pytest.raises(MediaError):
        read_clip(row(tmp_path / "a.mp4"), FrameRange(5))


def test_read_clip_gives_decord_no_container_that_it_might_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("decord"), "VideoReader", lambda *_, **__: pytest.fail("decord was given the file"))
    for name in ("a.ts", "a%03d.mp4"):
        encode(tmp_path / name, counting_clip(6), "libx264")
        assert numbers(read_clip(row(tmp_path / name), FrameRange(6))) == list(range(6))


def test_is_open_to_decord_takes_real_containers_by_their_first_bytes(tmp_path: Path) -> None:
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.mov", "libx264")):
        encode(tmp_path / name, counting_clip(3), codec)
        assert is_open_to_decord(Media(tmp_path / name)), name
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "shard.tar").write_bytes(bytes(512) + whole)
    assert is_open_to_decord(Media(tmp_path / "shard.tar", 512, len(whole)))
    for name in ("a%03d.mp4", "a.png"):  # FFmpeg may take the name for a pattern
        (tmp_path / name).write_bytes(whole)
        assert not is_open_to_decord(Media(tmp_path / name)), name
    for content in (
        b"",
        b"#EXTM3U\n",
        b"ffconcat version 1.0\n",
        b"<?xml?><MPD",
        b"RIFF<MPD>AVI <MPD",
        b"\x1a\x45\xdf\xa3\xec\x9f<MPD ",
        b"xxxxftyp",
    ):
        (tmp_path / "b.mp4").write_bytes(content)
        assert not is_open_to_decord(Media(tmp_path / "b.mp4")), content


@pytest.mark.parametrize("name", ["pipe.mp4", "pipe.png", "device.mp4", "loop.png", "nowhere.mkv"])
def test_readers_refuse_pipes_devices_and_links_to_nothing(name: str, hostile: Path) -> None:
    for read in (read_image, lambda path: read_video(path, 5), lambda path: read_clip(row(path), FrameRange(5))):
        with pytest.raises(MediaError, match="no such file"):
            read(hostile / name)


def test_media_names_of_ffmpeg_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the name `http:` would make a relative path a URL."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "http:").mkdir()
    write_video(tmp_path / "http:" / "a.mp4", counting_clip(6), 8)
    content = (tmp_path / "http:" / "a.mp4").read_bytes()
    (tmp_path / "http:" / "a.tar").write_bytes(bytes(512) + content)
    assert numbers(read_video(Path("http:/a.mp4"), 6)) == list(range(6))
    for decoder in ("pyav", "decord"):
        member = row(Path("http:/a.tar"), decoder, offset=512, bytes=len(content))
        assert numbers(read_clip(member, FrameRange(6))) == list(range(6))


# ---- Pixels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_read_sizes_refuses_frames_above_max_pixels_before_decoding(decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "a.mp4", counting_clip(6), "libx264", **CLOSED)
    entry = entry_of(tmp_path / "a.mp4", decoder=decoder)
    monkeypatch.setattr("walt_pl.media.reading.pictures", lambda *_: pytest.fail("a frame was decoded"))
    with pytest.raises(
        MediaError, match=f"^{entry.path}: too large: 96 x 64 = 6,144 pixels, at most 6,143 wanted .index --max-pixels, data.max"
    ):
        read_sizes(entry, FrameRange(5), (None,), DecodeOptions(6143))
    monkeypatch.undo()
    assert numbers(read_sizes(entry, FrameRange(5), (None,), DecodeOptions(6144))[0]) == [0, 1, 2, 3, 4]


def test_read_sizes_refuses_frames_that_grow_above_max_pixels(tmp_path: Path) -> None:
    encode(tmp_path / "a.h264", counting_clip(6), "libx264")
    encode(tmp_path / "b.h264", counting_clip(6, 512, 512), "libx264")
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    with pytest.raises(MediaError) as error:
        read_sizes(row(tmp_path / "a.mp4", "pyav", fps=0.0), FrameRange(12), [(32, 32)], DecodeOptions(96 * 64))
    assert isinstance(error.value.__cause__, av.error.FFmpegError), "its decoder refused them, before NumPy did"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff"])
def test_picture_sizes_refuses_images_above_max_pixels_before_decoding(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / name)
    entry = row(tmp_path / name, "pillow")
    assert picture_sizes(entry, (None,), DecodeOptions(1200))[0].shape == (1, 30, 40, 3)
    monkeypatch.setattr("PIL.Image.Image.convert", lambda *_: pytest.fail("the image was decoded"))
    with pytest.raises(MediaError, match="too large: 40 x 30 = 1,200 pixels, at most 1,199 wanted"):
        picture_sizes(entry, (None,), DecodeOptions(1199))
    assert probe_picture(tmp_path / name, max_pixels=1199).reason.startswith("too large: 40 x 30")


@pytest.mark.parametrize("name", ["large.png", "large.tiff", "canvas.webp", "large.bmp", "large.jpg", "negative.bmp", "wide.png"])
def test_read_image_refuses_huge_headers_with_the_pixels_found(name: str, hostile: Path) -> None:
    with pytest.raises(MediaError, match=r"too large: .* pixels, at most 200,000,000 wanted"):
        read_image(hostile / name)


def test_read_image_has_one_limit_and_leaves_that_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png", counting_clip(1)[0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 6,144 would be an error, and 101 a warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").shape == (1, 64, 96, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("name", ["text.png", "profile.png", "strips.tiff", "truncated.png"])
def test_read_image_of_bombs_in_chunks_and_tags_raises_media_error(name: str, hostile: Path) -> None:
    with pytest.raises(MediaError, match=f"^{hostile / name}: not an image that can be read"):
        read_image(hostile / name)


@pytest.mark.parametrize("name", ["exif_orientation.jpg", "exif_entries.jpg", "pages.tiff", "inflate.png"])
def test_read_image_ignores_absurd_tags_and_later_pages(name: str, hostile: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about the tags
        assert read_image(hostile / name).shape == (1, 32, 48, 3)


def test_read_clip_never_gives_decord_more_frames_than_bytes(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """decord ends the process there: it makes a table of the frames that a header claims."""
    monkeypatch.setattr(pytest.importorskip("decord"), "VideoReader", lambda *_, **__: pytest.fail("decord was given the file"))
    with pytest.raises(MediaError, match=r"it claims 2,147,483,647 frames in [\d,]+ bytes"):
        read_clip(row(hostile / "times.mp4"), FrameRange(5))


def test_edit_box_keeps_a_video_that_is_not_changed(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", counting_clip(4), 8)
    whole = (tmp_path / "a.mp4").read_bytes()
    assert edit_box(whole, b"stts", lambda old: old) == whole and np.array_equal(numbers(read_video(tmp_path / "a.mp4", 4)), range(4))
