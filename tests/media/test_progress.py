"""Progress of reading a video, and the end of one that goes round in circles."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.clips import counting_clip
from walt_pl.media import probing
from walt_pl.media.media_file import Media
from walt_pl.media.probing import probe
from walt_pl.media.progress import ReportingContainer
from walt_pl.media.types import MediaError
from walt_pl.media.writing import write_video


class Circle:
    """A demuxer that gives one packet for ever, with a frame in each."""

    class Packet:
        def decode(self) -> list[str]:
            return ["frame"]

    def demux(self, *streams: Any) -> Iterator[Packet]:
        return repeat(Circle.Packet())


def test_probe_reports_each_frame_of_every_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", counting_clip(30), 8)
    signs: list[None] = []
    assert probe(tmp_path / "a.mp4", progress=lambda: signs.append(None)).frames == 30
    both = len(signs)
    monkeypatch.setattr(probing, "_right_decoder", lambda *arguments: "pyav")
    signs.clear()
    probe(tmp_path / "a.mp4", progress=lambda: signs.append(None))
    assert len(signs) >= 30 and both >= len(signs) + 30, "also those that the comparison of decoders finds"


@pytest.mark.parametrize("offset", [-1, 2])
def test_reporting_container_ends_a_file_of_more_packets_than_bytes(tmp_path: Path, offset: int) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x" * 12)
    container = ReportingContainer(Circle(), Media(tmp_path / "a.mp4", offset, 10), lambda: None)
    most = 12 if offset < 0 else 10
    for endless in (container.demux(), container.decode()):
        found = []
        with pytest.raises(MediaError, match=f"more packets than its {most} bytes"):
            found += [next(endless) for _ in range(most + 1)]
            next(endless)
        assert len(found) == most + 1
