"""Captions as the tables and tar shards of a source write them: a text, or a list of texts."""

import re

from walt_pl.plain_text import clean_caption

MAX_CAPTIONS = 1000
"""Captions of a clip; MSR-VTT has 20 and COCO 5."""
_BRACKETS = (("[", "]"), ("(", ")"), ("{", "}"))


def read_captions(value: object) -> tuple[str, ...]:
    """Return the captions that a plain value holds, each as one line. Nulls and empty texts hold none.

    Args:
        value: Cell of a CSV, or value of a JSON.

    Raises:
        ValueError: It is neither a text nor a list of texts, or it is a text that a program made of a list.
    """
    if isinstance(value, list):
        for number, one in enumerate(value, 1):
            if one is not None and not isinstance(one, str):
                raise ValueError(f"number {number} of its list must be text, found {_show(one)}")
        return tuple(filter(None, (clean_caption(one) for one in value if one)))
    if value is None:
        return ()
    if not isinstance(value, str):
        raise ValueError(f'it must be text, or a list of texts like ["a dog", "a cat"], found {_show(value)}')
    text = clean_caption(value)
    if _is_text_of_list(text):
        raise ValueError(
            f'the text of a list, {_show(text)}: write a list, "caption": ["a dog", "a cat"] in a .jsonl or .json, or a row for each '
            "(a caption that really looks so: a list of one)"
        )
    return (text,) if text else ()


def _is_text_of_list(text: str) -> bool:
    """Return whether a text is that of a list, as pandas and str() write it into a cell: "['a dog', 'a cat']"."""
    if text == "[]":
        return True
    inner = text[1:-1].strip(" ,")
    if (text[:1], text[-1:]) not in _BRACKETS or len(inner) < 2 or inner[0] not in "'\"" or inner[-1] not in "'\"":
        return False
    # Captions in round brackets exist: ("hello") is one.
    return text[0] == "[" or re.search(r"""['"] ?[,:] ?['"]""", inner) is not None


def _show(value: object) -> str:
    return " ".join(str(value).split())[:60]
