"""Names of the files of `sample`: those of an earlier command stay, and those of one command have one name."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers.clips import counting_clip
from tests.helpers.hostile_media import write_hostile_media
from walt_pl.cli.sample import _encode_context
from walt_pl.cli.sample_files import check_out, free_paths, write_clips
from walt_pl.media.types import MediaError
from walt_pl.media.writing import write_video

CLIPS = [torch.zeros(1, 3, 2, 16, 16), torch.ones(1, 3, 2, 16, 16)]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_sample_files_second_call_in_a_folder_takes_a_free_name(tmp_path: Path) -> None:
    out = str(tmp_path) + "/new/"
    check_out(out, overwrite=False)
    said = write_clips(out, CLIPS[:1], ["a"], 8)
    first = (tmp_path / "new" / "clip.mp4").read_bytes()
    assert f"{tmp_path}/new/clip.mp4, {tmp_path}/new/clip.gif, {tmp_path}/new/clip.png" == said
    write_clips(str(tmp_path / "new"), CLIPS[1:], ["b"], 8)
    assert names(tmp_path / "new") == {f"clip{number}.{ending}" for number in ("", "-2") for ending in ("mp4", "gif", "png")}
    assert (tmp_path / "new" / "clip.mp4").read_bytes() == first
    write_clips(str(tmp_path / "new"), CLIPS, ["a", "b"], 8)
    assert {"clip-3_000.mp4", "clip-3_001.mp4", "clip-3.gif", "clip-3.png"} < names(tmp_path / "new")


@pytest.mark.parametrize("taken", ["clip.mp4", "clip.gif", "clip.png", "clip_000.mp4", "clip_1234.mp4"])
def test_sample_files_name_is_free_only_if_no_file_of_a_call_has_it(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).touch()
    assert next(free_paths(tmp_path / "clip.mp4")) == tmp_path / "clip-2.mp4"
    with pytest.raises(ValueError, match=f"{taken} of .* exists; .*--overwrite true"):
        check_out(str(tmp_path / "clip.mp4"), overwrite=False)
    check_out(str(tmp_path / "clip.mp4"), overwrite=True)


@pytest.mark.parametrize("free", ["clips.mp4", "clip-2.gif", "clip_00.mp4", "clip_000.gif", "clip.txt"])
def test_sample_files_of_other_names_do_not_count(tmp_path: Path, free: str) -> None:
    (tmp_path / free).touch()
    assert next(free_paths(tmp_path / "clip.mp4")) == tmp_path / "clip.mp4"
    check_out(str(tmp_path / "clip.mp4"), overwrite=False)


def test_sample_files_free_name_is_chosen_when_the_first_clip_is_there(tmp_path: Path) -> None:
    def sample_slowly():  # type: ignore[no-untyped-def]
        (tmp_path / "clip.mp4").write_text("of another command")
        yield CLIPS[0]

    write_clips(str(tmp_path), sample_slowly(), ["a"], 8)
    assert (tmp_path / "clip.mp4").read_text() == "of another command" and (tmp_path / "clip-2.mp4").exists()


def test_sample_files_overwrite_replaces_and_names_what_is_left(tmp_path: Path) -> None:
    out = str(tmp_path / "mine.mp4")
    write_clips(out, CLIPS, ["a", "b"], 8)
    before = (tmp_path / "mine.gif").read_bytes()
    assert write_clips(out, CLIPS[1:], ["b"], 8).endswith("mine.png (mine_000.mp4, mine_001.mp4 beside them: of an earlier command)")
    assert (tmp_path / "mine.gif").read_bytes() != before


@pytest.mark.parametrize("out", ["clip.gif", "clip", "runs/clip.mov"])
def test_sample_files_out_is_a_folder_or_an_mp4(out: str) -> None:
    with pytest.raises(ValueError, match=r"must end in .mp4, or in / for a folder"):
        check_out(out, overwrite=True)


@pytest.mark.parametrize("option", ["image", "clip"])
def test_sample_refuses_hostile_images_and_clips_before_the_models_see_them(option: str, tmp_path: Path) -> None:
    """PostScript starts no Ghostscript, and a list of files opens none."""
    write_video(tmp_path / "secret.mp4", counting_clip(20), 8)
    (tmp_path / "media").mkdir()
    write_hostile_media(tmp_path / "media", tmp_path / "secret.mp4", port=9)
    cascade: Any = SimpleNamespace(
        overlap=1, fps=None, base="base", artifacts={}, encode_context=lambda *_: pytest.fail("pictures were given on")
    )
    for name in ("eps.png", "large.png", "pipe.png") if option == "image" else ("concat.mp4", "hls.mp4", "pipe.mp4"):
        path = str(tmp_path / "media" / name)
        given = (path, None) if option == "image" else (None, path)
        with pytest.raises(MediaError, match=f"^{path}: (not a|too large|no such file)"):
            _encode_context(cascade, *given, crop=False)


def test_write_clips_of_two_commands_at_once_takes_two_names(tmp_path: Path) -> None:
    def sample_beside(out: str, overwrite: bool) -> Iterator[torch.Tensor]:
        yield CLIPS[0]
        write_clips(out, CLIPS[1:], ["b"], 8, overwrite)  # the first command has its name, and is not finished
        yield CLIPS[1]

    said = write_clips(f"{tmp_path}/", sample_beside(f"{tmp_path}/", overwrite=True), ["a", "b"], 8)
    assert "clip_000.mp4 .. clip_001.mp4" in said and (tmp_path / "clip-2.mp4").exists()
    assert not list(tmp_path.glob(".*"))


def test_write_clips_never_replaces_what_came_while_it_sampled(tmp_path: Path) -> None:
    out = tmp_path / "mine.mp4"

    def sample_slowly() -> Iterator[torch.Tensor]:
        out.write_bytes(b"of another command")
        yield CLIPS[0]

    assert "mine-2.mp4" in write_clips(str(out), sample_slowly(), ["a"], 8, overwrite=False)
    assert out.read_bytes() == b"of another command"
