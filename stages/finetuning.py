"""Initialisation of a stage from the artifact of another one (`--init`)."""

from collections.abc import Mapping

from torch import nn

from walt_pl.models.weight_inflation import inflate_weights
from walt_pl.runs.artifact import Artifact
from walt_pl.text.caption_words import WORDS
from walt_pl.text.small_encoder import VOCABULARY, SmallTextEncoder


def init_from(components: Mapping[str, nn.Module], artifact: Artifact) -> None:
    """Load the models of a stage from an artifact, with conversion from another aspect ratio or from images.

    Models that are not in `components`, such as a discriminator, keep their initial weights.

    Args:
        components: models of the stage by section name.
        artifact: with a section for each of them.

    Raises:
        ValueError: a section is missing, or cannot be converted.
    """
    for name, model in components.items():
        if name not in artifact.models:
            raise ValueError(f'--init {artifact.path}: no section "{name}" in it (found: {", ".join(artifact.models)})')
        try:
            model.load_state_dict(inflate_weights(model, artifact.models[name]))
        except ValueError as error:
            raise ValueError(f'--init {artifact.path}: section "{name}" {error}') from error
        if isinstance(model, SmallTextEncoder):
            # The word embeddings belong to this vocabulary.
            words = artifact.read(WORDS) if WORDS in artifact.card["files"] else b""
            model.load_vocabulary(artifact.read(VOCABULARY), words)
