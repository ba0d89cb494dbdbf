"""The small text encoder: captions to tokens, padding that does not matter, words learnt from the captions."""

import warnings

import pytest
import torch

from walt_pl.text.small_encoder import SmallTextConfig, SmallTextEncoder, train_vocabulary

CAPTIONS = [
    f"a {colour} {shape} moving {way}" for colour in ("red", "blue", "green") for shape in ("circle", "square") for way in ("left", "up")
]
TINY = SmallTextConfig(width=16, depth=2, num_heads=2, vocab_size=48, max_length=12)


@pytest.fixture(scope="module")
def vocabulary() -> bytes:
    return train_vocabulary(CAPTIONS, TINY.vocab_size)


@pytest.fixture
def encoder(vocabulary: bytes) -> SmallTextEncoder:
    torch.manual_seed(0)
    encoder = SmallTextEncoder(TINY).requires_grad_(False)
    encoder.load_vocabulary(vocabulary)
    return encoder


def test_small_text_encoder_gives_tokens_and_their_mask(encoder: SmallTextEncoder) -> None:
    tokens, mask = encoder.encode(["red", "a blue circle moving left"])
    assert tokens.shape[::2] == (2, 16) and mask.shape == tokens.shape[:2] and mask.dtype == torch.bool
    assert bool(mask[1].all()) and 1 <= int(mask[0].sum()) < mask.shape[1]
    assert mask[0].tolist() == sorted(mask[0].tolist(), reverse=True), "words first, padding behind"


@pytest.mark.parametrize("training", [True, False])
def test_small_text_encoder_ignores_padding(encoder: SmallTextEncoder, training: bool) -> None:
    """A caption reads the same alone and beside a longer one, in training and in evaluation mode."""
    encoder.train(training)
    alone, own = encoder.encode(["red circle"])
    beside, mask = encoder.encode(["red circle", "a blue circle moving left"])
    assert mask.shape[1] > own.shape[1]
    torch.testing.assert_close(beside[0, : own.shape[1]], alone[0], atol=1e-5, rtol=1e-5)


def test_small_text_encoder_ignores_case_and_outer_space(encoder: SmallTextEncoder) -> None:
    assert torch.equal(encoder.encode(["  A Red circle "])[0], encoder.encode(["a red circle"])[0])


def test_small_text_encoder_depends_on_words_and_their_order(encoder: SmallTextEncoder) -> None:
    red, blue, turned = (encoder.encode([caption])[0] for caption in ("a red circle", "a blue circle", "a circle red"))
    assert red.shape != blue.shape or not torch.allclose(red, blue)
    assert red.shape != turned.shape or not torch.allclose(red, turned)


def test_small_text_encoder_tells_untrained_words_apart(encoder: SmallTextEncoder) -> None:
    """Super-resolution learns from a frozen encoder, whose base model may have unlearnt the words of fine texture."""
    for layer in encoder.layers.layers:
        layer.self_attn.out_proj.weight.zero_()
        layer.linear2.weight.zero_()
    encoder.layers.norm.weight.zero_()
    one, other = encoder(torch.tensor([[3, 4, 5], [3, 6, 5]]), torch.ones(2, 3, dtype=torch.bool))
    assert ((one - other).norm(dim=-1) > 0.5 * one.norm(dim=-1)).tolist() == [False, True, False]


def test_small_text_encoder_empty_caption_is_one_token(encoder: SmallTextEncoder) -> None:
    tokens, mask = encoder.encode([""])
    assert tokens.shape == (1, 1, 16) and mask.tolist() == [[True]] and bool(tokens.isfinite().all())


def test_small_text_encoder_no_captions_are_an_empty_batch(encoder: SmallTextEncoder) -> None:
    tokens, mask = encoder.encode([])
    assert tokens.shape == (0, 1, 16) and mask.shape == (0, 1) and mask.dtype == torch.bool


def test_small_text_encoder_truncates_long_captions(encoder: SmallTextEncoder) -> None:
    tokens, mask = encoder.encode(["a red circle moving left " * 10])
    assert tokens.shape == (1, 12, 16) and bool(mask.all())


def test_small_text_encoder_counts_cut_captions_and_warns_once(vocabulary: bytes) -> None:
    short = SmallTextEncoder(TINY)
    short.load_vocabulary(vocabulary)
    pieces = len(short.encode(["a red circle"])[1][0])
    encoder = SmallTextEncoder(SmallTextConfig(width=16, depth=1, num_heads=2, vocab_size=48, max_length=pieces))
    encoder.load_vocabulary(vocabulary)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["a red circle", "a circle"])  # just as long as there is room, and shorter
    assert encoder.truncated == 0
    with pytest.warns(UserWarning, match=rf"text\.max_length is {pieces}, but a caption has") as warned:
        encoder.encode(["a red circle left", "a red circle up"])
    assert encoder.truncated == 2 and len(warned) == 1


def test_small_text_encoder_accepts_unknown_letters(encoder: SmallTextEncoder) -> None:
    assert bool(encoder.encode(["Ωβ 日本"])[0].isfinite().all())


def test_train_vocabulary_is_equal_for_equal_captions(vocabulary: bytes) -> None:
    assert train_vocabulary([*reversed(CAPTIONS), *CAPTIONS, " "], TINY.vocab_size) == vocabulary


def test_train_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match='index column "caption"'):
        train_vocabulary(["", "  "], 48)


def test_small_text_encoder_refuses_a_vocabulary_larger_than_its_embedding(vocabulary: bytes) -> None:
    small = SmallTextEncoder(SmallTextConfig(16, 1, 2, vocab_size=8))
    with pytest.raises(ValueError, match="room for 8"):
        small.load_vocabulary(vocabulary)


def test_small_text_encoder_without_a_vocabulary_says_so() -> None:
    with pytest.raises(RuntimeError, match="load_vocabulary"):
        SmallTextEncoder(TINY).encode(["red"])


def test_small_text_config_requires_a_width_that_num_heads_divides() -> None:
    with pytest.raises(ValueError, match=r"text\.width must be a multiple of text\.num_heads"):
        SmallTextConfig(width=16, num_heads=3)
