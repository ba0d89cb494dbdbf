"""Captions as tables and shards write them."""

import time

import pytest

from walt_pl.data.caption_values import read_captions


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        (None, ()),
        ("", ()),
        (" \n ", ()),
        ("a  dog\nruns", ("a dog runs",)),
        (["a dog", "a cat"], ("a dog", "a cat")),
        (["a dog"], ("a dog",)),
        ([], ()),
        (["", None, " ", "a dog"], ("a dog",)),
        (["a dog", "a dog", "a cat"], ("a dog", "a dog", "a cat")),
        (["['a dog', 'a cat']"], ("['a dog', 'a cat']",)),
        ("a dog [brown]", ("a dog [brown]",)),
        ("[a dog]", ("[a dog]",)),
        ('("hello")', ('("hello")',)),
        ("'a dog', 'a cat'", ("'a dog', 'a cat'",)),
        ('"a dog"', ('"a dog"',)),
        ("[']", ("[']",)),
        ("nan", ("nan",)),
    ],
)
def test_read_captions_returns_the_texts_of_a_value(value: object, captions: tuple[str, ...]) -> None:
    assert read_captions(value) == captions


@pytest.mark.parametrize("value", [5, 0, 2.5, True, False, {"en": "a dog"}, {}, float("nan")])
def test_read_captions_refuses_values_that_are_no_text(value: object) -> None:
    with pytest.raises(ValueError, match="must be text, or a list of texts like"):
        read_captions(value)


@pytest.mark.parametrize("value", [["a dog", 3], ["a dog", ["a cat"]], ["a dog", {}], ["a dog", False]])
def test_read_captions_refuses_lists_of_other_values(value: object) -> None:
    with pytest.raises(ValueError, match="number 2 of its list must be text"):
        read_captions(value)


@pytest.mark.parametrize(
    "text",
    [
        "['a dog', 'a cat']",
        '["a dog", "a cat"]',
        """["a dog's ball", 'a cat']""",
        "['a dog'\n 'a cat']",  # of a NumPy array
        "['a dog',]",
        "[]",
        "('a dog', 'a cat')",
        "{'a dog', 'a cat'}",
        "{'en': 'a dog'}",
        '{"a dog","a cat"}',  # of PostgreSQL
    ],
)
def test_read_captions_refuses_the_text_of_a_list(text: str) -> None:
    with pytest.raises(ValueError, match=r"the text of a list, .*write a list"):
        read_captions(text)


def test_read_captions_of_a_mebibyte_of_quotes_is_fast() -> None:
    start = time.process_time()
    for text in ("(" + "' " * (1 << 19) + "'x)", "['" + " ," * (1 << 19) + "]"):
        read_captions(text)
    assert time.process_time() - start < 5
