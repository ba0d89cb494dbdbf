"""Moving pictures share the bytes that are left for them."""

import io

import pytest
from PIL import Image

from tests.helpers.run_logs import noise_gif
from walt_pl.report.blocks import MovingPicture
from walt_pl.report.budget import base64_bytes, encode_pictures


def pictures(count: int, side: int = 64) -> list[MovingPicture]:
    return [MovingPicture(f"{n}", f"{n}", lambda n=n: noise_gif(2, side, seed=n)) for n in range(count)]  # type: ignore[misc]


def size_of(shown: list[MovingPicture]) -> int:
    return sum(base64_bytes(len(one.moving)) + base64_bytes(len(one.still)) for one in shown)


@pytest.mark.parametrize(("room", "width"), [(1_000_000, 320), (250_000, 240)])
def test_encode_pictures_fit_into_their_room(room: int, width: int) -> None:
    shown = pictures(2, side=320)
    assert encode_pictures(shown, room) == []
    assert room // 4 < size_of(shown) <= room and {one.size for one in shown} == {(width, width)}
    assert not any(one.left_out for one in shown)
    with Image.open(io.BytesIO(shown[0].moving)) as picture:
        assert picture.size == shown[0].size and picture.n_frames > 1  # type: ignore[attr-defined]
    with Image.open(io.BytesIO(shown[0].still)) as picture:
        assert picture.size == shown[0].size and getattr(picture, "n_frames", 1) == 1


def test_encode_pictures_leave_out_what_has_no_room() -> None:
    shown = pictures(2)
    assert encode_pictures(shown, 100) == [] and size_of(shown) == 0
    assert {one.left_out for one in shown} == {"This picture is left out to keep the page small."}


def test_encode_pictures_name_a_picture_that_cannot_be_read() -> None:
    broken = MovingPicture("after 9 steps", "preview", lambda: b"GIF89a")
    shown = [broken, *pictures(1)]
    (problem,) = encode_pictures(shown, 1_000_000)
    assert problem.startswith("after 9 steps: not a picture that can be read")
    assert broken.left_out and shown[1].moving
