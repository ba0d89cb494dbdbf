"""Windows, their bias, and the identity that images meet in spatiotemporal layers."""

import itertools
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from walt_pl.blocks import attention
from walt_pl.blocks.attention import (
    AttentionName,
    CrossAttention,
    NormName,
    RelativePositionBias,
    Window,
    WindowAttention,
    attend,
    choose_attention,
    window_partition,
    window_reverse,
)
from walt_pl.blocks.frames import FrameLayout

Drawn = TypeVar("Drawn", bound=nn.Module)

GRID = (4, 6)
STW: Window = (3, 2, 3)
LAYOUT = FrameLayout(videos=2, frames=3, images=4)
WIDTH = 16


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(window: Window, attention: AttentionName = "sdpa", qk_norm: NormName = "layer") -> WindowAttention:
    return randomised(WindowAttention(WIDTH, 2, window, qk_norm, attention))


def randomised(module: Drawn) -> Drawn:
    """Every parameter drawn, those that start at zero too."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return module


@pytest.mark.parametrize("window", [(1, 4, 6), (3, 2, 3), (3, 4, 6), (1, 1, 1), (3, 1, 2)])
def test_window_partition_and_window_reverse_are_inverses(window: Window) -> None:
    x = noise(2 * 3, 24, WIDTH)
    windows = window_partition(x, 3, GRID, window)
    assert windows.shape[1] == window[0] * window[1] * window[2]
    assert torch.equal(window_reverse(windows, 3, GRID, window), x)


def test_window_partition_gives_each_window_the_tokens_of_its_own_box() -> None:
    places = torch.tensor(list(itertools.product(range(2), range(3), range(4), range(6))))  # video, frame, row, column
    windows = window_partition(places.view(6, 24, 4), 3, GRID, STW)
    boxes = set()
    for window in windows:
        assert len(set(map(tuple, window.tolist()))) == 18
        box = {(v, t // 3, h // 2, w // 3) for v, t, h, w in window.tolist()}
        assert len(box) == 1, "tokens of two windows are mixed"
        boxes |= box
        assert window.tolist() == sorted(window.tolist()), "not in row-major order"
    assert len(boxes) == 8


@pytest.mark.parametrize("window", [(1, 3, 4), (2, 2, 3), (3, 1, 1)])
def test_relative_position_bias_looks_up_the_offset_of_each_pair_of_tokens(window: Window) -> None:
    bias = RelativePositionBias(window, num_heads=2)
    t, h, w = window
    assert bias.table.shape == (2, (2 * t - 1) * (2 * h - 1) * (2 * w - 1))
    nn.init.normal_(bias.table)
    got = bias()
    table = bias.table.view(2, 2 * t - 1, 2 * h - 1, 2 * w - 1)
    places = list(itertools.product(range(t), range(h), range(w)))
    for i, query in enumerate(places):
        for j, key in enumerate(places):
            dt, dh, dw = (q - k for q, k in zip(query, key, strict=True))
            assert torch.equal(got[:, i, j], table[:, dt + t - 1, dh + h - 1, dw + w - 1])


def test_relative_position_bias_index_stays_out_of_the_checkpoint() -> None:
    assert list(RelativePositionBias((1, 2, 2), 1).state_dict()) == ["table"]


@pytest.mark.parametrize("biased", [False, True])
def test_attend_sdpa_equals_math(biased: bool) -> None:
    q, k, v = noise(3, 2, 5, 8), noise(3, 2, 7, 8, seed=1), noise(3, 2, 7, 8, seed=2)
    bias = noise(2, 5, 7, seed=3) if biased else None
    torch.testing.assert_close(attend(q, k, v, bias, "sdpa"), attend(q, k, v, bias, "math"))
    scores = torch.einsum("bhne,bhme->bhnm", q, k) / 8**0.5 + (0 if bias is None else bias)
    torch.testing.assert_close(attend(q, k, v, bias, "math"), scores.softmax(-1) @ v)


def test_choose_attention_auto_takes_the_kernel_for_windows_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    right = {"kernel": True}
    monkeypatch.setattr(attention, "kernel_is_right", lambda *sizes: right["kernel"])

    def choose(device: str, bias: Tensor | None, dtype: torch.dtype = torch.bfloat16, e: int = 64) -> str:
        with FakeTensorMode():
            return choose_attention("auto", torch.empty(2, 2, 8, e, device=device, dtype=dtype), bias)

    window, mask = torch.zeros(2, 8, 8), torch.zeros(2, 1, 1, 8)
    assert choose("cuda:0", window) == choose("cuda:0", window, torch.float16) == "triton"
    assert {choose("cuda:0", bias) for bias in (mask, None)} == {"sdpa"}
    assert choose("cuda:0", window, torch.float32) == choose("cuda:0", window, e=129) == choose("meta", window) == "sdpa"
    assert {choose("cpu", bias) for bias in (window, mask, None)} == {"math"}
    right["kernel"] = False
    assert choose("cuda:0", window) == "sdpa"


def test_choose_attention_keeps_what_was_typed() -> None:
    q, mask = noise(2, 2, 8, 4), noise(2, 1, 1, 8)
    assert [choose_attention(name, q, noise(2, 8, 8)) for name in ("sdpa", "math")] == ["sdpa", "math"]
    assert choose_attention("triton", q, mask) == "sdpa", "the kernel takes no masks"


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton's interpreter runs the kernel on the CPU")
def test_attend_triton_on_a_cpu_says_what_it_needs_and_what_to_type() -> None:
    q = noise(2, 2, 8, 4)
    with pytest.raises(ValueError, match=r"attention: triton needs (a CUDA GPU|Triton).*type --model\.denoiser\.attention auto"):
        attend(q, q, q, noise(2, 8, 8), "triton")


@pytest.fixture
def cudnn_allowed() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize("bias", [None, noise(2, 5, 5), noise(3, 1, 1, 5)])
def test_attend_never_lets_torch_choose_cudnn(bias: Tensor | None, cudnn_allowed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library may have allowed cuDNN just before the call."""
    allowed: list[bool] = []
    fused = F.scaled_dot_product_attention

    def watch(*args: Any, **kwargs: Any) -> Tensor:
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return fused(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    q = noise(3, 2, 5, 8)
    attend(q, q, q, bias, "sdpa")
    assert allowed == [False]


def test_attend_compiled_never_lets_torch_choose_cudnn(cudnn_allowed: None) -> None:
    """torch.compile chooses the kernel of a fused call when its backend gets the graph."""
    allowed: list[bool] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return graph.forward

    q, mask = noise(3, 2, 5, 8), noise(3, 1, 1, 5)
    compiled = torch.compile(attend, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(q, q, q, mask, "sdpa"), attend(q, q, q, mask, "math"))
    assert allowed == [False]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN runs on a CUDA GPU, and there is none")
@pytest.mark.parametrize("compiled", [False, True])
def test_attend_has_finite_gradients_at_576_keys_and_logits_of_minus_120(compiled: bool, cudnn_allowed: None) -> None:
    """`text_to_video/sr1` has 448 tokens and 128 words. cuDNN before 9.26 gives NaN where a row's log-sum-exp is below -88.7."""
    q = torch.full((2, 16, 448, 64), 15**0.5, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    k = torch.full((2, 16, 576, 64), -(15**0.5), device="cuda", dtype=torch.bfloat16, requires_grad=True)
    v = torch.randn(2, 16, 576, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    mask = torch.zeros(2, 1, 1, 576, device="cuda", dtype=torch.bfloat16)
    mask[:, ..., 500:] = -torch.inf
    call = torch.compile(attend, fullgraph=True) if compiled else attend
    out = call(q, k, v, mask, "auto")
    gradients = torch.autograd.grad(out.float().square().sum(), (q, k, v))
    assert all(x.isfinite().all() for x in (out, *gradients))
    torch.testing.assert_close(out, v[:, :, :500].float().mean(2, keepdim=True).expand_as(out).to(out.dtype), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("window", [(1, *GRID), STW])
@pytest.mark.parametrize("qk_norm", ["layer", "rms", "none"])
@torch.no_grad()
def test_window_attention_sdpa_equals_math(window: Window, qk_norm: NormName) -> None:
    x = noise(LAYOUT.total_frames, 24, WIDTH)
    fused, math = layer(window, "sdpa", qk_norm), layer(window, "math", qk_norm)
    torch.testing.assert_close(fused(x, LAYOUT, GRID), math(x, LAYOUT, GRID), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_window_attention_images_get_value_projection() -> None:
    attention = layer(STW)
    x = noise(LAYOUT.total_frames, 24, WIDTH)
    y = attention(x, LAYOUT, GRID)
    images = x[LAYOUT.video_frames :]
    values = attention.qkv(images)[..., 2 * WIDTH :]
    torch.testing.assert_close(y[LAYOUT.video_frames :], attention.out(values))


@torch.no_grad()
def test_window_attention_of_images_equals_attention_under_an_identity_mask() -> None:
    """Masked attention, computed in full, gives what the layer computes with W_o v alone."""
    attention = layer((3, *GRID))
    x = noise(4, 24, WIDTH)
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    mask = torch.full((24, 24), -torch.inf).fill_diagonal_(0.0)
    masked = attend(attention.q_norm(q), attention.k_norm(k), v, mask, "math").transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x, FrameLayout(0, 3, 4), GRID), attention.out(masked), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_window_attention_image_token_depends_on_itself_alone_in_stw_layer() -> None:
    attention = layer(STW)
    x = noise(LAYOUT.total_frames, 24, WIDTH)
    changed = noise(LAYOUT.total_frames, 24, WIDTH, seed=9)
    changed[7, 5] = x[7, 5]
    torch.testing.assert_close(attention(changed, LAYOUT, GRID)[7, 5], attention(x, LAYOUT, GRID)[7, 5])


@pytest.mark.parametrize("window", [(1, *GRID), STW])
@torch.no_grad()
def test_window_attention_joint_batch_equals_videos_and_images_apart(window: Window) -> None:
    attention = layer(window)
    x = noise(LAYOUT.total_frames, 24, WIDTH)
    apart = [attention(x[:6], FrameLayout(2, 3, 0), GRID), attention(x[6:], FrameLayout(0, 3, 4), GRID)]
    torch.testing.assert_close(attention(x, LAYOUT, GRID), torch.cat(apart), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [(1, *GRID), STW])
@torch.no_grad()
def test_window_attention_tokens_depend_on_their_own_window_only(window: Window) -> None:
    attention = layer(window)
    layout = FrameLayout(1, 3, 0)
    x = noise(3, 24, WIDTH)
    y = attention(x, layout, GRID)
    x[1, 0] += 1  # frame 1, row 0, column 0
    moved = (attention(x, layout, GRID) - y).abs().amax(dim=-1).view(3, *GRID) > 1e-6
    want = torch.zeros(3, *GRID, dtype=torch.bool)
    if window[0] == 1:
        want[1] = True
    else:
        want[:, :2, :3] = True
    assert torch.equal(moved, want)


def test_window_attention_stw_gives_every_parameter_a_gradient_from_images_alone() -> None:
    attention = layer(STW)
    attention(noise(4, 24, WIDTH), FrameLayout(0, 3, 4), GRID).sum().backward()
    assert all(p.grad is not None for p in attention.parameters())


@torch.no_grad()
def test_qk_norm_bounds_the_attention_logits() -> None:
    """Queries and keys a thousand times as large change nothing."""
    attention = layer((1, *GRID), qk_norm="rms")
    nn.init.zeros_(attention.qkv.bias)
    x = noise(4, 24, WIDTH)
    before = attention(x, FrameLayout(0, 3, 4), GRID)
    attention.qkv.weight[: 2 * WIDTH] *= 1000
    torch.testing.assert_close(attention(x, FrameLayout(0, 3, 4), GRID), before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "math"])
@torch.no_grad()
def test_cross_attention_ignores_the_padding_of_the_text(attention: AttentionName) -> None:
    text_layer = randomised(CrossAttention(WIDTH, 2, (1, *GRID), "layer", attention))
    x, text = noise(LAYOUT.total_frames, 24, WIDTH), noise(6, 5, WIDTH, seed=1)
    mask = torch.arange(5) < torch.tensor([1, 2, 3, 4, 5, 3])[:, None]
    y = text_layer(x, text, mask, LAYOUT, GRID)
    garbage = torch.where(mask[..., None], text, 100 * noise(6, 5, WIDTH, seed=2))
    torch.testing.assert_close(text_layer(x, garbage, mask, LAYOUT, GRID), y, atol=1e-5, rtol=1e-4)
    longer = torch.cat([text, noise(6, 3, WIDTH, seed=3)], dim=1)
    torch.testing.assert_close(text_layer(x, longer, F.pad(mask, (0, 3)), LAYOUT, GRID), y, atol=1e-5, rtol=1e-4)
    other = torch.where(mask[..., None], noise(6, 5, WIDTH, seed=4), text)
    assert not torch.allclose(text_layer(x, other, mask, LAYOUT, GRID), y, atol=1e-2), "words do matter"


@torch.no_grad()
def test_cross_attention_attends_to_the_frame_itself_and_its_own_caption() -> None:
    text_layer = randomised(CrossAttention(WIDTH, 2, (1, *GRID), "layer", "math"))
    x, text = noise(LAYOUT.total_frames, 24, WIDTH), noise(6, 5, WIDTH, seed=1)
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[4, 3:] = False
    y = text_layer(x, text, mask, LAYOUT, GRID)
    owner = [0, 0, 0, 1, 1, 1, 2, 3, 4, 5]
    for frame, sample in enumerate(owner):
        keys = torch.cat([x[frame], text[sample][mask[sample]]])
        k, v = text_layer.kv(keys).view(-1, 2, 2, 8).unbind(1)
        q = text_layer.q(x[frame]).view(-1, 2, 8)
        scores = torch.einsum("nhe,mhe->hnm", text_layer.q_norm(q), text_layer.k_norm(k)) / 8**0.5
        by_hand = text_layer.out(torch.einsum("hnm,mhe->nhe", scores.softmax(-1), v).flatten(1))
        torch.testing.assert_close(y[frame], by_hand, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "math"])
@torch.no_grad()
def test_cross_attention_stw_attends_to_the_window_and_its_caption(attention: AttentionName) -> None:
    text_layer = randomised(CrossAttention(WIDTH, 2, STW, "layer", attention))
    layout = FrameLayout(videos=2, frames=3, images=0)
    x, text = noise(layout.total_frames, 24, WIDTH), noise(2, 5, WIDTH, seed=1)
    mask = torch.arange(5) < torch.tensor([5, 3])[:, None]
    y = text_layer(x, text, mask, layout, GRID)
    for video, row, column in itertools.product(range(2), range(2), range(2)):
        box = (slice(3 * video, 3 * video + 3), slice(2 * row, 2 * row + 2), slice(3 * column, 3 * column + 3))
        own = x.unflatten(1, GRID)[box].flatten(0, 2)
        k, v = text_layer.kv(torch.cat([own, text[video][mask[video]]])).view(-1, 2, 2, 8).unbind(1)
        scores = torch.einsum("nhe,mhe->hnm", text_layer.q_norm(text_layer.q(own).view(-1, 2, 8)), text_layer.k_norm(k)) / 8**0.5
        by_hand = text_layer.out(torch.einsum("hnm,mhe->nhe", scores.softmax(-1), v).flatten(1))
        torch.testing.assert_close(y.unflatten(1, GRID)[box].flatten(0, 2), by_hand, atol=1e-5, rtol=1e-4)
