"""Terms of the autoencoder's loss (docs/METHOD.md, section 2.8): reconstruction, perceptual, adversarial with R1 and LeCAM."""

import pickle
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

PerceptualName = Literal["lpips", "none"]


class LPIPS(nn.Module):
    """Learned perceptual distance on frames (Zhang et al., arXiv 1801.03924), VGG16 with the published heads.

    The heads ship with the ``lpips`` package; the backbone is torchvision's ``vgg16-397923af.pth``, which nothing here downloads.

    Args:
        weights: that file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the VGG16 state dict.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        if not weights.is_file():
            raise FileNotFoundError(
                f"model.perceptual_weights: no file {weights}; provide torchvision's VGG16 (vgg16-397923af.pth, "
                "https://download.pytorch.org/models/vgg16-397923af.pth) or choose perceptual: none"
            )
        state = _read_vgg(weights)
        import lpips

        self.metric = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).requires_grad_(False).eval()
        _load_vgg(self.metric.net, state, weights)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of frames [f 3 h w] in -1..1, float32 [f]."""
        distance: Tensor = self.metric(x, y)
        return distance.flatten(1).mean(dim=1).float()


def _read_vgg(weights: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"model.perceptual_weights: {weights} cannot be read as torchvision's VGG16 ({type(error).__name__}); download it again"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"model.perceptual_weights: {weights} holds a {type(state).__name__}, not torchvision's VGG16 state dict")
    return state


def _load_vgg(net: nn.Module, state: dict[str, Tensor], weights: Path) -> None:
    """Fill lpips's slices of VGG16 from torchvision's state dict: the keys keep torchvision's layer numbers."""
    wanted = net.state_dict()
    source = {name: "features." + name.split(".", 1)[1] for name in wanted}
    wrong = [key for name, key in source.items() if key not in state or state[key].shape != wanted[name].shape]
    if wrong:
        raise ValueError(f"model.perceptual_weights: {weights} is not torchvision's VGG16: {wrong[0]!r} is missing or of another shape")
    net.load_state_dict({name: state[key] for name, key in source.items()})


def perceptual_term(name: PerceptualName, weights: str | None) -> nn.Module | None:
    """The perceptual distance a config names, or None.

    Raises:
        ValueError: ``lpips`` without a weight file.
    """
    if name == "none":
        return None
    if weights is None:
        raise ValueError("perceptual: lpips wants perceptual_weights, a local copy of torchvision's vgg16-397923af.pth; or choose none")
    return LPIPS(Path(weights))


def select_frames(x: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Frames [f 3 h w] of clips [b 3 t h w]: all, or those of each clip whose numbers are ``chosen``, int64 [b k]."""
    frames = rearrange(x, "b c t h w -> b t c h w")
    if chosen is not None:
        frames = frames[torch.arange(len(x), device=x.device)[:, None], chosen.to(x.device)]
    return frames.flatten(0, 1)


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Squared error of clips [b 3 t h w] in -1..1, summed over each clip, with pixels counted in 0..1, [b].

    MAGVIT's weights of the error (5) and of R1 (10) belong to pixels in 0..1: there an error is a quarter of that in -1..1.
    """
    return (x - y).square().flatten(1).sum(dim=1) / 4


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating loss of the generator for each logit [b] of its output, [b]."""
    return F.softplus(-fake)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss of the discriminator for each pair of logits [b], a clip's and its reconstruction's, [b]."""
    return F.softplus(-real) + F.softplus(fake)


def r1_penalty(real: Tensor, logits: Tensor) -> Tensor:
    """Squared gradient of each logit [b] at its real clip [b 3 t h w] in -1..1, with pixels counted in 0..1, [b].

    That is R1 (Mescheder et al., arXiv 1801.04406) as MAGVIT's code has it: without the factor 1/2 of the paper. A pixel moves half as
    far in 0..1 as in -1..1, so slopes are twice as large.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return 4 * gradient.square().flatten(1).sum(dim=1)


class LeCam(nn.Module):
    """LeCAM regulariser (Tseng et al., arXiv 2104.03310, equation 4): each logit stays near the running mean of the other side's.

    Each logit, as in LeCAM's own code. MAGVIT's compares the means of batches, so its penalty depends on how a batch is split over ranks.
    The averages are buffers, so they live in the checkpoint and training resumes with them.
    """

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Move the averages towards the mean logits of a global batch."""
        self.real.lerp_(real.to(self.real), 1 - self.decay)
        self.fake.lerp_(fake.to(self.fake), 1 - self.decay)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the penalty of each pair of logits [b], [b]."""
        return F.relu(real - self.fake).square() + F.relu(self.real - fake).square()


class DiscriminatorPause(nn.Module):
    """Whether the discriminator rests: one that is nearly always right has no gradient left to teach with, and learns the set by heart.

    It rests once the running mean of its accuracy is above a limit, until the generator has brought it below another. Mean and state are
    buffers, so they live in the checkpoint and training resumes with them.

    Args:
        pause: accuracy above which it rests; null for never.
        resume: accuracy below which it learns again.
        decay: of the running mean.

    Raises:
        ValueError: limits that are not 0.5 < resume < pause < 1.
    """

    accuracy: Tensor
    paused: Tensor

    def __init__(self, pause: float | None = None, resume: float = 0.85, decay: float = 0.99) -> None:
        super().__init__()
        if pause is not None and not 0.5 < resume < pause < 1:
            raise ValueError(
                f"model.discriminator_pause: wanted 0.5 < discriminator_resume < discriminator_pause < 1, got {resume}, {pause}"
            )
        self.pause, self.resume, self.decay = pause, resume, decay
        self.register_buffer("accuracy", torch.tensor(0.5))
        self.register_buffer("paused", torch.tensor(False))

    @torch.no_grad()
    def update(self, accuracy: Tensor) -> None:
        """Take in a batch's accuracy, the same on all ranks; what is no number is passed over."""
        if self.pause is None or not accuracy.isfinite():
            return
        self.accuracy.lerp_(accuracy.to(self.accuracy), 1 - self.decay)
        limit = self.resume if self.paused else self.pause
        self.paused.fill_(self.accuracy > limit)


def discriminator_accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Return the share of a clip's two logits [b] with the right sign, [b]; not a number where one of them is not."""
    right = [torch.where(side.isnan(), side, (side > 0).to(side)) for side in (real, -fake)]
    return (right[0] + right[1]) / 2
