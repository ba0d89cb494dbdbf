"""CLIP similarity with the smallest tower of open_clip and random weights, against open_clip's own preprocessing."""

from pathlib import Path
from typing import Any

import open_clip  # type: ignore[import-untyped,unused-ignore]
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.environment import Bomb
from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.clip import CLIPSimilarity
from walt_pl.metrics.extractors.configured import ExtractorSettings
from walt_pl.metrics.protocol import EvaluationProtocol

NAME = "ViT-S-32-alt"


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.create_model(NAME, load_weights=False).eval()


@pytest.fixture(scope="module")
def weights(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def extractor(weights: Path) -> CLIPSimilarity:
    return read(f"{NAME}@{weights.parent}")


def read(file: str) -> CLIPSimilarity:
    return CLIPSimilarity(ExtractorSettings(EvaluationProtocol(), file))


def clip(frames: int, rows: int, columns: int) -> Tensor:
    return torch.randint(0, 256, (frames, rows, columns, 3), generator=torch.Generator().manual_seed(rows), dtype=torch.uint8)


def test_clip_similarity_equals_the_mean_cosine_of_open_clip(extractor: CLIPSimilarity, model: Any) -> None:
    given, captions = [clip(2, 224, 230), clip(1, 40, 30)], ["a red circle", "a word " * 100]
    rows = extractor(ClipBatch(given, captions=captions))["clip_similarity"]
    preprocess = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(), is_train=False)
    from torchvision.transforms.functional import to_pil_image  # type: ignore[import-untyped]

    with torch.no_grad():
        for one, caption, row in zip(given, captions, rows, strict=True):
            frames = torch.stack([preprocess(to_pil_image(frame.permute(2, 0, 1))) for frame in one])
            image, text = model.encode_image(frames), model.encode_text(open_clip.get_tokenizer(NAME)([caption]))
            assert row.item() == pytest.approx(torch.cosine_similarity(image, text).mean().item(), abs=1e-3)
    assert rows.shape == (2, 1) and extractor.identity()["model"] == NAME and len(extractor.identity()["sha256"]) == 64


def test_clip_refuses_clips_without_captions(extractor: CLIPSimilarity) -> None:
    given = [clip(1, 30, 30)] * 2
    for captions in ([], ["a word", " "]):
        with pytest.raises(ValueError, match=f"clip {len(captions) and 1} of the batch has none; give an index with captions"):
            extractor(ClipBatch(given, captions=captions))


@pytest.mark.parametrize("name", ["hf-hub:laion/CLIP-ViT-B-32", "local-dir:/weights", "ViT-S-33", "ViT-B-16-SigLIP"])
def test_clip_refuses_names_that_open_clip_would_fetch(name: str, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("made a model"))
    with pytest.raises(ValueError, match=r"^--extractor: (open_clip knows no model|the tokenizer of)"):
        read(f"{name}@{weights}")


def test_clip_refuses_other_weights_code_and_folders_without_any(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clip wants MODEL@FILE"):
        read(str(weights))
    with pytest.raises(ValueError, match=r"has none of open_clip_model\.safetensors"):
        read(f"{NAME}@{tmp_path}")
    torch.save({"a": Bomb(tmp_path / "ran")}, tmp_path / "bomb.bin")
    with pytest.raises(ValueError, match="holds no state dict"):
        read(f"{NAME}@{tmp_path / 'bomb.bin'}")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match=r"other\.bin does not hold the weights of ViT-S-32-alt"):
        read(f"{NAME}@{tmp_path / 'other.bin'}")
    assert not (tmp_path / "ran").exists()
