"""The window-attention denoiser: joint batches, its inputs, and its size."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.condition_subset import select
from walt_pl.blocks.embeddings import PositionEmbedding, TimestepEmbedding
from walt_pl.blocks.frames import FrameLayout
from walt_pl.diffusion.condition import Condition
from walt_pl.models.denoiser import Block, Denoiser, DenoiserConfig

LAYOUT = FrameLayout(videos=2, frames=3, images=3)
TINY = DenoiserConfig(
    width=16,
    depth=4,
    num_heads=2,
    latent_channels=2,
    size=(3, 8, 12),
    patch_size=2,
    window_size=(3, 2, 3),
    frame_prediction=0.1,
    num_classes=5,
    text_width=6,
    super_resolution=True,
)
STEP = torch.tensor([999, 5, 300, 20, 700])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(config: DenoiserConfig = TINY) -> Denoiser:
    """A denoiser with every parameter drawn: at its start the output is zero whatever the input."""
    denoiser = Denoiser(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return denoiser.requires_grad_(False)


def latents(seed: int = 0) -> Tensor:
    return noise(LAYOUT.total_frames, 2, 8, 12, seed=seed)


def told(**change: Tensor) -> Condition:
    mask = torch.zeros(LAYOUT.total_frames, 1, 8, 12)
    mask[[0, 3, 4]] = 1
    whole = Condition(
        LAYOUT,
        condition_kept=torch.tensor([True, False, True, True, False]),
        text=noise(5, 4, 6, seed=2),
        text_mask=torch.arange(4) < torch.tensor([4, 2, 1, 3, 2])[:, None],
        labels=torch.tensor([0, 4, 2, 3, 1]),
        context_latents=latents(3),
        context_mask=mask,
        low_res=noise(LAYOUT.total_frames, 2, 4, 6, seed=4),
        noise_aug_level=torch.tensor([0, 10, 349, 100, 5]),
    )
    return replace(whole, **change)  # type: ignore[arg-type]


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def differs(got: Tensor, want: Tensor) -> bool:
    return float((got - want).detach().abs().amax()) > 1e-2


VARIANTS = {
    "everything": TINY,
    "fused attention": replace(TINY, attention="sdpa"),
    "rms, separate": replace(TINY, qk_norm="rms", lora_rank=None),
    "class only": replace(TINY, text_width=None, super_resolution=False, frame_prediction=0, self_conditioning=0),
    "spatial only": replace(TINY, window_size=(1, 4, 6)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_denoiser_joint_batch_equals_videos_and_images_apart(name: str) -> None:
    denoiser = drawn(VARIANTS[name])
    x, condition, estimate = latents(), told(), latents(5)
    joint = denoiser(x, STEP, condition, estimate)
    assert joint.shape == x.shape and joint.dtype == torch.float32
    videos = torch.tensor([True, True, False, False, False])
    for rows in (videos, ~videos, *torch.eye(5, dtype=torch.bool)):
        frames = LAYOUT.per_frame(rows)
        close(denoiser(x[frames], STEP[rows], select(condition, rows), estimate[frames]), joint[frames])


def test_denoiser_sdpa_equals_math() -> None:
    fused, math = (drawn(replace(TINY, attention=name)) for name in ("sdpa", "math"))
    close(fused(latents(), STEP, told()), math(latents(), STEP, told()))


def test_denoiser_prediction_starts_at_zero() -> None:
    assert torch.equal(Denoiser(TINY)(latents(), STEP, told()), torch.zeros(LAYOUT.total_frames, 2, 8, 12))


def test_denoiser_spatial_and_spatiotemporal_layers_alternate() -> None:
    assert [TINY.window_of(layer) for layer in range(4)] == [(1, 4, 6), (3, 2, 3)] * 2
    assert {replace(TINY, window_size=(1, 2, 2)).window_of(layer) for layer in range(4)} == {(1, 4, 6)}


def test_denoiser_frames_interact_through_spatiotemporal_windows_only() -> None:
    """A spatial layer keeps frames apart; a spatiotemporal one behind it joins them within its windows."""
    denoiser = drawn(DenoiserConfig(16, 1, 2, latent_channels=2, size=(3, 8, 12), window_size=(3, 4, 4)))
    layout = FrameLayout(1, 3, 0)
    condition, x, timestep = Condition(layout, torch.ones(1, dtype=torch.bool)), latents()[:3], torch.tensor([500])
    y = denoiser(x, timestep, condition)
    x[2, :, 0, 0] += 1
    moved = (denoiser(x, timestep, condition) - y).abs().amax(dim=(1, 2, 3)) > 1e-6
    assert moved.tolist() == [False, False, True], "a spatial layer keeps frames apart"
    denoiser = drawn(DenoiserConfig(16, 2, 2, latent_channels=2, size=(3, 8, 12), window_size=(3, 4, 4)))
    y = denoiser(x, timestep, condition)
    x[2, :, 0, 0] += 1
    assert bool(((denoiser(x, timestep, condition) - y).abs().amax(dim=(1, 2, 3)) > 1e-6).all())


def test_position_embedding_gives_an_image_the_place_of_a_first_frame() -> None:
    position = PositionEmbedding(frames=3, tokens=4, width=8)
    out = position(2, 2)
    assert out.shape == (8, 4, 8)
    assert torch.equal(out[:3], out[3:6])
    assert torch.equal(out[6], out[0]) and torch.equal(out[7], out[0])
    assert torch.equal(out[1], position.space + position.time[1])


def test_timestep_embedding_tells_the_last_timesteps_apart() -> None:
    embedding = TimestepEmbedding(8)
    out = embedding(torch.tensor([998, 999]))
    assert differs(100 * out[:1], 100 * out[1:])


def test_denoiser_without_estimate_equals_an_estimate_of_zeros() -> None:
    denoiser = drawn()
    assert torch.equal(denoiser(latents(), STEP, told()), denoiser(latents(), STEP, told(), torch.zeros_like(latents())))
    assert differs(denoiser(latents(), STEP, told(), latents(5)), denoiser(latents(), STEP, told()))


def test_denoiser_without_context_equals_zeros_with_a_zero_mask() -> None:
    denoiser, condition = drawn(), told()
    nothing = condition.replace_context(torch.zeros_like(latents()), torch.zeros(LAYOUT.total_frames, 1, 8, 12))
    assert torch.equal(denoiser(latents(), STEP, condition.without_context()), denoiser(latents(), STEP, nothing))
    assert differs(denoiser(latents(), STEP, condition), denoiser(latents(), STEP, nothing))


def test_denoiser_sees_only_the_given_context_frames() -> None:
    denoiser, condition = drawn(), told()
    assert condition.context_latents is not None and condition.context_mask is not None
    mask = condition.context_mask.bool()
    hidden = replace(condition, context_latents=torch.where(mask, condition.context_latents, latents(8)))
    close(denoiser(latents(), STEP, hidden), denoiser(latents(), STEP, condition))
    other = replace(condition, context_latents=torch.where(mask, latents(8), condition.context_latents))
    assert differs(denoiser(latents(), STEP, other), denoiser(latents(), STEP, condition))


def test_denoiser_ignores_the_padding_of_the_text() -> None:
    denoiser, condition = drawn(), told(condition_kept=torch.ones(5, dtype=torch.bool))
    assert condition.text is not None and condition.text_mask is not None
    mask = condition.text_mask[..., None]
    out = denoiser(latents(), STEP, condition)
    close(
        denoiser(latents(), STEP, replace(condition, text=torch.where(mask, condition.text, 50 * noise(5, 4, 6, seed=9)))),
        out,
    )
    longer = replace(
        condition,
        text=torch.cat([condition.text, noise(5, 2, 6, seed=9)], dim=1),
        text_mask=torch.cat([condition.text_mask, torch.zeros(5, 2, dtype=torch.bool)], dim=1),
    )
    close(denoiser(latents(), STEP, longer), out)
    assert differs(
        denoiser(latents(), STEP, replace(condition, text=torch.where(mask, noise(5, 4, 6, seed=9), condition.text))),
        out,
    )


def test_denoiser_ignores_a_dropped_caption_and_label() -> None:
    denoiser, condition = drawn(), told().without_text()
    out = denoiser(latents(), STEP, condition)
    other = replace(
        condition,
        text=noise(5, 7, 6, seed=9),
        text_mask=torch.ones(5, 7, dtype=torch.bool),
        labels=torch.zeros(5, dtype=torch.int64),
    )
    close(denoiser(latents(), STEP, other), out)
    assert differs(denoiser(latents(), STEP, replace(condition, condition_kept=~condition.condition_kept)), out)


def test_denoiser_sees_low_res_and_its_noise_aug_level() -> None:
    denoiser, condition = drawn(), told()
    out = denoiser(latents(), STEP, condition)
    assert differs(denoiser(latents(), STEP, replace(condition, low_res=noise(LAYOUT.total_frames, 2, 4, 6, seed=9))), out)
    assert differs(denoiser(latents(), STEP, replace(condition, noise_aug_level=torch.tensor([300] * 5))), out)
    with pytest.raises(ValueError, match="without a low-resolution latent"):
        denoiser(latents(), STEP, replace(condition, low_res=None))


def test_low_res_upsampler_is_a_convolution_and_depth_to_space() -> None:
    upscale, low_res = drawn().low_res_upsampler, noise(LAYOUT.total_frames, 2, 4, 6)
    assert upscale is not None and upscale.conv.kernel_size == (3, 3)
    close(upscale(low_res), nn.functional.pixel_shuffle(upscale.conv(low_res), 2))


def test_denoiser_condition_vector_sums_timestep_label_and_noise_aug_level() -> None:
    denoiser, condition = drawn(), told()
    assert denoiser.label is not None and denoiser.low_res_upsampler is not None and condition.noise_aug_level is not None
    label = denoiser.label(torch.tensor([0, 5, 2, 3, 5]))  # 5 stands for a dropped one
    want = denoiser.timestep(STEP) + label + denoiser.low_res_upsampler.timestep(condition.noise_aug_level)
    close(denoiser._vector(STEP, denoiser.prepare(condition)), want)


@pytest.mark.parametrize("layer", range(4))
def test_denoiser_has_text_attention_in_every_layer(layer: int) -> None:
    """With the text attention of all other layers switched off, the words still matter."""
    denoiser, condition = drawn(), told(condition_kept=torch.ones(5, dtype=torch.bool))
    for other, block in enumerate(denoiser.blocks):
        if other != layer:
            nn.init.zeros_(block.text.out.weight)  # type: ignore[union-attr, arg-type]
    out = denoiser(latents(), STEP, condition)
    assert differs(denoiser(latents(), STEP, replace(condition, text=noise(5, 4, 6, seed=9))), out)


def test_denoiser_patches_are_inverted_by_frames() -> None:
    denoiser = Denoiser(TINY)
    tokens = denoiser._patches(latents())
    assert tokens.shape == (LAYOUT.total_frames, 24, 8)
    assert torch.equal(denoiser._frames(tokens), latents())
    assert torch.equal(tokens[0, 7].view(2, 2, 2), latents()[0, :, 2:4, 2:4]), "token (1, 1) is the patch of rows 2-3, columns 2-3"


@pytest.mark.parametrize("layout", [LAYOUT, FrameLayout(2, 3, 0), FrameLayout(0, 3, 3)])
def test_denoiser_every_parameter_gets_a_gradient_from_videos_and_from_images(layout: FrameLayout) -> None:
    """Sharded engines wait for all of them."""
    denoiser = Denoiser(TINY)
    rows = torch.tensor([layout.videos > 0] * 2 + [layout.images > 0] * 3)
    frames = LAYOUT.per_frame(rows)
    denoiser(latents()[frames], STEP[rows], select(told(), rows)).sum().backward()
    assert [name for name, p in denoiser.named_parameters() if p.grad is None] == []


def loss_and_gradient(denoiser: Denoiser) -> tuple[Tensor, Tensor]:
    loss = denoiser.requires_grad_(True)(latents(), STEP, told()).square().mean()
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None])


def test_denoiser_activation_checkpointing_keeps_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *args: runs.append(1) or forward(self, *args))  # type: ignore[func-returns-value]
    (loss, gradient), kept = loss_and_gradient(drawn()), len(runs)
    recomputed = loss_and_gradient(drawn(replace(TINY, activation_checkpointing=True)))
    assert torch.equal(recomputed[0], loss)
    torch.testing.assert_close(recomputed[1], gradient)
    assert len(runs) - kept == 2 * kept, "every layer runs again in the backward pass"


def test_denoiser_sdpa_has_the_gradient_of_math() -> None:
    fused, math = (loss_and_gradient(drawn(replace(TINY, attention=name))) for name in ("sdpa", "math"))
    torch.testing.assert_close(fused, math, atol=1e-4, rtol=1e-3)


STW_TEXT = replace(TINY, stw_cross_attention=True)


def test_denoiser_text_reaches_a_spatiotemporal_layer_by_frame_or_by_window() -> None:
    assert [TINY.text_window_of(layer) for layer in range(4)] == [(1, 4, 6)] * 4
    assert [STW_TEXT.text_window_of(layer) for layer in range(4)] == [(1, 4, 6), (3, 2, 3)] * 2
    videos = torch.tensor([True, True, False, False, False])
    x, timestep, condition = latents()[:6], STEP[:2], select(told(), videos)
    by_frame, by_window = drawn(), drawn(STW_TEXT)
    assert by_frame.state_dict().keys() == by_window.state_dict().keys()
    assert differs(by_window(x, timestep, condition), by_frame(x, timestep, condition))
    close(by_window(x, timestep, condition), drawn(replace(STW_TEXT, attention="sdpa"))(x, timestep, condition))
    first = torch.tensor([True, False])
    close(by_window(x[:3], timestep[:1], select(condition, first)), by_window(x, timestep, condition)[:3])


def test_denoiser_refuses_images_where_text_has_spatiotemporal_windows() -> None:
    with pytest.raises(ValueError, match=r"videos alone, got 3 images in the batch; set data\.image_stacks_per_batch to 0"):
        drawn(STW_TEXT)(latents(), STEP, told())


@pytest.mark.parametrize("shape", [(9, 2, 8, 8), (9, 2, 12, 8)])
def test_denoiser_refuses_latents_of_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"want \(3, 8, 12\)"):
        Denoiser(TINY)(noise(*shape), STEP, told())


def test_denoiser_refuses_videos_of_another_length() -> None:
    with pytest.raises(ValueError, match="got 2 latent frames"):
        Denoiser(TINY)(latents()[:4], STEP[:2], Condition(FrameLayout(2, 2, 0), torch.ones(2, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "multiple of denoiser.num_heads, got 16 and 3"),
        ({"patch_size": 3}, "denoiser.patch_size must divide"),
        ({"window_size": (3, 3, 3)}, r"denoiser.window_size must divide the \(3, 4, 6\) tokens"),
        ({"window_size": (2, 2, 2)}, "denoiser.window_size must divide"),
        ({"stw_cross_attention": True, "text_width": None}, "denoiser.stw_cross_attention wants text"),
        ({"stw_cross_attention": True, "window_size": (1, 4, 6)}, "denoiser.stw_cross_attention wants text"),
        ({"size": (3, 9, 12), "patch_size": 1, "window_size": (3, 3, 3)}, "super-resolution wants even"),
        ({"size": (2, 8, 12), "window_size": (2, 2, 2)}, "size must have three or more"),
    ],
)
def test_denoiser_config_refuses_values_that_do_not_fit(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)  # type: ignore[arg-type]


def test_denoiser_config_in_channels_count_the_inputs() -> None:
    base = DenoiserConfig(self_conditioning=0)
    assert base.in_channels == 8
    assert replace(base, self_conditioning=0.9).in_channels == 16
    assert replace(base, self_conditioning=0.9, frame_prediction=0.1).in_channels == 25
    assert replace(base, self_conditioning=0.9, frame_prediction=0.1, super_resolution=True).in_channels == 33


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_block_adds_window_attention_text_attention_and_feed_forward() -> None:
    """The block against its equations, with the modulation of one sample for all."""
    torch.manual_seed(0)
    config = replace(TINY, qk_norm="none")
    block, layout = Block(config, 0), FrameLayout(videos=1, frames=TINY.size[0], images=0)
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)
    tokens, text = noise(layout.total_frames, config.grid[0] * config.grid[1], config.width), noise(1, 4, config.width, seed=2)
    mask, modulation = torch.ones(1, 4, dtype=torch.bool), noise(1, 6, config.width, seed=3)
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation[0]

    def normalised(x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (config.width,), eps=1e-6)

    assert block.text is not None and block.text_norm is not None
    wanted = tokens + gate1 * block.attention(normalised(tokens) * (1 + scale1) + shift1, layout, config.grid)
    wanted = wanted + block.text(block.text_norm(wanted), text, mask, layout, config.grid)
    wanted = wanted + gate2 * block.mlp(normalised(wanted) * (1 + scale2) + shift2)
    close(block(tokens, modulation, layout, text, mask), wanted)
