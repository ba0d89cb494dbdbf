"""Hostile images and videos are findings of the index command. None of them ends it, starts a program or reaches another file."""

import csv
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.clips import counting_clip
from tests.helpers.hostile_media import fake_programs, write_hostile_media
from walt_pl.cli.main import main
from walt_pl.data.index_table import read_table
from walt_pl.indexing.doctor import write_rows
from walt_pl.media.writing import write_image, write_video

FINDINGS = {
    "eps.png": "corrupt: not an image that can be read",
    "svg.png": "corrupt: not an image that can be read",
    "large.png": "too large: 40,000 x 40,000 = 1,600,000,000 pixels, at most 200,000,000 wanted (index --max-pixels, data.max_pixels)",
    "text.png": "corrupt: not an image that can be read",
    "concat.mp4": "corrupt: not a video that can be read",
    "hls.mp4": "corrupt: not a video that can be read",
    "times.mp4": "truncated: ",
    "pipe.mp4": "missing: not a plain file",
    "loop.png": "missing: not a plain file",
    "device.mp4": "missing: not a plain file",
}


def findings(index: Path) -> dict[str, str]:
    """Return the reasons of the quarantine list by the names of the files."""
    with index.with_suffix(".quarantine.csv").open() as rows:
        return {Path(row["path"]).name: row["reason"] for row in csv.DictReader(rows)}


def test_index_command_names_hostile_files_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "secret.mp4", counting_clip(20), 8)
    (tmp_path / "all").mkdir()
    (tmp_path / "media").mkdir()
    write_hostile_media(tmp_path / "all", tmp_path / "secret.mp4", port=9)
    for name in FINDINGS:
        shutil.move(tmp_path / "all" / name, tmp_path / "media" / name)
    shutil.copy(tmp_path / "secret.mp4", tmp_path / "media")
    monkeypatch.setenv("PATH", f"{fake_programs(tmp_path / 'bin', tmp_path / 'ran')}{os.pathsep}{os.environ['PATH']}")
    main(["index", str(tmp_path / "media"), "--out", str(tmp_path / "a.parquet"), "--workers", "1"])
    found = findings(tmp_path / "a.parquet")
    assert found.keys() == FINDINGS.keys()
    assert not {name: found[name] for name, begin in FINDINGS.items() if not found[name].startswith(begin)}
    frames = dict(zip(*(read_table(tmp_path / "a.parquet")[name].to_pylist() for name in ("path", "frames")), strict=True))
    assert frames["media/secret.mp4"] == 20 and sum(frames.values()) == 20
    assert not (tmp_path / "ran").exists()


def test_index_command_max_pixels_is_a_finding_until_it_is_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "media" / "a.png", counting_clip(1)[0])
    write_video(tmp_path / "media" / "a.mp4", counting_clip(20), 8)
    index = ["index", str(tmp_path / "media"), "--out", str(tmp_path / "a.parquet"), "--workers", "1", "--report"]
    main([*index, "--max-pixels", "6143"])
    said = "too large: 96 x 64 = 6,144 pixels, at most 6,143 wanted (index --max-pixels, data.max_pixels)"
    assert findings(tmp_path / "a.parquet") == {"a.png": said, "a.mp4": said}
    assert "too large" in capsys.readouterr().out
    main([*index, "--max-pixels", "6144"])
    assert not (tmp_path / "a.quarantine.csv").exists()
    with pytest.raises(SystemExit, match="--max-pixels must be at least 1, got 0"):
        main([*index, "--max-pixels", "0"])


def test_index_command_counts_animated_images_and_values_of_unknown_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.new("RGB", (24, 16), (level, 0, 0)) for level in (0, 100, 200)]
    (tmp_path / "media").mkdir()
    for name in ("b.webp", "c.png"):
        frames[0].save(tmp_path / "media" / name, save_all=True, append_images=frames[1:])
    Image.new("F", (24, 16), 0.5).save(tmp_path / "media" / "d.tiff")
    frames[0].save(tmp_path / "media" / "e.png")
    main(["index", str(tmp_path / "media"), "--out", str(tmp_path / "a.parquet"), "--workers", "1", "--report"])
    found = findings(tmp_path / "a.parquet")
    assert {name: reason[:33] for name, reason in found.items()} == {
        "b.webp": "animated: a WEBP of 3 frames, wan",
        "c.png": "animated: a PNG of 3 frames, want",
        "d.tiff": "unknown range: found floating poi",
    }
    said = capsys.readouterr().out
    assert re.search(r"animated\W+2\W+no", said) and re.search(r"unknown range\W+1\W+no", said), "counted, and not loaded"


def test_write_rows_replaces_only_a_table_of_its_own(tmp_path: Path) -> None:
    table, columns = tmp_path / "index.report.csv", ("path", "offset", "begin", "end", "split", "kind", "finding")
    write_rows(table, columns, [])
    write_rows(table, columns, [("a.mp4", -1, 0.0, 0.0, "train", "video", "short")])
    assert "a.mp4" in table.read_text()
    table.write_text("mine\n")
    with pytest.raises(ValueError, match="is no table of this program and is not replaced"):
        write_rows(table, columns, [])
    assert table.read_text() == "mine\n"
