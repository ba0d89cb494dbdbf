"""Fields of a model's config that say how it is computed: an artifact keeps a choice that every machine can follow."""

from dataclasses import asdict
from pathlib import Path

import pytest

from tests.helpers.tiny_artifact import rewrite_card, save
from walt_pl.blocks.attention import WindowAttention
from walt_pl.files import file_sha256
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.runs.artifact import component_config, load
from walt_pl.runs.card import ArtifactError, read_card

CONFIG = DenoiserConfig(16, 2, 2, size=(3, 4, 4), window_size=(3, 2, 2))


def write(folder: Path, attention: str) -> Path:
    """Write the artifact of a denoiser, and put `attention` into its model.yaml."""
    save(folder, models={"denoiser": (Denoiser(CONFIG).state_dict(), CONFIG)}, sampling_config={})
    written = folder / "model.yaml"
    text = written.read_text().replace("attention: auto\n", f"attention: {attention}\n")
    assert f"attention: {attention}\n" in text
    written.write_text(text)
    rewrite_card(folder, files={**read_card(folder)["files"], "model.yaml": {"sha256": file_sha256(written), "bytes": len(text)}})
    return folder


@pytest.mark.parametrize(
    ("stored", "loaded"), [("auto", "auto"), ("sdpa", "sdpa"), ("math", "math"), ("triton", "auto"), ("plain", "math")]
)
def test_load_artifact_keeps_attention_that_every_machine_has(stored: str, loaded: str, tmp_path: Path) -> None:
    """Older programs wrote `plain`, and an artifact that a GPU trained with `triton` is sampled on CPUs. The layers take the value."""
    denoiser = load(write(tmp_path / "base", stored)).models["denoiser"]
    assert isinstance(denoiser, Denoiser)
    assert asdict(denoiser.config) == {**asdict(CONFIG), "attention": loaded}
    assert [layer.attention for layer in denoiser.modules() if isinstance(layer, WindowAttention)] == [loaded] * 2


@pytest.mark.parametrize("stored", ["flash", "7", "null", "[triton]", "{triton: auto}", "true"])
def test_load_artifact_refuses_attention_of_an_unknown_name(stored: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r'section "denoiser": attention is .*, wanted auto or triton or sdpa or math$'):
        load(write(tmp_path / "base", stored))


def test_component_config_of_an_export_takes_attention_as_an_artifact_does() -> None:
    """A checkpoint describes its models by these fields, and `export` writes an artifact of them on any machine."""
    fields = asdict(CONFIG)
    assert {stored: component_config("denoiser", fields | {"attention": stored}).attention for stored in ("triton", "plain", "sdpa")} == {
        "triton": "auto",
        "plain": "math",
        "sdpa": "sdpa",
    }
    assert component_config("denoiser", {name: value for name, value in fields.items() if name != "attention"}) == CONFIG
    with pytest.raises(ValueError, match="attention is 'flash', wanted auto"):
        component_config("denoiser", fields | {"attention": "flash"})
