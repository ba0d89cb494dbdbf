"""InceptionV3 with random weights, against torch-fidelity's own class."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from tests.helpers.environment import Bomb
from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.configured import ExtractorSettings
from walt_pl.metrics.extractors.inception import InceptionV3
from walt_pl.metrics.protocol import EvaluationProtocol

PROTOCOL = EvaluationProtocol(frames=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of random weights. torch-fidelity cannot build the network without one: its loader gets the network's own."""
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr("torch.load", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="none")
        patch.undo()
        torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights: Path) -> InceptionV3:
    return InceptionV3(ExtractorSettings(PROTOCOL, str(weights), hashlib.sha256(weights.read_bytes()).hexdigest()))


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (1, *size, 3), generator=generator, dtype=torch.uint8) for size in sizes]


def test_inception_equals_torch_fidelity(extractor: InceptionV3, weights: Path) -> None:
    given = images((40, 30), (20, 20))
    rows = extractor(ClipBatch(given))
    theirs = FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights))
    for i, image in enumerate(given):
        features, logits = theirs(image.permute(0, 3, 1, 2))
        torch.testing.assert_close(rows["image_features"][i], features[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(rows["class_logits"][i], logits[0], atol=1e-5, rtol=1e-4)
    assert rows["image_features"].shape == (2, 2048) and rows["class_logits"].shape == (2, 1008)


def test_inception_refuses_videos(extractor: InceptionV3) -> None:
    with pytest.raises(ValueError, match=r"inception is for images, got a clip of 2 frames; set --frames 1"):
        extractor(ClipBatch([torch.zeros(2, 8, 8, 3, dtype=torch.uint8)]))


def test_inception_refuses_other_hashes_other_networks_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, mark = tmp_path / "weights.pth", tmp_path / "ran"
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="wanted for inception: 6726825d0af5f729"):
        InceptionV3(ExtractorSettings(PROTOCOL, str(file)))
    monkeypatch.setattr("walt_pl.metrics.extractors.weight_file.check_hash", lambda *_, **__: None)
    with pytest.raises(ValueError, match="is not the state dict of torch-fidelity's InceptionV3"):
        InceptionV3(ExtractorSettings(PROTOCOL, str(file)))
    torch.save({"a": Bomb(mark)}, file)
    with pytest.raises(ValueError, match="holds no state dict"):
        InceptionV3(ExtractorSettings(PROTOCOL, str(file)))
    assert not mark.exists()
