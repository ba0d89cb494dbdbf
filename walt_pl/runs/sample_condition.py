"""The condition without which a base model does not sample, as an option of `sample`."""

from collections.abc import Mapping
from typing import Any


def condition_option(config: Mapping[str, Any]) -> str:
    """Return the option of `sample` for a model.

    Args:
        config: its model.yaml.
    """
    denoiser, diffusion = config.get("denoiser") or {}, config.get("diffusion") or {}
    if denoiser.get("frame_prediction") == 1:  # it got context frames in every step of its training
        return "--image PICTURE" if 1 in (diffusion.get("context_frames") or ()) else "--continue CLIP"
    if denoiser.get("num_classes"):
        return "--label 0"
    return "--prompt TEXT" if denoiser.get("text_width") else "--prompt ''"
