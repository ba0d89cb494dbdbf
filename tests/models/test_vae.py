"""The causal autoencoder: no frame sees the future, an image is a one-frame video, and pieces make the whole."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from walt_pl.blocks.causal_conv import SpatialNorm
from walt_pl.blocks.norm_silu_pad import NormName
from walt_pl.models.vae import VAE, Posterior, VAEConfig

NORMS: tuple[NormName, ...] = ("group", "layer")


@cache
def vae(norm: NormName) -> VAE:
    """The paper's levels and strides (8 x 8 x 4), narrow; LatentNorm starts at zero, so its modulation is drawn."""
    config = VAEConfig(
        width=32 if norm == "group" else 8,
        channel_multipliers=(1, 1, 2, 2),
        num_res_blocks=(1, 1, 1, 1),
        num_middle_blocks=1,
        latent_channels=4,
        norm=norm,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VAE(config)
        for module in model.modules():
            if isinstance(module, SpatialNorm):
                nn.init.normal_(module.modulation.weight, std=0.5)
                nn.init.normal_(module.modulation.bias, std=0.5)  # type: ignore[arg-type]
    return model.requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clip(frames: int = 17, side: int = 16) -> Tensor:
    return noise(1, 3, frames, side, side)


def latent(frames: int = 5, side: int = 2) -> Tensor:
    return noise(1, 4, frames, side, side)


def other_future(x: Tensor, start: int) -> Tensor:
    y = x.clone()
    y[:, :, start:] = 3 * noise(*y[:, :, start:].shape, seed=1) + 1
    return y


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_vae_encode_future_frames_do_not_change_earlier_latents(norm: NormName) -> None:
    """Latent j sees frames up to 4 j: pixel frame k leaves every latent j with 4 j < k unchanged, bit for bit."""
    model, x = vae(norm), clip()
    before = model.encode(x)
    for k in range(1, 17):
        after = model.encode(other_future(x, k))
        context_latents = -(-k // 4)  # latents j with 4 j < k
        assert torch.equal(after.mean[:, :, :context_latents], before.mean[:, :, :context_latents]), f"frame {k} changed the past"
        assert torch.equal(after.logvar[:, :, :context_latents], before.logvar[:, :, :context_latents])
        assert not torch.equal(after.mean[:, :, context_latents], before.mean[:, :, context_latents])


@pytest.mark.parametrize("norm", NORMS)
def test_vae_encode_one_later_frame_does_not_change_earlier_latents(norm: NormName) -> None:
    model, x = vae(norm), clip()
    before = model.encode(x).mean
    for k in (1, 4, 5, 16):
        y = x.clone()
        y[:, :, k] += 1
        after = model.encode(y).mean
        assert next(j for j in range(5) if not torch.equal(after[:, :, j], before[:, :, j])) == -(-k // 4)


@pytest.mark.parametrize("norm", NORMS)
def test_vae_decode_later_latents_do_not_change_earlier_frames(norm: NormName) -> None:
    """Latent j >= 1 leaves pixel frames <= 4 (j - 1) unchanged, bit for bit."""
    model, z = vae(norm), latent()
    before = model.decode(z)
    for j in range(1, 5):
        after = model.decode(other_future(z, j))
        context_latents = 4 * (j - 1) + 1
        assert torch.equal(after[:, :, :context_latents], before[:, :, :context_latents]), f"latent {j} changed the past"
        assert not torch.equal(after[:, :, context_latents], before[:, :, context_latents])


@pytest.mark.parametrize("norm", NORMS)
def test_vae_image_is_a_one_frame_video(norm: NormName) -> None:
    model, x = vae(norm), clip()
    video, image = model.encode(x), model.encode(x[:, :, :1])
    close(image.mean, video.mean[:, :, :1])
    close(image.logvar, video.logvar[:, :, :1])
    z = latent()
    close(model.decode(z[:, :, :1]), model.decode(z)[:, :, :1])


@pytest.mark.parametrize("norm", NORMS)
def test_vae_encode_prefix_of_a_video_gives_the_prefix_of_its_latents(norm: NormName) -> None:
    model, x = vae(norm), clip()
    close(model.encode(x[:, :, :9]).mean, model.encode(x).mean[:, :, :3])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("frames", [1, 17, 25])
@pytest.mark.parametrize("chunk", [4, 8, 12, 64])
def test_vae_encode_chunked_equals_whole(norm: NormName, frames: int, chunk: int) -> None:
    model, x = vae(norm), clip(frames)
    whole, parts = model.encode(x), model.encode(x, chunk=chunk)
    close(parts.mean, whole.mean)
    close(parts.logvar, whole.logvar)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("frames", [1, 5, 7])
@pytest.mark.parametrize("chunk", [1, 2, 3, 16])
def test_vae_decode_chunked_equals_whole(norm: NormName, frames: int, chunk: int) -> None:
    model, z = vae(norm), latent(frames)
    whole = model.decode(z)
    close(model.decode(z, chunk=chunk), whole)
    cache = list(model.decode_chunks(z, chunk))
    assert max(part.shape[2] for part in cache) <= 1 + 4 * chunk
    assert sum(part.shape[2] for part in cache) == 1 + 4 * (frames - 1)


def test_vae_chunks_of_any_length_work_with_other_strides() -> None:
    """Three temporal halvings and none at full resolution: other strides than the paper's."""
    config = VAEConfig(8, (1, 1, 1, 1), ((2, 2, 2), (2, 1, 2), (2, 2, 1)), (1, 1, 1, 1), 0, 4, "layer")
    model = VAE(config).requires_grad_(False)
    x = clip(25)
    close(model.encode(x, chunk=8).mean, model.encode(x).mean)
    z = noise(1, 4, 4, 4, 4)
    close(model.decode(z, chunk=1), model.decode(z))
    assert model.decode(z).shape == (1, 3, 25, 16, 16)


@pytest.mark.parametrize("chunk", [0, 3, 6])
def test_vae_encode_refuses_a_chunk_that_the_strides_do_not_divide(chunk: int) -> None:
    with pytest.raises(ValueError, match="multiple of the temporal factor 4"):
        vae("layer").encode(clip(), chunk=chunk)


@pytest.mark.parametrize("tile", [4, 9])
def test_vae_decode_with_one_tile_equals_whole(tile: int) -> None:
    model, z = vae("layer"), latent(2, side=4)
    close(model.decode(z, tile=tile), model.decode(z))
    close(model.decode(z, chunk=1, tile=tile), model.decode(z))


@pytest.mark.parametrize(("side", "tile"), [((6, 4), 4), ((5, 9), 4), ((9, 7), 6)])
def test_vae_decode_tiles_fill_the_frame_and_blend_without_seams(side: tuple[int, int], tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, z = vae("layer"), noise(1, 4, 2, *side)
    assert model.decode(z, tile=tile).shape == (1, 3, 5, 8 * side[0], 8 * side[1])

    # With a decoder that only looks at its own cell, blending must not show at all.
    def enlarge(z: Tensor) -> Tensor:
        return z[:, :3].repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)

    monkeypatch.setattr(model.decoder, "forward", enlarge)
    close(model.decode(z, tile=tile), enlarge(z))


def test_vae_decode_refuses_a_tile_too_small_to_blend() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        vae("layer").decode(latent(), tile=3)


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 12, 16), (17, 16, 20), (2, 16, 16)])
def test_vae_encode_refuses_a_clip_that_the_strides_do_not_divide(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="want 1 \\+ a multiple of 4 frames"):
        vae("layer").encode(noise(1, 3, *shape))


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_vae_latent_is_4_x_8_x_8_times_smaller(frames: int) -> None:
    model = vae("layer")
    z = model.encode(noise(2, 3, frames, 16, 24)).mean
    assert z.shape == (2, 4, 1 + (frames - 1) // 4, 2, 3) and z.dtype == torch.float32
    assert model.decode(z).shape == (2, 3, frames, 16, 24)
    assert model.config.factors == (4, 8, 8)


def test_vae_config_defaults_are_those_of_the_paper() -> None:
    config = VAEConfig()
    assert config.factors == (4, 8, 8) and config.latent_channels == 8 and config.norm == "group"
    assert config.widths == (128, 256, 256, 512) and config.strides[0] == (1, 2, 2)


@pytest.mark.parametrize("level", range(4))
def test_vae_decoder_has_a_spatial_norm_at_every_level(level: int) -> None:
    """Its scale and shift matter, and they come from the latent."""
    model, z = vae("layer"), latent()
    norm = model.decoder.levels[level].norm  # type: ignore[union-attr]
    assert isinstance(norm, SpatialNorm)
    before = norm.modulation.weight.clone()
    decoded = model.decode(z)
    try:
        norm.modulation.weight.zero_()
        assert not torch.allclose(model.decode(z), decoded, atol=1e-3)
    finally:
        norm.modulation.weight.copy_(before)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_vae_full_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = VAE(VAEConfig())
    assert parameters(model.encoder) == pytest.approx(145e6, rel=0.01)
    assert parameters(model.decoder) == pytest.approx(225e6, rel=0.01)


@pytest.mark.parametrize("norm", NORMS)
def test_vae_every_parameter_gets_a_gradient_from_a_video_and_from_an_image(norm: NormName) -> None:
    config = VAEConfig(32, (1, 1), ((2, 2, 2),), (1, 1), 1, 4, norm)
    for frames in (3, 1):
        model = VAE(config)
        posterior = model.encode(clip(frames, 4))
        (model.decode(posterior.sample(noise(*posterior.mean.shape))) + posterior.kl().mean()).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


def test_posterior_samples_around_its_mean() -> None:
    mean, logvar = noise(2, 3, 1, 2, 2), noise(2, 3, 1, 2, 2, seed=1)
    posterior = Posterior(mean, logvar)
    assert torch.equal(posterior.sample(torch.zeros_like(mean)), mean)
    torch.testing.assert_close(posterior.sample(torch.ones_like(mean)), mean + logvar.exp().sqrt())


def test_posterior_kl_equals_torch_distributions() -> None:
    mean, logvar = noise(2, 3, 1, 2, 2), noise(2, 3, 1, 2, 2, seed=1)
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(normal(mean, (0.5 * logvar).exp()), normal(torch.zeros(()), torch.ones(()))).sum(dim=1)
    torch.testing.assert_close(Posterior(mean, logvar).kl(), want)
    assert torch.equal(Posterior(torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 2, 1, 1, 1)).kl(), torch.zeros(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": ((1, 2, 2),)}, "4 channel_multipliers want 3 strides"),
        ({"num_res_blocks": (1, 1)}, "4 channel_multipliers want 3 strides and 4 num_res_blocks"),
        ({"width": 48}, "multiples of 32"),
        ({"strides": ((3, 2, 2), (2, 2, 2), (2, 2, 2))}, "each must be 1 or 2"),
    ],
)
def test_vae_config_refuses_values_that_cannot_be_built(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAEConfig(**change)  # type: ignore[arg-type]


def test_vae_encode_gives_mean_and_clamped_log_variance() -> None:
    model, x = vae("layer"), clip()
    mean, logvar = model.encoder(x).chunk(2, dim=1)
    found = model.encode(x)
    assert torch.equal(found.mean, mean) and torch.equal(found.logvar, logvar.clamp(-30, 20))
    assert not torch.allclose(mean, logvar)
