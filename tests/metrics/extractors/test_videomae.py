"""VideoMAE of a tiny random configuration, against transformers' own reading of the same folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.configured import ExtractorSettings
from walt_pl.metrics.extractors.videomae import VideoMAE
from walt_pl.metrics.protocol import EvaluationProtocol
from walt_pl.metrics.resize import prepare_video

TINY: dict[str, int] = {
    "image_size": 32,
    "patch_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VideoMAEForVideoClassification(VideoMAEConfig(**TINY, initializer_range=0.3))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # they begin with zeros: a lost one would go unseen
                torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "videomae")
    return tmp_path / "videomae"


def read(folder: Path, sha256: str | None = None) -> VideoMAE:
    return VideoMAE(ExtractorSettings(EvaluationProtocol(resize="inside"), str(folder), sha256))


def clips() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (16, *size, 3), generator=generator, dtype=torch.uint8) for size in ((20, 30), (40, 40))]


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_videomae_equals_transformers(folder: Path) -> None:
    extractor = read(folder)
    rows = extractor(ClipBatch(clips()))["video_features"]
    model = VideoMAEModel.from_pretrained(folder).eval()
    videos = torch.stack([prepare_video(clip, "half_pixel", side=32) for clip in clips()])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((videos.permute(0, 2, 3, 4, 1) + 1) / 2 - mean) / std
    with torch.no_grad():
        wanted = model(pixels.permute(0, 1, 4, 2, 3)).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(rows, wanted, atol=1e-5, rtol=1e-4)
    assert extractor.identity()["resize"] == "half_pixel" and extractor.identity()["side"] == 32


def test_videomae_reads_the_names_of_older_files(folder: Path) -> None:
    rows = read(folder)(ClipBatch(clips()))["video_features"]
    state = load_file(folder / "model.safetensors")
    old = {key.replace(".query.bias", ".q_bias").replace(".value.bias", ".v_bias"): value for key, value in state.items()}
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(read(folder)(ClipBatch(clips()))["video_features"], rows)
    assert any(key.endswith(".q_bias") for key in old)


def test_videomae_hash_covers_configuration_and_weights(folder: Path) -> None:
    found = read(folder).identity()["sha256"]
    assert read(folder, found).identity()["sha256"] == found
    with pytest.raises(ValueError, match=f"has the sha256 {found}, wanted for videomae: {'0' * 64}"):
        read(folder, "0" * 64)
    edit_config(folder, layer_norm_eps=1e-5)
    changed = read(folder).identity()["sha256"]
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert len({found, changed, read(folder).identity()["sha256"]}) == 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "bert"}, "is no configuration of VideoMAE"),
        ({"hidden_size": 10**9}, "has hidden_size 1000000000, wanted a whole number from 1 to 8192"),
        ({"patch_size": True}, "has patch_size True, wanted a whole number"),
        ({"patch_size": 1, "image_size": 1024}, "values of positions"),
        ({"patch_size": 64}, "give 0 values of positions"),
        ({"num_attention_heads": 3}, "values of positions"),
        ({"layer_norm_eps": "exec"}, "has layer_norm_eps exec, wanted another type"),
        ({"num_hidden_layers": 3}, r"encoder\.layer\.2\..* is missing or differs"),
        ({"hidden_size": 32}, "is missing or differs"),
    ],
    ids=str,
)
def test_videomae_refuses_hostile_configurations(changes: dict[str, Any], told: str, folder: Path) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=told):
        read(folder)


def test_videomae_gives_transformers_no_key_that_names_code(folder: Path) -> None:
    rows = read(folder)(ClipBatch(clips()))["video_features"]
    edit_config(folder, auto_map={"AutoModel": "evil.Model"}, attn_implementation="evil/kernel", _attn_implementation="evil/kernel")
    assert torch.equal(read(folder)(ClipBatch(clips()))["video_features"], rows)


def test_videomae_refuses_other_folders_and_lengths(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this videomae takes clips of exactly 16 frames, got 9; set --frames 16"):
        read(folder)(ClipBatch([clips()[0][:9]]))
    with pytest.raises(ValueError, match=r"is no folder of VideoMAE; config\.json and \*\.safetensors are wanted"):
        read(tmp_path)
