"""Moving pictures for pages: smaller, complete and bounded."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.helpers.run_logs import noise_gif
from walt_pl.media import animation
from walt_pl.media.animation import encode_webp, read_animation
from walt_pl.media.types import MediaError


def test_read_animation_keeps_frames_time_and_comment() -> None:
    found = read_animation(noise_gif(frames=6, side=32, comment="a red circle\na bar"))
    assert (len(found.frames), found.size, found.milliseconds, found.comment) == (6, (32, 32), 100, "a red circle\na bar")
    few = read_animation(noise_gif(frames=6, side=32), most_frames=3)
    assert (len(few.frames), few.milliseconds) == (3, 200)
    assert np.array_equal(np.asarray(few.frames[-1]), np.asarray(found.frames[-1]))


@pytest.mark.parametrize(("width", "size"), [(64, (64, 32)), (16, (16, 8))])
def test_encode_webp_plays_all_frames_and_never_enlarges(width: int, size: tuple[int, int]) -> None:
    frames = [Image.new("RGB", (64, 32), (0, 60 * number, 0)) for number in range(4)]
    content = encode_webp(animation.Animation(frames, 90), width, quality=75)
    with Image.open(io.BytesIO(content)) as picture:
        assert (picture.format, picture.n_frames, picture.size, picture.info["loop"]) == ("WEBP", 4, size, 0)  # type: ignore[attr-defined]
        for number in range(4):
            picture.seek(number)
            assert np.abs(np.asarray(picture.convert("RGB"), int)[4, 4] - (0, 60 * number, 0)).max() < 8
            picture.load()
            assert picture.info["duration"] == 90


def test_read_animation_refuses_what_is_no_picture_or_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n", noise_gif()[:200]):
        with pytest.raises(MediaError, match="not a picture that can be read"):
            read_animation(content)
    monkeypatch.setattr(animation, "MAX_SIDE", 40)
    with pytest.raises(MediaError, match="a picture of 48 x 48 pixels, at most 40 a side are read"):
        read_animation(noise_gif(side=48))


def test_read_animation_decodes_no_more_values_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(animation, "MAX_VALUES", 3 * 48 * 48)
    assert len(read_animation(noise_gif(frames=8, side=48)).frames) == 3
    monkeypatch.setattr(animation, "MAX_COMMENT", 5)
    assert read_animation(noise_gif(comment="a long comment")).comment == "a lon"
