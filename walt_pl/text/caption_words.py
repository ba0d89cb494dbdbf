"""Words of the training captions, which an artifact keeps beside the vocabulary of its small text encoder."""

import re
import warnings
from collections.abc import Iterable, Sequence

from walt_pl.plain_text import unify

WORDS = "words.txt"
"""File of an artifact: every word of the training captions, in lower case, sorted, one a line."""


def words_of(caption: str) -> list[str]:
    """Return the words of a caption in lower case, in order: runs of letters, digits and apostrophes."""
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", unify(caption).lower())


def caption_words(captions: Iterable[str], before: bytes = b"") -> bytes:
    """Return the content of `WORDS` for training captions.

    Args:
        captions: of the training split.
        before: the words that the initial weights were trained with, in the same form.
    """
    words = set(before.decode().split())
    for caption in captions:
        words.update(words_of(caption))
    return "".join(f"{word}\n" for word in sorted(words)).encode()


def unseen_words(words: bytes, prompts: Sequence[str]) -> list[str]:
    """Return the words of the prompts that no training caption had, each once, in the order of the prompts.

    Args:
        words: content of `WORDS`; empty where they are not known, and then no word counts as unseen.
        prompts: to sample from.
    """
    seen = set(words.decode(errors="replace").split())
    if not seen:
        return []
    return [word for word in dict.fromkeys(word for prompt in prompts for word in words_of(prompt)) if word not in seen]


def warn_of_unseen(words: bytes, prompts: Sequence[str]) -> None:
    """Warn once of all words of the prompts that no training caption had, see `unseen_words`."""
    unseen = unseen_words(words, prompts)
    if unseen:
        warnings.warn(
            f"no training caption has the words {', '.join(unseen)}: the model has never seen them, and the clips may not show them",
            stacklevel=3,
        )
