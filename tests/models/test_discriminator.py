"""The discriminator: one logit a clip, of videos and of images."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.poison import poisoned_memory
from walt_pl.models.discriminator import BlurPool, Conv3x3x3, Discriminator, DiscriminatorConfig
from walt_pl.models.losses import r1_penalty

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="runs on a CUDA GPU, and there is none")
TINY = DiscriminatorConfig(width=4, channel_multipliers=(2, 2), size=(8, 12))


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_discriminator_gives_one_logit_a_clip(frames: int) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(TINY)
    x = torch.randn(3, 3, frames, 8, 12)
    logits = discriminator(x)
    assert logits.shape == (3,) and logits.dtype == torch.float32
    torch.testing.assert_close(discriminator(x[1:2]), logits[1:2])


def test_discriminator_full_size_has_the_stated_number_of_parameters() -> None:
    with torch.device("meta"):
        discriminator = Discriminator(DiscriminatorConfig())
    assert 61e6 <= sum(p.numel() for p in discriminator.parameters()) <= 68e6


@pytest.mark.parametrize("shape", [(1, 8, 12), (5, 8, 12), (17, 7, 4)])
def test_blur_pool_is_a_strided_convolution_with_121_cubed(shape: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, *shape)
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.einsum("i,j,k->ijk", line, line, line).expand(3, 1, 3, 3, 3)
    want = F.conv3d(F.pad(x, (1,) * 6, mode="replicate"), kernel, stride=2, groups=3)
    torch.testing.assert_close(BlurPool()(x), want)


def test_blur_pool_keeps_a_constant() -> None:
    torch.testing.assert_close(BlurPool()(torch.full((1, 1, 5, 4, 4), 3.0)), torch.full((1, 1, 3, 2, 2), 3.0))


@pytest.mark.parametrize("frames", [1, 5])
def test_discriminator_every_parameter_gets_a_gradient(frames: int) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(TINY)
    discriminator(torch.randn(3, 3, frames, 8, 12)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in discriminator.parameters())


def test_discriminator_refuses_clips_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"discriminator.size is \(8, 12\), got clips of \(12, 8\)"):
        Discriminator(TINY)(torch.zeros(1, 3, 1, 12, 8))


def test_discriminator_config_refuses_a_size_that_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        DiscriminatorConfig(size=(128, 120))


def test_discriminator_first_logits_tell_clips_apart_also_in_bfloat16() -> None:
    """At full width, with MAGVIT's start: the default of torch.nn gives a difference lost in one bfloat16 step of the logit."""
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(size=(32, 32)))
    x = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    blurred = F.avg_pool3d(x, (1, 3, 3), 1, (0, 1, 1))
    with torch.no_grad():
        exact = discriminator(x) - discriminator(blurred)
        with torch.autocast("cpu", torch.bfloat16):
            logits = discriminator(x), discriminator(blurred)
    assert all(side.dtype == torch.float32 for side in logits)
    torch.testing.assert_close(logits[0] - logits[1], exact, rtol=0.1, atol=0.0)
    assert float((exact.abs() / discriminator(x).detach().abs()).min()) > 0.3, "the difference is a good part of the logit"


def test_discriminator_kernels_start_xavier_uniform_and_biases_at_zero() -> None:
    """Uniform up to sqrt(6 / (fan in + fan out)), all taps counted."""
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(width=32, channel_multipliers=(2,), size=(8, 8)))
    for name, p in discriminator.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
            continue
        bound = (6 / ((p.shape[0] + p.shape[1]) * p[0, 0].numel())) ** 0.5
        assert 0.9 * bound < float(p.detach().abs().max()) <= bound, name
        assert float(p.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.15), name


def test_discriminator_averages_over_time() -> None:
    """A clip that does not move has about the logit of one frame, whatever its length, away from the zeros before and after it."""
    torch.manual_seed(0)
    discriminator, frame = Discriminator(TINY).double(), torch.randn(1, 3, 1, 8, 12, dtype=torch.float64)
    long, longer = (discriminator(frame.expand(-1, -1, frames, -1, -1)) for frames in (513, 1025))
    torch.testing.assert_close(long, longer, rtol=0.1, atol=0.0)


@pytest.mark.parametrize("frames", [1, 5])
def test_discriminator_convolution_in_bfloat16_equals_float32(frames: int) -> None:
    torch.manual_seed(0)
    convolution, x = Conv3x3x3(3, 32), torch.randn(2, 3, frames, 8, 8)
    torch.nn.init.normal_(convolution.bias)  # type: ignore[arg-type]
    exact = F.conv3d(x, convolution.weight, convolution.bias, padding=1)
    torch.testing.assert_close(convolution(x), exact)
    with poisoned_memory(), torch.autocast("cpu", torch.bfloat16):
        low = convolution(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact, rtol=0.02, atol=0.03)


@pytest.mark.parametrize("frames", [1, 5])
def test_discriminator_convolution_has_the_gradients_of_the_3d_convolution(frames: int) -> None:
    torch.manual_seed(0)
    convolution = Conv3x3x3(3, 4).double()
    inputs = [torch.randn(2, 3, frames, 6, 6, dtype=torch.float64, requires_grad=True), *convolution.parameters()]
    wanted = torch.autograd.grad(F.conv3d(*inputs, padding=1).square().sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(convolution(inputs[0]).square().sum(), inputs), wanted)


