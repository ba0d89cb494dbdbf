"""Weights on disk: float32 and bfloat16 are read as float32, every other type is refused."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.tiny_artifact import Tiny, TinyConfig, save
from walt_pl.runs import artifact
from walt_pl.runs.artifact import load
from walt_pl.runs.card import ArtifactError
from walt_pl.runs.finite import NonFiniteError
from walt_pl.runs.weights_file import read_weights


@pytest.fixture(autouse=True)
def tiny_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "COMPONENTS", {"vae": (Tiny.__module__, "Tiny", "TinyConfig")})


def written(folder: Path, changes: Mapping[str, Tensor]) -> tuple[Path, dict[str, Tensor]]:
    """Write the weights of a tiny model with other tensors in some places; return the file and the tensors that are wanted."""
    wanted = {f"vae.{name}": value for name, value in Tiny(TinyConfig()).state_dict().items()}
    save_file({**wanted, **changes}, folder / "model.safetensors")
    return folder / "model.safetensors", wanted


def test_read_weights_returns_bfloat16_as_float32(tmp_path: Path) -> None:
    """Also where one file has both types; integers keep theirs."""
    halved = torch.tensor([1.0, -2.5, 3e38, 1e-40]).bfloat16()
    path, wanted = written(tmp_path, {"vae.layers.0.bias": halved})
    weights = read_weights(path, wanted)
    assert weights["vae.layers.0.bias"].dtype == torch.float32 and weights["vae.count"].dtype == torch.int64
    # bfloat16 is the upper half of the bits of float32.
    assert torch.equal(weights["vae.layers.0.bias"].view(torch.int32), halved.view(torch.int16).int() << 16)
    assert torch.equal(weights["vae.layers.1.bias"], wanted["vae.layers.1.bias"])


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(4).half(), r"of another type: vae.layers.0.bias \(found F16, wanted F32 or BF16\)"),
        (torch.zeros(4).double(), "found F64, wanted F32 or BF16"),
        (torch.zeros(4, dtype=torch.int16), "found I16, wanted F32 or BF16"),
        (torch.zeros(2, 2).bfloat16(), r"of another shape: vae.layers.0.bias \(found \[2, 2\], wanted \[4\]\)"),
        (torch.tensor([0.0, float("nan"), 0.0, 0.0]).bfloat16(), "1 of 4 values of vae.layers.0.bias are nan or infinite"),
        (torch.full((4,), float("inf")).bfloat16(), "4 of 4 values of vae.layers.0.bias are nan or infinite"),
    ],
    ids=["float16", "float64", "integers", "shape", "nan", "infinite"],
)
def test_read_weights_refuses_other_types_shapes_and_values(tmp_path: Path, tensor: Tensor, message: str) -> None:
    path, wanted = written(tmp_path, {"vae.layers.0.bias": tensor})
    with pytest.raises(ArtifactError, match=message):
        read_weights(path, wanted)


def test_read_weights_takes_no_bfloat16_for_integers(tmp_path: Path) -> None:
    path, wanted = written(tmp_path, {"vae.count": torch.tensor(3.0).bfloat16()})
    with pytest.raises(ArtifactError, match=r"vae.count \(found BF16, wanted I64\)"):
        read_weights(path, wanted)


def test_save_artifact_in_bfloat16_is_loaded_as_rounded_float32(tmp_path: Path) -> None:
    model = Tiny(TinyConfig(width=64))
    save(tmp_path / "float32", model)
    save(tmp_path / "bfloat16", model, dtype=torch.bfloat16)
    with safe_open(tmp_path / "bfloat16" / "model.safetensors", framework="pt") as file:
        found = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert {kind for name, kind in found.items() if name != "vae.count"} == {"BF16"} and found["vae.count"] == "I64"
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("float32", "bfloat16")]
    assert sizes[1] < 0.55 * sizes[0]
    loaded = load(tmp_path / "bfloat16").models["vae"]
    for name, value in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), value.bfloat16().float())


def test_save_artifact_refuses_weights_that_bfloat16_cannot_hold(tmp_path: Path) -> None:
    model = Tiny(TinyConfig())
    torch.nn.init.constant_(model.get_parameter("layers.0.bias"), 3.4e38)  # the largest bfloat16 is 3.39e38
    save(tmp_path / "vae", model)
    before = load_file(tmp_path / "vae" / "model.safetensors")
    with pytest.raises(NonFiniteError, match=r"4 of 4 values of vae\.layers\.0\.bias"):
        save(tmp_path / "vae", model, dtype=torch.bfloat16)
    assert load_file(tmp_path / "vae" / "model.safetensors").keys() == before.keys() and load(tmp_path / "vae")
