"""Options of commands that are plain functions: how they are typed, and how the help shows them."""

from collections.abc import Sequence

import pytest

from walt_pl.cli.function_command import call, parser_of


def render(clip: str, continue_: str | None = None, crop: bool = False) -> None:
    """Print the options.

    Args:
        clip: first clip.
        continue_: second clip.
        crop: a switch.
    """
    print(clip, continue_, crop)


def test_function_command_keyword_option_is_typed_and_shown_without_underscore(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["a.mp4", "--continue", "b.mp4"], ["a.mp4", "--continue=b.mp4"]):
        call(render, words)
        assert capsys.readouterr().out == "a.mp4 b.mp4 False\n"
    shown = parser_of(render).format_help()
    assert "--continue CONTINUE" in shown and "continue_" not in shown
    with pytest.raises(ValueError, match="continu"):
        call(render, ["a.mp4", "--continu", "b.mp4"])


def test_function_command_switch_needs_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["a", "--crop"], ["--crop", "a"], ["a", "--crop", "true"], ["a", "--crop=true"]):
        call(render, words)
        assert capsys.readouterr().out == "a None True\n"
    call(render, ["a", "--crop", "false"])
    assert capsys.readouterr().out == "a None False\n"


def test_function_command_keyword_only_arguments_are_no_options() -> None:
    told: dict[str, object] = {}

    def paint(picture: str, *, given: Sequence[str] = ()) -> None:
        """Paint.

        Args:
            picture: a picture.
            given: words that are no option.
        """
        told.update(picture=picture, given=given)

    call(paint, ["a.png"], given=["x"])
    assert told == {"picture": "a.png", "given": ["x"]} and "given" not in parser_of(paint).format_help()
    with pytest.raises(ValueError, match="--given"):
        call(paint, ["a.png", "--given", "x"])
