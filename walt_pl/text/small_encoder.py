"""Text encoders: captions to tokens that the denoiser attends to.

The seam is :class:`TextEncoder`. The encoder here is small and trained together with the base model; SR stages load it frozen from the
base's artifact. Pretrained ones, such as the paper's T5-XL, are in `text_frozen`.
"""

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn


class TextEncoder(Protocol):
    """What a stage needs of a text encoder."""

    width: int
    """Channels of a token."""

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions to tokens [s l e] and their mask [s l] (true = a word)."""
        ...


@dataclass(frozen=True)
class SmallTextConfig:
    """A small transformer over a sentencepiece vocabulary of the captions themselves."""

    width: int = 128
    """Channels of a token."""
    depth: int = 2
    """Transformer layers."""
    num_heads: int = 4
    """Attention heads."""
    vocab_size: int = 256
    """Pieces of the vocabulary at most."""
    max_length: int = 16
    """Tokens of a caption; longer ones are cut."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"text.width must be a multiple of text.num_heads, got {self.width} and {self.num_heads}")


@dataclass(frozen=True)
class PretrainedTextConfig:
    """A pretrained text encoder, frozen."""

    kind: Literal["t5", "clip", "auto"]
    """Which library reads it: transformers' T5EncoderModel, open_clip's text tower, transformers' AutoModel."""
    path: str
    """Local folder or hub name; for clip MODEL@FILE, an open_clip model name and its local weight file."""
    width: int
    """Channels of a token."""
    max_length: int = 128
    """Tokens of a caption; longer ones are cut."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of its weights and arithmetic."""


def train_vocabulary(captions: Iterable[str], size: int) -> bytes:
    """A sentencepiece BPE model of at most ``size`` pieces, as the bytes of its file.

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
    """Sentencepiece ids through a transformer of our own.

    The vocabulary is no parameter: :meth:`load_vocabulary` gives it, from training or from the artifact's ``tokenizer.model``.
    """

    def __init__(self, config: SmallTextConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.vocabulary = b""
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

    def load_vocabulary(self, vocabulary: bytes) -> None:
        """Take a sentencepiece model, given as the bytes of its file.

        Raises:
            ValueError: it has more pieces than the embedding has rows.
        """
        import sentencepiece

        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
        if len(self._pieces) > self.config.vocab_size:
            raise ValueError(f"text.vocab_size: the tokenizer has {len(self._pieces)} pieces, the model room for {self.config.vocab_size}")
        self.vocabulary = vocabulary

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions to tokens [s l e] and their mask [s l]; at least one token each, the pad for an empty caption."""
        if not self.vocabulary:
            raise RuntimeError("text: no vocabulary yet; call load_vocabulary first")
        if not captions:
            return self.position.new_zeros(0, 1, self.width), torch.zeros(0, 1, dtype=torch.bool, device=self.position.device)
        pieces = [self._cut(self._pieces.encode(caption.strip().lower())) or [0] for caption in captions]
        length = max(len(row) for row in pieces)
        device = self.position.device
        ids = torch.tensor([row + [0] * (length - len(row)) for row in pieces], device=device)
        mask = torch.tensor([[i < len(row) for i in range(length)] for row in pieces], device=device)
        return self(ids, mask), mask

    def _cut(self, ids: list[int]) -> list[int]:
        """The pieces that fit; a caption that loses its end is counted, and the first one told of."""
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
        """Piece ids [s l] and their mask to tokens [s l e]."""
        words = self.embedding(ids)
        out: Tensor = self.layers(words + self.position[: ids.shape[1]], src_key_padding_mask=~mask)
        # The words themselves beside what became of them: the base model, which trains this encoder, has no use for a word that tells of
        # fine texture, and its layers made such words nearly the same. Super-resolution needs them, and finds the encoder frozen.
        return out + words
