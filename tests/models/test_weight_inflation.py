"""Weights for a model of another aspect ratio, and for videos from images."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor, nn

from walt_pl.blocks.attention import Window
from walt_pl.blocks.causal_conv import SpatialNorm
from walt_pl.blocks.frames import FrameLayout
from walt_pl.blocks.norm_silu_pad import NormName
from walt_pl.diffusion.condition import Condition
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.vae import VAE, VAEConfig
from walt_pl.models.weight_inflation import inflate_weights, resize_position_table
from walt_pl.text.small_encoder import SmallTextConfig, SmallTextEncoder

Drawn = TypeVar("Drawn", bound=nn.Module)

SQUARE = DenoiserConfig(
    width=16, depth=2, num_heads=2, latent_channels=2, size=(3, 8, 8), patch_size=2, window_size=(3, 2, 2), num_classes=3
)
WIDE = replace(SQUARE, size=(3, 8, 14), window_size=(3, 2, 7))
IMAGES = VAEConfig(8, (1, 1, 2), ((1, 2, 2), (1, 2, 2)), (1, 1, 1), 1, 4, "layer", time_kernel=1)
VIDEOS = replace(IMAGES, strides=((2, 2, 2), (2, 2, 2)), time_kernel=3)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(model: Drawn, seed: int = 1) -> Drawn:
    """The model with every parameter drawn, those that start at zero too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.requires_grad_(False)


def converted(source: nn.Module, target: Drawn) -> Drawn:
    target.load_state_dict(inflate_weights(target, source))
    return target.requires_grad_(False)


# ---- Another aspect ratio ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 16, 16), (9, 15, 15), (1, 1, 5)])
def test_resize_position_table_to_the_same_size_changes_no_bit(grid: Window) -> None:
    table = noise(4, grid[0] * grid[1] * grid[2])
    assert table.view(torch.int32).equal(resize_position_table(table, grid, grid).view(torch.int32))


@pytest.mark.parametrize("old, new", [((1, 16, 16), (1, 16, 28)), ((9, 15, 15), (9, 15, 27)), ((3, 3, 5), (3, 7, 2))])
def test_resize_position_table_keeps_a_linear_ramp(old: Window, new: Window) -> None:
    def ramp(grid: Window) -> Tensor:
        t, h, w = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in grid), indexing="ij")
        return (2 * t - 3 * h + 5 * w + 1).flatten()[None]

    torch.testing.assert_close(resize_position_table(ramp(old), old, new), ramp(new), atol=1e-5, rtol=1e-5)


def test_resize_position_table_equals_scipy() -> None:
    old, new = (3, 5, 7), (3, 5, 13)
    table = noise(2, 3 * 5 * 7)
    places = [np.linspace(0, a - 1, b) for a, b in zip(old, new, strict=True)]
    points = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1)
    for ours, grid in zip(resize_position_table(table, old, new), table.view(2, *old).numpy(), strict=True):
        theirs = RegularGridInterpolator([np.arange(side) for side in old], grid)(points)
        torch.testing.assert_close(ours, torch.from_numpy(theirs).flatten().float())


def test_inflate_weights_keeps_the_bias_of_a_token_to_itself() -> None:
    """The offset zero stays the offset zero, in every layer."""
    source = drawn(Denoiser(SQUARE))
    wide = converted(source, Denoiser(WIDE))
    for layer in range(2):
        a, b = (model.blocks[layer].attention.bias() for model in (source, wide))  # type: ignore[union-attr, operator]
        torch.testing.assert_close(b[:, 0, 0], a[:, 0, 0])
        torch.testing.assert_close(b[:, 0, -1], a[:, 0, -1])  # and the farthest pair stays the farthest


def test_inflate_weights_of_the_same_size_copies_every_weight() -> None:
    source = drawn(Denoiser(SQUARE))
    state = inflate_weights(Denoiser(replace(SQUARE, attention="math", activation_checkpointing=True)), source)
    assert list(state) == list(source.state_dict())
    assert all(torch.equal(state[key], value) for key, value in source.state_dict().items())


