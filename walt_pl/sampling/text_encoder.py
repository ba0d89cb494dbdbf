"""The text encoder of a base model, for sampling."""

import torch

from walt_pl.runs.artifact import Artifact
from walt_pl.text.features import HASHES, recorded_encoder
from walt_pl.text.pretrained_encoder import PretrainedTextEncoder
from walt_pl.text.small_encoder import TextEncoder, trained_text_encoder


def open_text_encoder(artifact: Artifact, device: torch.device, path: str | None) -> TextEncoder | None:
    """Return the text encoder that a base model was trained with; None for models without text.

    Args:
        artifact: of the base model.
        device: to run on.
        path: of a pretrained text encoder, if not that of the training.

    Raises:
        ValueError: the pretrained text encoder is missing or another one.
    """
    frozen = recorded_encoder(artifact, path, "--text-encoder", artifact.path.parent / "cache" / HASHES)
    if frozen is not None:
        return PretrainedTextEncoder(frozen, device)
    return trained_text_encoder(artifact)
