"""Sizes of a small text encoder that fit a set of captions."""

from collections.abc import Sequence
from dataclasses import dataclass

from walt_pl.text.small_encoder import train_vocabulary

MOST_PIECES = 4096
"""Pieces of the vocabulary, where the letters of the captions need no more."""
LARGEST_VOCABULARY = 65536
MOST_TOKENS = 128
"""Largest number of tokens of a caption: that of the paper's text-to-video model."""


@dataclass(frozen=True)
class CaptionLengths:
    """The vocabulary and the length that captions need."""

    vocab_size: int
    """Rows of the embedding: the pieces that were learnt, rounded up."""
    max_length: int
    """Tokens of a caption, rounded up, and at most `MOST_TOKENS`."""
    longest: int
    """Tokens of the longest caption."""
    cut: int
    """Captions with more than `max_length` tokens."""


def measure_captions(captions: Sequence[str]) -> CaptionLengths:
    """Learn a vocabulary as training does, and count the tokens of each caption.

    Raises:
        ValueError: No vocabulary can be learnt from them.
    """
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=_learn(captions))
    lengths = [len(pieces.encode(caption.strip().lower())) for caption in captions]
    max_length = min(MOST_TOKENS, _round_up(max(lengths), 8))
    vocab_size = max(256, _round_up(len(pieces), 256))
    return CaptionLengths(vocab_size, max_length, max(lengths), sum(length > max_length for length in lengths))


def _learn(captions: Sequence[str]) -> bytes:
    """Return the sentencepiece model of the smallest vocabulary, from `MOST_PIECES` on, that holds the letters of the captions."""
    size = MOST_PIECES
    while True:
        try:
            return train_vocabulary(captions, size)
        except RuntimeError as error:  # sentencepiece has no other: too many letters for the size, or no caption below 4,192 bytes
            if size >= LARGEST_VOCABULARY:
                raise ValueError(f"text: no vocabulary can be learnt from the captions: {str(error)[:400]}") from error
            size *= 2


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