def test_inflate_weights_wide_denoiser_without_positions_equals_the_square_one() -> None:
    """With tables that are constant, a wide frame made of one token everywhere cannot be told from a square one."""
    source = drawn(Denoiser(SQUARE))
    for name, parameter in source.named_parameters():
        if name == "position.space":
            parameter.copy_(parameter[:1].expand_as(parameter))
        if name.endswith("bias.table"):
            parameter.copy_(parameter[:, :1].expand_as(parameter))
    wide = converted(source, Denoiser(WIDE))
    layout = FrameLayout(1, 3, 1)
    condition = Condition(layout, torch.ones(2, dtype=torch.bool), labels=torch.tensor([1, 2]))
    token = noise(4, 2, 2, 2)
    step = torch.tensor([500, 20])
    narrow_out = source(token.repeat(1, 1, 4, 4), step, condition)
    wide_out = wide(token.repeat(1, 1, 4, 7), step, condition)
    torch.testing.assert_close(wide_out[..., :8], narrow_out, atol=1e-5, rtol=1e-4)


def test_inflate_weights_converts_the_geometry_of_the_paper() -> None:
    square = DenoiserConfig(width=16, depth=2, num_heads=2, size=(5, 16, 16), window_size=(5, 8, 8))
    wide = converted(drawn(Denoiser(square)), Denoiser(replace(square, size=(5, 16, 28), window_size=(5, 8, 14))))
    assert wide.config.window_of(0) == (1, 16, 28)
    assert wide.blocks[1].attention.bias.table.shape == (2, 9 * 15 * 27)  # type: ignore[union-attr]
    assert wide.position.space.shape == (16 * 28, 16)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"width": 32}, "width is 16 there and 32 here"),
        ({"depth": 4}, "depth is 2 there and 4 here"),
        ({"patch_size": 1, "window_size": (3, 4, 7)}, "patch_size is 2 there and 1 here"),
        ({"latent_channels": 4}, "latent_channels is 2 there and 4 here"),
        ({"num_classes": 4}, "classes is 3 there and 4 here"),
        ({"lora_rank": None}, "lora_rank is 2 there and None here"),
        ({"size": (6, 8, 14)}, "size and window_size have 3 and 3 frames there, 6 and 3 here"),
        ({"window_size": (1, 2, 7)}, "size and window_size have 3 and 3 frames there, 3 and 1 here"),
    ],
)
def test_inflate_weights_refuses_a_denoiser_that_cannot_be_interpolated(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named) as error:
        inflate_weights(Denoiser(replace(WIDE, **change)), Denoiser(SQUARE))  # type: ignore[arg-type]
    assert "rows and columns of size and window_size may differ" in str(error.value)
    assert "\n" not in str(error.value)


def test_inflate_weights_takes_other_training_probabilities_but_not_other_channels() -> None:
    given = Denoiser(replace(SQUARE, frame_prediction=0.5))
    other = inflate_weights(Denoiser(replace(SQUARE, frame_prediction=0.1, self_conditioning=0.3)), given)
    assert all(torch.equal(other[name], value) for name, value in given.state_dict().items())
    with pytest.raises(ValueError, match=r"other input channels: self_conditioning is 0\.9 there and 0 here"):
        inflate_weights(Denoiser(replace(SQUARE, self_conditioning=0)), Denoiser(replace(SQUARE, self_conditioning=0.9)))


# ---- From images to videos ---------------------------------------------------------------------------------------------


