"""Fields of a model's config that say how it is computed: the machine that loads an artifact chooses for itself."""

from pathlib import Path

import pytest

from tests.helpers.tiny_artifact import rewrite_card, save
from walt_pl.files import file_sha256
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.runs.artifact import load
from walt_pl.runs.card import read_card

CONFIG = DenoiserConfig(16, 2, 2, size=(3, 4, 4), window_size=(3, 2, 2))


@pytest.mark.parametrize("attention", ["plain", "triton", "sdpa"])
def test_load_artifact_leaves_the_choice_of_attention_to_the_machine(attention: str, tmp_path: Path) -> None:
    """Older programs wrote `plain`, and an artifact that a GPU trained with `triton` is sampled on CPUs."""
    folder = tmp_path / "base"
    save(folder, models={"denoiser": (Denoiser(CONFIG).state_dict(), CONFIG)}, sampling_config={})
    written = folder / "model.yaml"
    text = written.read_text().replace("attention: auto\n", f"attention: {attention}\n")
    assert f"attention: {attention}\n" in text
    written.write_text(text)
    rewrite_card(folder, files={**read_card(folder)["files"], "model.yaml": {"sha256": file_sha256(written), "bytes": len(text)}})
    assert load(folder).models["denoiser"].config == CONFIG
