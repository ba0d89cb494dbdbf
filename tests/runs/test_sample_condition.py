"""The option that `sample` needs for a model."""

from typing import Any

import pytest

from walt_pl.runs.sample_condition import condition_option

ALWAYS = {"frame_prediction": 1.0, "text_width": 8}


@pytest.mark.parametrize(
    ("denoiser", "context_frames", "option"),
    [
        ({"text_width": 96}, None, "--prompt TEXT"),
        ({"text_width": 96, "frame_prediction": 0.1}, [1, 2], "--prompt TEXT"),
        ({"num_classes": 3}, None, "--label 0"),
        (ALWAYS, [1, 2], "--image PICTURE"),
        (ALWAYS, [2], "--continue CLIP"),
        ({}, None, "--prompt ''"),
    ],
)
def test_condition_option_is_what_the_model_cannot_do_without(
    denoiser: dict[str, Any], context_frames: list[int] | None, option: str
) -> None:
    diffusion = {} if context_frames is None else {"context_frames": context_frames}
    assert condition_option({"denoiser": denoiser, "diffusion": diffusion}) == option


@pytest.mark.parametrize("config", [{}, {"denoiser": None, "diffusion": None}])
def test_condition_option_of_an_empty_configuration_is_an_empty_prompt(config: dict[str, Any]) -> None:
    assert condition_option(config) == "--prompt ''"