def image_vae(norm: NormName = "layer") -> VAE:
    """An autoencoder of images; its adaptive norms start as plain ones, so they are drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VAE(replace(IMAGES, norm=norm, width=32 if norm == "group" else 8))
        for module in model.modules():
            if isinstance(module, SpatialNorm):
                nn.init.normal_(module.modulation.weight, std=0.5)
                nn.init.normal_(module.modulation.bias, std=0.5)  # type: ignore[arg-type]
    return model.requires_grad_(False)


def video_vae(image: VAE) -> VAE:
    return converted(image, VAE(replace(VIDEOS, norm=image.config.norm, width=image.config.width)))


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_inflate_weights_video_vae_equals_the_image_vae_on_images(norm: NormName) -> None:
    image = image_vae(norm)
    video = video_vae(image)
    x = noise(2, 3, 1, 16, 16)
    close(video.encode(x).mean, image.encode(x).mean)
    close(video.encode(x).logvar, image.encode(x).logvar)
    z = noise(2, 4, 1, 4, 4, seed=1)
    close(video.decode(z), image.decode(z))


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_inflate_weights_video_vae_equals_the_image_vae_on_a_still_video(norm: NormName) -> None:
    image = image_vae(norm)
    video = video_vae(image)
    x = noise(1, 3, 1, 16, 16)
    z = video.encode(x.expand(-1, -1, 9, -1, -1)).mean
    want = image.encode(x).mean
    assert z.shape == (1, 4, 3, 4, 4)
    close(z, want.expand_as(z))
    y = video.decode(z)
    assert y.shape == (1, 3, 9, 16, 16)
    close(y, image.decode(want).expand_as(y))


def test_inflate_weights_video_vae_encodes_a_moving_video_frame_by_frame() -> None:
    """Latent j is that of frame 4 j, and pixel frames 4 (j - 1) + 1 .. 4 j are latent j's: kernels look at their last frame alone."""
    image = image_vae()
    video = video_vae(image)
    x = noise(1, 3, 9, 16, 16)
    z = video.encode(x).mean
    close(z, image.encode(x[:, :, ::4]).mean)
    close(video.encode(x, chunk=4).mean, z)
    frames = image.decode(z)
    close(video.decode(z), torch.cat([frames[:, :, :1], frames[:, :, 1:].repeat_interleave(4, dim=2)], dim=2))


def test_inflate_weights_every_parameter_of_the_video_vae_gets_a_gradient() -> None:
    video = video_vae(image_vae()).requires_grad_(True)
    video.decode(video.encode(noise(1, 3, 5, 8, 8)).mean).square().sum().backward()
    past = [p.grad[:, :, :-1] for p in video.parameters() if p.grad is not None and p.dim() == 5 and p.shape[2] == 3]
    assert past and all(bool(gradient.any()) for gradient in past), "the taps that start at zero"


def test_vae_of_images_has_no_weights_for_time() -> None:
    assert {p.shape[2] for p in image_vae().parameters() if p.dim() == 5} == {1}
    with pytest.raises(ValueError, match="time_kernel: 1 is for images"):
        replace(IMAGES, strides=((1, 2, 2), (2, 2, 2)))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "other widths": (lambda: VAE(replace(VIDEOS, width=16)), lambda: VAE(IMAGES), "width is 8 there and 16 here"),
    "other strides in space": (
        lambda: VAE(replace(VIDEOS, strides=((2, 2, 2), (2, 1, 2)))),
        lambda: VAE(IMAGES),
        r"strides in space are \[\(2, 2\), \(2, 2\)\] there and",
    ),
    "videos to images": (lambda: VAE(IMAGES), lambda: VAE(VIDEOS), "time_kernel is 3 there and 1 here"),
    "other strides": (lambda: VAE(VIDEOS), lambda: VAE(replace(VIDEOS, strides=((1, 2, 2), (2, 2, 2)))), "strides is"),
    "other words": (
        lambda: SmallTextEncoder(SmallTextConfig(8, 1, 2, 32)),
        lambda: SmallTextEncoder(SmallTextConfig(8, 1, 2, 64)),
        "vocab_size is 64 there and 32 here; nothing may differ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_inflate_weights_refuses_models_that_cannot_be_inflated(name: str) -> None:
    target, source, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        inflate_weights(target(), source())
