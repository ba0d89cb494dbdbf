"""The vocabulary of a small text encoder in training: that of the checkpoint, of the initial weights, or of the captions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from walt_pl.files import write_whole
from walt_pl.runs.checkpoint import read_state
from walt_pl.runs.task_record import read_task
from walt_pl.text.caption_words import WORDS, caption_words
from walt_pl.text.small_encoder import VOCABULARY, SmallTextEncoder, train_vocabulary
from walt_pl.training.callbacks.export import DESCRIPTION
from walt_pl.training.fingerprints import fingerprints


def load_trained_vocabulary(text: SmallTextEncoder, trainer: Any, fits: bool) -> None:
    """Set the vocabulary of a text encoder that is trained here; all ranks call it.

    A training that goes on has the vocabulary of its checkpoint, whatever the captions are now. Otherwise it is that of the initial
    weights (--init), or rank 0 learns it from the training captions. A training writes it into the run's folder.

    Args:
        text: text encoder; it has a vocabulary already if initial weights were loaded.
        trainer: Lightning's, with the checkpoint and the data module.
        fits: whether it trains, and does not only validate.
    """
    state = read_state(trainer.ckpt_path, mapped=True) if trainer.ckpt_path is not None else {}
    kept = stored_vocabulary(state)
    if kept is not None:
        vocabulary, words = kept
        if fits:
            if trainer.is_global_zero:
                words = _compare(text, trainer, state, vocabulary, words)
            words = trainer.strategy.broadcast(words)
    elif text.vocabulary and not fits:
        return
    else:
        vocabulary, words = _learn(text, trainer)
    text.load_vocabulary(vocabulary, words)


def stored_vocabulary(state: Mapping[str, Any]) -> tuple[bytes, bytes] | None:
    """Return the vocabulary and the words of a checkpoint; None if it has none, b"" for words that are not known."""
    described = state.get(DESCRIPTION)
    files = described.get("files") if isinstance(described, Mapping) else None
    if not isinstance(files, Mapping) or not isinstance(files.get(VOCABULARY), bytes):
        return None
    words = files.get(WORDS)
    return files[VOCABULARY], words if isinstance(words, bytes) else b""


def _compare(text: SmallTextEncoder, trainer: Any, state: Mapping[str, Any], vocabulary: bytes, words: bytes) -> bytes:
    """Write the vocabulary of the checkpoint into the run's folder, say what differs from it, and return the words of all captions."""
    folder, data = Path(trainer.default_root_dir), trainer.datamodule
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / VOCABULARY
    if not file.exists():
        print(f"{file} was missing: written again from the checkpoint", flush=True)
    elif file.read_bytes() != vocabulary:
        print(f"{file} was another vocabulary: replaced by that of the checkpoint", flush=True)
    write_whole(file, vocabulary)
    before = read_task(state, str(trainer.ckpt_path)) or {}
    if any(before.get(key, value if before else None) != value for key, value in fingerprints(data).items()):
        if _learn_or_none(text, data) != vocabulary:
            print("the vocabulary stays that of the checkpoint; the training captions would now give another", flush=True)
        if words:
            words = caption_words(data.captions(), words)
    write_whole(folder / WORDS, words)
    return words


def _learn_or_none(text: SmallTextEncoder, data: Any) -> bytes | None:
    """Return the vocabulary of the training captions; None if they give none, because they are empty or have too many letters."""
    try:
        return train_vocabulary(data.captions(), text.config.vocab_size)
    except (ValueError, RuntimeError):
        return None


def _learn(text: SmallTextEncoder, trainer: Any) -> tuple[bytes, bytes]:
    """Write the run's sentencepiece model and the words of its captions on rank 0, and return both files' bytes on all ranks.

    The words are those of the captions and of the initial weights, and none where those of the initial weights are not known.
    A checkpoint of another program has no vocabulary; then the run keeps its files.
    """
    folder = Path(trainer.default_root_dir)
    vocabulary, words = folder / VOCABULARY, folder / WORDS
    if trainer.is_global_zero:
        captions = trainer.datamodule.captions
        folder.mkdir(parents=True, exist_ok=True)
        begins = trainer.ckpt_path is None
        if begins or not vocabulary.exists():
            write_whole(vocabulary, text.vocabulary or train_vocabulary(captions(), text.config.vocab_size))
        if begins or not words.exists():
            unknown = text.vocabulary and not text.words  # the initial weights have seen words that nobody recorded
            write_whole(words, b"" if unknown else caption_words(captions(), text.words))
    trainer.strategy.barrier("vocabulary")
    return vocabulary.read_bytes(), words.read_bytes()
