"""Starting a stage from what another one left (``--init``)."""

from collections.abc import Mapping

from torch import nn

from walt_pl.models.weight_inflation import inflate_weights
from walt_pl.runs.artifact import Artifact
from walt_pl.text.small_encoder import SmallTextEncoder


def init_from(components: Mapping[str, nn.Module], artifact: Artifact) -> None:
    """Fill the models of a stage from an artifact, converted where it is of another aspect ratio or of images.

    What an artifact does not hold, such as a discriminator, starts afresh.

    Raises:
        ValueError: a section that is missing, or that cannot be converted.
    """
    for name, model in components.items():
        if name not in artifact.models:
            raise ValueError(f'--init {artifact.path}: no section "{name}" in it (found: {", ".join(artifact.models)})')
        try:
            model.load_state_dict(inflate_weights(model, artifact.models[name]))
        except ValueError as error:
            raise ValueError(f'--init {artifact.path}: section "{name}" {error}') from error
        if isinstance(model, SmallTextEncoder):
            # Its embeddings are those of its own words.
            model.load_vocabulary(artifact.read("tokenizer.model"))
