"""Text encoders: captions to tokens that the denoiser attends to.

`TextEncoder` is the interface. The encoder here is small and trained together with the base model. Super-resolution stages load
it, frozen, from the base's artifact. Pretrained encoders, such as the paper's T5-XL, are in `walt_pl.text.pretrained_encoder`.
"""

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from walt_pl.blocks.cudnn_attention import disable_cudnn_attention
from walt_pl.blocks.transfer import to_device
from walt_pl.runs.artifact import Artifact

VOCABULARY = "tokenizer.model"
"""Extra file of an artifact: the sentencepiece model of its small text encoder."""


MAX_VOCABULARY_BYTES = 16 << 20
"""Bytes of a sentencepiece model: that of mT5 with 250,000 pieces has 4 MB."""


class TextEncoder(Protocol):
    """Interface of a text encoder, as stages use it."""

    width: int
    """Channels of a token."""

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode captions as tokens [s l e] and their mask [s l] (true = a word)."""
        ...


MAX_TEXT = 1 << 16
"""Largest width and length of a pretrained encoder's tokens."""


@dataclass(frozen=True)
class SmallTextConfig:
    """A small transformer over a sentencepiece vocabulary learnt from the training captions."""

    width: int = 128
    """Channels of a token."""
    depth: int = 2
    """Transformer layers."""
    num_heads: int = 4
    """Attention heads."""
    vocab_size: int = 256
    """Largest number of pieces in the vocabulary."""
    max_length: int = 16
    """Largest number of tokens of a caption; longer captions are truncated."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"text.width must be a multiple of text.num_heads, got {self.width} and {self.num_heads}")


@dataclass(frozen=True)
class PretrainedTextConfig:
    """A pretrained text encoder, frozen."""

    kind: Literal["t5", "clip", "auto"]
    """Library that reads it: t5 is transformers' T5EncoderModel, clip open_clip's text tower, auto transformers' AutoModel."""
    path: str
    """Local folder or hub name; for clip MODEL@FILE, an open_clip model name and its local weight file."""
    width: int
    """Channels of a token."""
    max_length: int = 128
    """Largest number of tokens of a caption; longer captions are truncated."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of its weights and arithmetic."""

    def __post_init__(self) -> None:
        # An artifact may hold any values.
        if self.kind not in ("t5", "clip", "auto") or self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"text: wanted kind t5, clip or auto and dtype float32, bfloat16 or float16, got {self.kind!r} and {self.dtype!r}"
            )
        if not isinstance(self.path, str) or not self.path or "\0" in self.path:
            raise ValueError(f"text.path: wanted a folder or a hub name, got {self.path!r}")
        for name in ("width", "max_length"):
            if not isinstance(getattr(self, name), int) or not 0 < getattr(self, name) <= MAX_TEXT:
                raise ValueError(f"text.{name} must lie between 1 and {MAX_TEXT:,}, got {getattr(self, name)!r}")


def train_vocabulary(captions: Iterable[str], size: int) -> bytes:
    """Train a sentencepiece BPE model on captions.

    Args:
        captions: of the training split.
        size: largest number of pieces.

    Returns:
        Bytes of the model's file.

    Raises:
        ValueError: there is no caption to learn from.
    """
    import sentencepiece

    unique = sorted({caption.strip().lower() for caption in captions if caption.strip()})
    if not unique:
        raise ValueError('text: no caption in the training split; the small text encoder learns its words from the index column "caption"')
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(unique),
        model_writer=model,
        vocab_size=size,
        hard_vocab_limit=False,
        model_type="bpe",
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


class SmallTextEncoder(nn.Module):
    """Small transformer over sentencepiece ids.

    The vocabulary is not a parameter: `load_vocabulary` sets it, from training or from the artifact's `tokenizer.model`.
    """

    def __init__(self, config: SmallTextConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.vocabulary = b""
        self.words = b""
        self.truncated = 0
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Parameter(0.02 * torch.randn(config.max_length, config.width))
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.num_heads,
            4 * config.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, config.depth, nn.LayerNorm(config.width), enable_nested_tensor=False)

    def load_vocabulary(self, vocabulary: bytes, words: bytes = b"") -> None:
        """Set the vocabulary.

        Args:
            vocabulary: bytes of a sentencepiece model's file.
            words: of the training captions, as `walt_pl.text.caption_words.caption_words` returns them; empty where they are not known.

        Raises:
            ValueError: it is no sentencepiece model, or has more pieces than the embedding has rows.
        """
        import sentencepiece

        if len(vocabulary) > MAX_VOCABULARY_BYTES:
            raise ValueError(f"text: a tokenizer has {len(vocabulary):,} bytes, at most {MAX_VOCABULARY_BYTES:,} wanted")
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
        except (RuntimeError, OSError, TypeError, ValueError) as error:
            told = str(error).splitlines()[0] if str(error) else "no reason given"
            raise ValueError(f"text: {VOCABULARY} is no sentencepiece model ({told}): export the stage again") from error
        if len(self._pieces) > self.config.vocab_size:
            raise ValueError(f"text.vocab_size: the tokenizer has {len(self._pieces)} pieces, the model room for {self.config.vocab_size}")
        self.vocabulary = vocabulary
        self.words = words

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode captions.

        Returns:
            Tokens [s l e] and their mask [s l] (true = a word). An empty caption has one token, the padding.

        Raises:
            RuntimeError: there is no vocabulary yet.
        """
        if not self.vocabulary:
            raise RuntimeError("text: no vocabulary yet; call load_vocabulary first")
        if not captions:
            return self.position.new_zeros(0, 1, self.width), torch.zeros(0, 1, dtype=torch.bool, device=self.position.device)
        pieces = [self._truncate(self._pieces.encode(caption.strip().lower())) or [0] for caption in captions]
        length = max(len(row) for row in pieces)
        device = self.position.device
        ids = to_device(torch.tensor([row + [0] * (length - len(row)) for row in pieces]), device)
        mask = to_device(torch.tensor([[i < len(row) for i in range(length)] for row in pieces]), device)
        return self(ids, mask), mask

    def _truncate(self, ids: list[int]) -> list[int]:
        """Return at most `max_length` of the ids. Truncated captions are counted, and the first one warns."""
        if len(ids) > self.config.max_length:
            self.truncated += 1
            if self.truncated == 1:
                warnings.warn(
                    f"text.max_length is {self.config.max_length}, but a caption has {len(ids)} pieces: its end is cut off, as of every "
                    "longer one",
                    stacklevel=3,
                )
        return ids[: self.config.max_length]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return tokens [s l e] of piece ids [s l] and their mask [s l]."""
        disable_cudnn_attention()
        words = self.embedding(ids)
        out: Tensor = self.layers(words + self.position[: ids.shape[1]], src_key_padding_mask=~mask)
        # Add the word embeddings to the output of the layers. The base model trains this encoder, and needs no words for fine texture:
        # the layers made such words nearly equal. Super-resolution needs these words, and uses the encoder frozen.
        return out + words


def trained_text_encoder(artifact: Artifact) -> SmallTextEncoder | None:
    """Return the text encoder that was trained with the model of an artifact, with its vocabulary; None if there is none."""
    text = artifact.models.get("text")
    if text is None:
        return None
    assert isinstance(text, SmallTextEncoder)
    text.load_vocabulary(artifact.read(VOCABULARY))
    return text