def test_discriminator_convolution_of_one_frame_is_2d(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 on CPUs with AMX, torch 2.14's 3D convolution of one frame of 3 channels returns uninitialised memory."""
    monkeypatch.setattr(F, "conv3d", None)
    assert Conv3x3x3(3, 4)(torch.zeros(2, 3, 1, 6, 8)).shape == (2, 4, 1, 6, 8)


def blur_of_slices(x: torch.Tensor) -> torch.Tensor:
    """The definition, axis by axis."""
    for dim in (2, 3, 4):
        size = x.shape[dim]
        before, after = (torch.arange(size).add(step).clamp(0, size - 1) for step in (-1, 1))
        x = (x.index_select(dim, before) + x.index_select(dim, after)) / 4 + x / 2
        x = x.index_select(dim, torch.arange(0, size, 2))
    return x


@pytest.mark.parametrize("shape", [(1, 8, 12), (5, 8, 12), (4, 7, 5), (2, 1, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_blur_pool_equals_its_definition(shape: tuple[int, int, int], dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, *shape).to(dtype).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    y = BlurPool()(x)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last_3d)
    wanted_input = x.detach().double().requires_grad_()
    wanted = blur_of_slices(wanted_input)
    torch.testing.assert_close(y.double(), wanted, rtol=tolerance, atol=tolerance)
    g = torch.randn_like(y)
    gradients = torch.autograd.grad(y, x, g)[0], torch.autograd.grad(wanted, wanted_input, g.double())[0]
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_discriminator_r1_gradients_equal_those_with_the_blur_of_slices(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The penalty differentiates the gradient of the logits once more."""
    torch.manual_seed(0)
    discriminator = Discriminator(TINY).double()
    x = torch.randn(2, 3, frames, 8, 12, dtype=torch.float64)

    def gradients() -> tuple[torch.Tensor, ...]:
        clip = x.clone().requires_grad_()
        penalty = r1_penalty(clip, discriminator(clip)).sum()
        return torch.autograd.grad(penalty, [p for p in discriminator.parameters() if p.dim() > 1])

    found = gradients()
    assert all(bool(g.any()) for g in found)
    monkeypatch.setattr(BlurPool, "forward", lambda _, x: blur_of_slices(x))
    torch.testing.assert_close(found, gradients(), rtol=1e-9, atol=1e-12)


class LayoutChanges(TorchDispatchMode):
    """Lists operations on activations of a batch that leave channels-last, but for maps of at most `last` positions."""

    def __init__(self, batch: int, last: int) -> None:
        super().__init__()
        self.batch = batch
        self.last = last
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for y in out if isinstance(out, list | tuple) else [out]:
            if isinstance(y, torch.Tensor) and y.dim() in (4, 5) and len(y) == self.batch and y.shape[3:].numel() > self.last:
                layout = torch.channels_last if y.dim() == 4 else torch.channels_last_3d
                if y.is_contiguous() and not y.is_contiguous(memory_format=layout):
                    self.found.append(str(func))
        return out


def layout_changes(frames: int, device: str, dtype: torch.dtype) -> list[str]:
    """Return the operations that leave channels-last: forward, backward and the penalty's second derivative.

    The last map is left out: the linear layer reads that in the order of its weights.
    """
    discriminator = Discriminator(DiscriminatorConfig(width=8, channel_multipliers=(2, 2), size=(16, 16))).to(device)
    x = torch.randn(3, 3, frames, 16, 16, device=device).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    with LayoutChanges(batch=3, last=16) as changes, torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = discriminator(x)
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        (logits.sum() + slope.square().sum()).backward()
    return changes.found


@pytest.mark.parametrize("frames", [1, 5])
def test_discriminator_keeps_channels_last_in_every_pass(frames: int) -> None:
    """In bfloat16, since oneDNN computes all of its convolutions. For float32 it depends on the number of threads."""
    assert layout_changes(frames, "cpu", torch.bfloat16) == []


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [1, 5])
def test_discriminator_on_a_gpu_keeps_channels_last_in_every_pass(frames: int, dtype: torch.dtype) -> None:
    assert layout_changes(frames, "cuda", dtype) == []


def outcomes(frames: int, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return logits, the gradients of their loss, and those of the R1 penalty, all computed from one draw."""
    torch.manual_seed(0)
    config = DiscriminatorConfig(width=8, channel_multipliers=(2, 2), size=(16, 24))
    discriminator = Discriminator(config).to(device, dtype)
    x = torch.randn(2, 3, frames, 16, 24).to(device, dtype).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    logits = discriminator(x)
    penalty = r1_penalty(x, logits)
    found = {"logits": logits, "penalty": penalty}
    named = {"x": x, **dict(discriminator.named_parameters())}
    for name, loss in (("loss", F.softplus(-logits).sum()), ("penalty", penalty.sum())):
        gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        found |= {f"{name}: {key}": g for key, g in zip(named, gradients, strict=True) if g is not None}
    return {name: value.detach().cpu().double() for name, value in found.items()}


def check_outcomes(frames: int, device: str) -> None:
    """Compare with float64 on the CPU, where the blur is its definition."""
    found = outcomes(frames, device, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlurPool, "forward", lambda _, x: blur_of_slices(x))
        wanted = outcomes(frames, "cpu", torch.float64)
    assert found.keys() == wanted.keys() and "penalty: blocks.0.conv1.weight" in found
    # The penalty's gradients of biases are zero: leaky ReLU has no curvature. All others have a norm above 4e-4.
    errors = {name: float((found[name] - want).norm() / want.norm().clamp(min=1e-4)) for name, want in wanted.items()}
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("frames", [1, 5])
def test_discriminator_in_float32_equals_float64_with_the_gradients_of_r1(frames: int) -> None:
    check_outcomes(frames, "cpu")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("frames", [1, 5])
def test_discriminator_on_a_gpu_equals_float64_on_the_cpu_with_the_gradients_of_r1(frames: int) -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        check_outcomes(frames, "cuda")
