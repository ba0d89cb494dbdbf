"""The experiments have the numbers of parameters that the paper gives (docs/METHOD.md, section 5)."""

from pathlib import Path

import pytest
from torch import nn

from tests.helpers.environment import ROOT
from tests.helpers.experiments import of
from walt_pl.training.autoencoder_cost import clip_flops

# docs/METHOD.md, section 5.
PUBLISHED: list[tuple[str, str | None, float, float]] = [
    ("ucf101/base_l", None, 313e6, 0.01),
    ("ucf101/base_l", "ucf101/rank_4", 314e6, 0.01),
    ("ucf101/base_l", "ucf101/rank_16", 316e6, 0.01),
    ("ucf101/base_l", "ucf101/rank_64", 324e6, 0.01),
    ("ucf101/base_l", "ucf101/rank_256", 357e6, 0.01),
    ("ucf101/base_l_separate", None, 458e6, 0.01),
    ("ucf101/base_xl", None, 460e6, 0.01),
    ("kinetics600/base", None, 313e6, 0.01),
    ("imagenet/base", None, 460e6, 0.02),
    ("text_to_video/base_l", None, 419e6, 0.02),
    ("text_to_video/base", None, 3e9, 0.04),
    ("text_to_video/sr1", None, 1.3e9, 0.02),
    ("text_to_video/sr2", None, 419e6, 0.02),
]


@pytest.mark.parametrize(("config", "overlay", "published", "tolerance"), PUBLISHED)
def test_experiment_has_the_published_number_of_parameters(config: str, overlay: str | None, published: float, tolerance: float) -> None:
    parameters = of(config, overlay).parameters()
    assert parameters["total"] == sum(parameters["parts"].values()) == pytest.approx(published, rel=tolerance)
    name = f"`{config}`" + (f" + `{Path(overlay).name}`" if overlay else "")
    row = f"| {name} | {published / 1e6:,.0f} M | {parameters['total'] / 1e6:,.1f} M | {parameters['total'] / published - 1:+.1%} |"
    assert row in (ROOT / "docs" / "FIDELITY.md").read_text(encoding="utf-8").splitlines()


def test_experiment_vae_has_the_documented_parameters_beside_its_discriminator() -> None:
    parameters = of("ucf101/vae").parameters()
    assert parameters["total"] == pytest.approx(370e6, rel=0.01)
    assert parameters["parts"]["encoder"] == pytest.approx(145e6, rel=0.01)
    assert 61e6 <= parameters["beside"]["discriminator"] <= 68e6
    count = {part: f"{number / 1e6:.1f}" for part, number in (parameters["parts"] | parameters["beside"]).items()}
    page = (ROOT / "docs" / "FIDELITY.md").read_text(encoding="utf-8")
    assert f"| {parameters['total'] / 1e6:.1f} M ({count['encoder']} + {count['decoder']}) |" in page
    assert f"| its discriminator | not given | {count['discriminator']} M |" in page


def test_experiment_image_vae_is_2d_and_has_a_third_of_the_weights() -> None:
    plan, cube = of("imagenet/vae"), of("imagenet/vae", None, "--model.vae.time_kernel", "3")
    kernels = [m for m in plan.model.vae.modules() if isinstance(m, nn.Conv3d)]
    assert kernels and all(kernel.weight.shape[2] == 1 for kernel in kernels)
    assert plan.parameters()["total"] == pytest.approx(103e6, rel=0.01)
    assert cube.parameters()["total"] == pytest.approx(307e6, rel=0.01)


@pytest.mark.parametrize("name", ["ucf101", "kinetics600", "text_to_video"])
def test_experiment_light_vae_takes_at_most_a_quarter_of_the_operations(name: str) -> None:
    """One latent frame of each kind, the first and a later one: further ones cost what the later one does."""
    full, light = (
        sum(clip_flops(of(f"{name}/vae", overlay).model.vae.config, (1, 3, 5, 64, 64)).values()) for overlay in (None, "common/vae_light")
    )
    assert light <= 0.25 * full
