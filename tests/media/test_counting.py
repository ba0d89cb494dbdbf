"""Frames are counted without decoding, and equal those that decoding finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.clips import CASES, counting_clip, encode
from tests.helpers.hostile_media import edit_box
from walt_pl.data.index import IndexEntry
from walt_pl.media.counting import count_frames
from walt_pl.media.probing import Probe
from walt_pl.media.types import MediaError
from walt_pl.media.writing import write_video


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_count_frames_equals_the_number_that_decoding_finds(name: str, probes: dict[str, tuple[IndexEntry, Probe]]) -> None:
    entry, found = probes[name]
    assert count_frames(entry.path) == found.frames


@pytest.mark.parametrize(("name", "message"), [("a.avi", "truncated: it ends after"), ("a.mp4", "not a video that can be read")])
def test_count_frames_of_a_truncated_file_says_so(tmp_path: Path, name: str, message: str) -> None:
    encode(tmp_path / name, counting_clip(100), "mpeg4")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(MediaError, match=f"{name}: {message}"):
        count_frames(tmp_path / name)


def test_count_frames_of_what_is_no_video_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"#EXTM3U\n#EXTINF:10,\n/etc/passwd\n")
    with pytest.raises(MediaError, match=r"a\.mp4: not a video that can be read"):
        count_frames(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match=r"b\.mp4: no such file"):
        count_frames(tmp_path / "b.mp4")


def test_count_frames_of_a_header_that_claims_billions_ends_soon(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", counting_clip(12), 8)
    content = (tmp_path / "a.mp4").read_bytes()
    claimed = edit_box(content, b"stsz", lambda old: old[:8] + (2**31 - 1).to_bytes(4, "big") + old[12:])
    (tmp_path / "a.mp4").write_bytes(claimed)
    with pytest.raises(MediaError, match=r"a\.mp4"):
        count_frames(tmp_path / "a.mp4")
