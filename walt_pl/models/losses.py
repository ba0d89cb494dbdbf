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

    The `lpips` package contains the heads. The backbone is torchvision's `vgg16-397923af.pth`, which this code does not download.

    Args:
        weights: path of `vgg16-397923af.pth`.
        state: state dict of that file, where the caller has read and checked it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the VGG16 state dict.
    """

    def __init__(self, weights: Path, state: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        if state is None and not weights.is_file():
            raise FileNotFoundError(
                f"model.perceptual_weights: no file {weights}; provide torchvision's VGG16 (vgg16-397923af.pth, "
                "https://download.pytorch.org/models/vgg16-397923af.pth) or choose perceptual: none"
            )
        state = _read_vgg(weights) if state is None else state
        import lpips

        self.metric = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).requires_grad_(False).eval()
        _load_vgg(self.metric.net, state, weights)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of frames [f 3 h w] in -1..1, float32 [f]."""
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
    """Fill lpips's slices of VGG16 from torchvision's state dict. Their keys contain torchvision's layer numbers.

    Raises:
        ValueError: a weight is missing or has another shape.
    """
    wanted = net.state_dict()
    source = {name: "features." + name.split(".", 1)[1] for name in wanted}
    wrong = [key for name, key in source.items() if key not in state or state[key].shape != wanted[name].shape]
    if wrong:
        raise ValueError(f"model.perceptual_weights: {weights} is not torchvision's VGG16: {wrong[0]!r} is missing or of another shape")
    net.load_state_dict({name: state[key] for name, key in source.items()})


def perceptual_term(name: PerceptualName, weights: str | None) -> nn.Module | None:
    """Return the perceptual distance that a config names, or None for `none`.

    Args:
        name: `lpips` or `none`.
        weights: path of torchvision's VGG16, for `lpips`.

    Raises:
        FileNotFoundError: there is no file `weights`.
        ValueError: `lpips` has no weight file, or the file is not the VGG16 state dict.
    """
    if name == "none":
        return None
    if weights is None:
        raise ValueError("perceptual: lpips wants perceptual_weights, a local copy of torchvision's vgg16-397923af.pth; or choose none")
    return LPIPS(Path(weights))


def select_frames(x: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Return frames [f 3 h w] of clips [b 3 t h w].

    Args:
        x: the clips.
        chosen: indices of the frames of each clip, int64 [b k]; None for all frames.
    """
    frames = rearrange(x, "b c t h w -> b t c h w")
    if chosen is not None:
        frames = frames[torch.arange(len(x), device=x.device)[:, None], chosen.to(x.device)]
    return frames.flatten(0, 1)


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared error of clips, summed over each clip, in units of pixels in 0..1.

    MAGVIT's weights of the error (5) and of R1 (10) are for pixels in 0..1. There a squared error is a quarter of that in -1..1.

    Args:
        x: clips [b 3 t h w] in -1..1.
        y: clips [b 3 t h w] in -1..1.

    Returns:
        Sum of squares of each clip, [b].
    """
    return (x - y).square().flatten(1).sum(dim=1) / 4


def generator_loss(fake: Tensor) -> Tensor:
    """Return the generator's non-saturating loss [b], from the logits [b] of its outputs."""
    return F.softplus(-fake)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's logistic loss [b], from the logits [b] of clips and of their reconstructions."""
    return F.softplus(-real) + F.softplus(fake)


def r1_penalty(real: Tensor, logits: Tensor) -> Tensor:
    """Return the R1 penalty: the squared gradient of each logit at its real clip, in units of pixels in 0..1.

    R1 (Mescheder et al., arXiv 1801.04406) as in MAGVIT's code: without the factor 1/2 of the paper. A pixel's range in 0..1 is half
    of that in -1..1, so slopes are twice as large.

    Args:
        real: real clips [b 3 t h w] in -1..1, which require gradients.
        logits: the discriminator's logits of `real`, [b].

    Returns:
        Squared gradient of each clip, [b].
    """
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return 4 * gradient.square().flatten(1).sum(dim=1)


class LeCam(nn.Module):
    """LeCAM regulariser (Tseng et al., arXiv 2104.03310, equation 4). It keeps each logit near the running mean of the other side's.

    It penalises single logits, as LeCAM's code does. MAGVIT's code compares the means of batches, so its penalty depends on the split of
    a batch over ranks. The running means are buffers, so the checkpoint holds them and training resumes with them.

    Args:
        decay: of the running means.
    """

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor, counts: Tensor | None = None) -> None:
        """Update the running means with the mean logits of a global batch.

        Args:
            real: mean logit of the clips.
            fake: mean logit of the reconstructions.
            counts: bool scalar on the device; false leaves the means as they are. None counts.
        """
        for mean, value in ((self.real, real), (self.fake, fake)):
            moved = mean.lerp(value.to(mean), 1 - self.decay)
            mean.copy_(moved if counts is None else torch.where(counts, moved, mean))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the penalty of each pair of logits [b], [b]."""
        return F.relu(real - self.fake).square() + F.relu(self.real - fake).square()


class DiscriminatorPause(nn.Module):
    """Pause of the discriminator's training while its running accuracy is too high.

    A discriminator that is nearly always right gives the generator no useful gradient, and memorises the training set. It pauses when
    the running mean of its accuracy exceeds a limit, and resumes when the mean is not above a second, lower limit. Mean and state are
    buffers, so the checkpoint holds them and training resumes with them.

    Args:
        pause: accuracy above which it pauses; None for never.
        resume: accuracy at or below which it trains again.
        decay: of the running mean.

    Raises:
        ValueError: the limits are not 0.5 < resume < pause < 1.
    """

    accuracy: Tensor
    paused: Tensor

    def __init__(self, pause: float | None = None, resume: float = 0.85, decay: float = 0.99) -> None:
        super().__init__()
        if pause is not None and not 0.5 < resume < pause < 1:
            raise ValueError(
                f"model.discriminator_pause: wanted 0.5 < discriminator_resume < discriminator_pause < 1, got {resume}, {pause}"
            )
        self.pause = pause
        self.resume = resume
        self.decay = decay
        self.register_buffer("accuracy", torch.tensor(0.5))
        self.register_buffer("paused", torch.tensor(False))

    @torch.no_grad()
    def update(self, accuracy: Tensor) -> None:
        """Update the running mean with a batch's accuracy, equal on all ranks. An accuracy that is not finite is ignored."""
        if self.pause is None:
            return
        # Without `if` on a tensor, which would wait for the device.
        known = accuracy.isfinite()
        mean = self.accuracy.lerp(accuracy.to(self.accuracy), 1 - self.decay)
        above = torch.where(self.paused, mean > self.resume, mean > self.pause)
        self.accuracy.copy_(torch.where(known, mean, self.accuracy))
        self.paused.copy_(torch.where(known, above, self.paused))


def discriminator_accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Return the share of each clip's two logits [b] that have the right sign, [b]; NaN where one of them is NaN."""
    right = [torch.where(side.isnan(), side, (side > 0).to(side)) for side in (real, -fake)]
    return (right[0] + right[1]) / 2
