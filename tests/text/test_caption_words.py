"""Words of captions and prompts, in whatever Unicode form they were typed."""

import unicodedata

import pytest

from walt_pl.text.caption_words import caption_words, unseen_words
from walt_pl.text.small_encoder import train_vocabulary


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_unseen_words_are_equal_in_every_unicode_form(form: str, other: str) -> None:
    words = caption_words([unicodedata.normalize(form, "un caf\xe9 noir")])
    assert unseen_words(words, [unicodedata.normalize(other, "Caf\xe9 noir cr\xe8me")]) == ["cr\xe8me"]
    assert caption_words(["a dog's tail"]) == b"a\ndog's\ntail\n"


def test_small_text_encoder_pieces_are_equal_in_every_unicode_form() -> None:
    """The vocabulary normalises by itself (NFKC), so that tokens never depended on the form or on white space."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=train_vocabulary(["un caf\xe9 noir", "a dog runs"], 64))
    assert pieces.encode(unicodedata.normalize("NFD", "caf\xe9")) == pieces.encode("caf\xe9")
    assert pieces.encode("a\ndog\u2028runs") == pieces.encode("a dog runs")
