"""Values that are read from a stored training configuration."""

import pytest

from walt_pl.media.decode_options import DecodeOptions
from walt_pl.runs.stored_config import clip_arguments, stored_background


def test_clip_arguments_carry_the_background_as_reading_wants_it() -> None:
    given = clip_arguments("data:\n  background:\n  - 255\n  - 255\n  - 255\n", "train.yaml")
    assert DecodeOptions(background=given["background"]) == DecodeOptions(), "equal options share a latent cache"


@pytest.mark.parametrize("value", ["white", "[1, 2]", "[1, 2, 256]", "[1, 2, -1]", "[1, 2, x]", "null"])
def test_stored_background_refuses_what_is_no_colour(value: str) -> None:
    with pytest.raises(ValueError, match=r"^train\.yaml: data\.background of its training configuration is .*wanted plain values"):
        stored_background(f"data:\n  background: {value}\n", "train.yaml")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("deinterlace", value) for value in ("1", "0", "null", "'true'", "[true]", "{on: true}")),
        *(("background", value) for value in ("white", "true", "255", "[1, 2]", "[1, 2, 256]", "[1, 2, true]", "[1, 2, 3.0]", "null")),
    ],
)
def test_clip_arguments_refuse_reading_options_of_a_wrong_type(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^train\.yaml: data\.{name} of its training configuration is .*wanted plain values"):
        clip_arguments(f"data:\n  {name}: {value}\n", "train.yaml")
