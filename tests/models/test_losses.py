"""Terms of the autoencoder's loss, by hand and against the lpips package."""

from pathlib import Path

import lpips
import pytest
import torch
import torchvision  # type: ignore[import-untyped]
from torch import Tensor

from walt_pl.models.discriminator import Discriminator, DiscriminatorConfig
from walt_pl.models.losses import (
    LPIPS,
    DiscriminatorPause,
    LeCam,
    discriminator_accuracy,
    discriminator_loss,
    generator_loss,
    perceptual_term,
    r1_penalty,
    select_frames,
    squared_error,
)


def test_r1_penalty_of_a_quadratic_discriminator_is_known() -> None:
    x = torch.randn(3, 3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    a = torch.rand(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(x, (a * x.square()).flatten(1).sum(dim=1) / 2)  # gradient: a x
    torch.testing.assert_close(penalty, (2 * a * x).square().flatten(1).sum(dim=1))  # a step in 0..1 is two in -1..1
    (gradient,) = torch.autograd.grad(penalty.mean(), a)  # of the penalty: through the gradient
    torch.testing.assert_close(gradient, (8 * a * x.square()).mean(dim=0))


def test_r1_penalty_of_the_discriminator_is_its_squared_slope() -> None:
    """Against finite differences of the discriminator along its own gradient, of pixels in 0..1."""
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(width=4, channel_multipliers=(2, 2), size=(8, 8))).double()
    x = torch.randn(1, 3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    logits = discriminator(x)
    (gradient,) = torch.autograd.grad(logits.sum(), x, retain_graph=True)
    penalty = r1_penalty(x, logits)
    along = 2 * gradient / gradient.norm()
    with torch.no_grad():
        slope = float(discriminator(x + 1e-6 * along) - discriminator(x - 1e-6 * along)) / 2e-6
    assert penalty.item() == pytest.approx(slope**2, rel=1e-4)
    penalty.backward()
    assert discriminator.conv_in.weight.grad is not None and bool(discriminator.conv_in.weight.grad.any())


def test_squared_error_counts_pixels_in_zero_to_one() -> None:
    x, y = torch.randn(2, 2, 3, 2, 4, 4).unbind(0)
    torch.testing.assert_close(squared_error(x, y), ((x + 1) / 2 - (y + 1) / 2).square().flatten(1).sum(dim=1))


def test_generator_loss_and_discriminator_loss_are_non_saturating() -> None:
    real, fake = torch.tensor([2.0, -1.0, 0.3]), torch.tensor([0.5, -3.0, 1.0])
    by_hand = -torch.sigmoid(fake).log()
    torch.testing.assert_close(generator_loss(fake), by_hand)
    torch.testing.assert_close(discriminator_loss(real, fake), -torch.sigmoid(real).log() - (1 - torch.sigmoid(fake)).log())
    assert float(generator_loss(torch.tensor([-50.0]))) == pytest.approx(50.0), "a sure discriminator still gives a slope"


def test_discriminator_accuracy_counts_the_logits_of_the_right_sign() -> None:
    real, fake = torch.tensor([1.0, -1.0, 1.0, 0.0]), torch.tensor([-1.0, -1.0, 1.0, 0.0])
    assert discriminator_accuracy(real, fake).tolist() == [1.0, 0.5, 0.5, 0.0], "a logit of zero is not right"
    assert bool(discriminator_accuracy(torch.tensor([torch.nan]), torch.tensor([-1.0])).isnan())


@pytest.mark.parametrize("pause, resume", [(1.0, 0.85), (0.9, 0.9), (0.9, 0.5), (0.8, 0.85)])
def test_discriminator_pause_refuses_impossible_limits(pause: float, resume: float) -> None:
    with pytest.raises(ValueError, match=r"wanted 0\.5 < discriminator_resume < discriminator_pause < 1"):
        DiscriminatorPause(pause, resume)


def test_lecam_pulls_logits_to_the_mean_of_the_other_side() -> None:
    lecam = LeCam(decay=0.5)
    lecam.update(torch.tensor(3.0), torch.tensor(-2.0))
    assert (float(lecam.real), float(lecam.fake)) == (1.5, -1.0)
    lecam.update(torch.tensor(2.5), torch.tensor(0.0))
    assert (float(lecam.real), float(lecam.fake)) == (2.0, -0.5)
    real, fake = torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor([3.0, 0.0], requires_grad=True)
    penalty = lecam(real, fake)
    # relu(real - mean of fake)^2 = (1.5^2, 0), relu(mean of real - fake)^2 = (0, 2^2)
    assert penalty.tolist() == [2.25, 4]
    penalty.sum().backward()
    assert real.grad is not None and fake.grad is not None
    assert real.grad.tolist() == [3, 0] and fake.grad.tolist() == [0, -4]


def test_lecam_is_in_the_checkpoint_and_has_no_parameters() -> None:
    lecam = LeCam(0.9)
    lecam.update(torch.tensor(2.0, requires_grad=True), torch.tensor(1.0, requires_grad=True))
    again = LeCam(0.9)
    again.load_state_dict(lecam.state_dict())
    assert torch.equal(again.real, lecam.real) and torch.equal(again.fake, lecam.fake)
    assert not lecam.real.requires_grad and list(lecam.parameters()) == []


def test_select_frames_gives_all_or_the_chosen() -> None:
    x = torch.randn(2, 3, 4, 5, 5)
    frames = select_frames(x)
    assert torch.equal(frames[5], x[1, :, 1])
    assert torch.equal(select_frames(x, torch.tensor([[3, 0], [1, 2]])), frames[[3, 0, 5, 6]])


@pytest.fixture(scope="module")
def vgg() -> torch.nn.Module:
    """Torchvision's VGG16 with random weights; without the classifier's 120 M."""
    with torch.device("meta"):
        model: torch.nn.Module = torchvision.models.vgg16(weights=None, init_weights=False)
    features = model.get_submodule("features").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in features.parameters():
        torch.nn.init.normal_(parameter, std=(2 / max(parameter[0].numel(), 50)) ** 0.5, generator=generator)
    return model


@pytest.fixture
def random_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """lpips builds a whole VGG16 and throws the classifier away: build what it keeps."""

    def features_only(pretrained: bool = False, **_: object) -> torch.nn.Module:
        assert not pretrained, "this would download weights"
        module = torch.nn.Module()
        module.features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
        return module

    monkeypatch.setattr(lpips.pretrained_networks.tv, "vgg16", features_only)


def frames(seed: int) -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.usefixtures("random_vgg")
def test_lpips_equals_the_lpips_package(vgg: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vgg16.pth"
    torch.save({key: value for key, value in vgg.state_dict().items() if key.startswith("features.")}, path)
    ours = LPIPS(path)
    # The package's own way to "pretrained" weights, with our VGG16 in the place of the download.
    monkeypatch.setattr(lpips.pretrained_networks.tv, "vgg16", lambda **_: vgg)
    theirs = lpips.LPIPS(net="vgg", verbose=False)
    x, y = frames(0).requires_grad_(), frames(1)
    distance = ours(x, y)
    assert distance.shape == (3,) and distance.dtype == torch.float32
    torch.testing.assert_close(distance, theirs(x, y).flatten())
    assert bool((distance > 1e-3).all())
    torch.testing.assert_close(ours(y, y), torch.zeros(3))
    distance.sum().backward()
    assert x.grad is not None and bool(x.grad.any()), "the autoencoder learns from it"
    assert not any(p.requires_grad for p in ours.parameters()), "the metric does not learn"


@pytest.mark.usefixtures("random_vgg")
def test_lpips_names_a_wrong_weight_file(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"resnet.pth is not torchvision's VGG16: 'features.0.weight' is missing"):
        LPIPS(path)


@pytest.mark.usefixtures("random_vgg")
@pytest.mark.parametrize("content", ["shapes", "bytes"])
def test_lpips_names_a_broken_weight_file(tmp_path: Path, vgg: torch.nn.Module, content: str) -> None:
    path = tmp_path / "broken.pth"
    if content == "shapes":
        torch.save({key: torch.zeros(1) for key in vgg.state_dict()}, path)
    else:
        path.write_bytes(b"not a torch file")
    with pytest.raises(ValueError, match=r"broken\.pth"):
        LPIPS(path)


def test_perceptual_term_with_a_missing_file_says_what_to_provide(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.pth; provide torchvision's VGG16 .* or choose perceptual: none"):
        perceptual_term("lpips", str(tmp_path / "none.pth"))


def test_perceptual_term_without_a_file_says_what_to_provide() -> None:
    with pytest.raises(ValueError, match="perceptual_weights, a local copy of torchvision's vgg16"):
        perceptual_term("lpips", None)


def test_perceptual_term_none_is_none() -> None:
    assert perceptual_term("none", None) is None
