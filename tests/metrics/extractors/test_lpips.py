"""LPIPS of clips, against the lpips package with the weights of one VGG16."""

import hashlib
from pathlib import Path

import lpips
import pytest
import torch
import torchvision  # type: ignore[import-untyped]
from torch import Tensor

from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.configured import ExtractorSettings
from walt_pl.metrics.extractors.lpips import FRAMES_AT_ONCE, PerceptualDistance
from walt_pl.metrics.protocol import EvaluationProtocol
from walt_pl.models.losses import _load_vgg


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random features of VGG16, without its classifier of 500 MB."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    torch.save({f"features.{name}": tensor for name, tensor in features.state_dict().items()}, path)
    return path


@pytest.fixture(autouse=True)
def no_initial_weights(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the random weights of VGG16's classifier, which take 4 seconds and are not used."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


def settings(path: Path) -> ExtractorSettings:
    return ExtractorSettings(EvaluationProtocol(), str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def clip(frames: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (frames, 20, 24, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_lpips_equals_the_mean_of_the_package_over_frames(weights: Path) -> None:
    extractor = PerceptualDistance(settings(weights))
    pairs = [(clip(FRAMES_AT_ONCE + 1, 0), clip(FRAMES_AT_ONCE + 1, 1)), (clip(1, 2), clip(1, 3))]
    rows = extractor(ClipBatch([x for x, _ in pairs], [y for _, y in pairs]))["lpips"]
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    _load_vgg(theirs.net, torch.load(weights), weights)
    with torch.no_grad():
        wanted = [theirs(*((one.permute(0, 3, 1, 2) / 127.5 - 1) for one in two)).mean().reshape(1) for two in pairs]
    torch.testing.assert_close(rows, torch.stack(wanted))
    assert extractor.identity()["backbone"] == "vgg" and len(extractor.identity()["sha256"]) == 64


def test_lpips_knows_the_hash_of_torchvision_by_its_first_digits(weights: Path) -> None:
    with pytest.raises(ValueError, match=r"wanted for lpips: 397923af\. It was not loaded"):
        PerceptualDistance(ExtractorSettings(EvaluationProtocol(), str(weights)))


def test_lpips_refuses_other_state_dicts_and_small_frames(weights: Path, tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"^--extractor: .*other\.pth is not torchvision's VGG16: "):
        PerceptualDistance(settings(tmp_path / "other.pth"))
    small = clip(1, 0)[:, :15]
    with pytest.raises(ValueError, match="lpips wants frames of at least 16x16 pixels, got 15x24"):
        PerceptualDistance(settings(weights))(ClipBatch([small], [small]))
