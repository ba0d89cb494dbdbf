"""The background of transparent pictures in the training of a run, as far as its artifacts keep it."""

from walt_pl.media.decode_options import DecodeOptions
from walt_pl.runs.card_entries import TRAIN
from walt_pl.runs.stored_config import stored_background
from walt_pl.sampling.cascade import Cascade


def trained_background(cascade: Cascade) -> tuple[int, int, int]:
    """Return the colour behind transparent pictures in the training of the base model; white where its artifact has none.

    Raises:
        ValueError: the artifact has something else in its place.
    """
    artifact = cascade.artifacts.get(cascade.base)
    stored = None if artifact is None else stored_background(artifact.read(TRAIN).decode(errors="replace"), str(artifact.path / TRAIN))
    return stored or DecodeOptions().background
