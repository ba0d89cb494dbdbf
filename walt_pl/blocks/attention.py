"""Window attention over frames of tokens (W.A.L.T, arXiv 2312.06662, section 3.2).

Tokens have the shape `[f n d]`: frames of the batch, tokens of a frame, width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from walt_pl.blocks.bias_gather import gather_bias
from walt_pl.blocks.cudnn_attention import disable_cudnn_attention
from walt_pl.blocks.frames import FrameLayout
from walt_pl.blocks.window_attention import WIDEST_HEAD, compute_dtype_of, explain_refusal, kernel_is_right, window_attention

Window = tuple[int, int, int]
AttentionName = Literal["auto", "triton", "sdpa", "math"]
NormName = Literal["layer", "rms", "none"]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, name: AttentionName) -> Tensor:
    """Return the attention of queries over keys and values.

    Args:
        q: queries [b heads n e].
        k: keys [b heads m e].
        v: values [b heads m e].
        bias: additive bias that broadcasts to [b heads n m]; None for none. One with three axes [heads n n] is a window's, equal for all b.
        name: see `choose_attention`.

    Returns:
        Attended values [b heads n e].
    """
    name = choose_attention(name, q, bias)
    if name == "triton":
        assert bias is not None
        return window_attention(q, k, v, bias)
    if name == "sdpa":
        return _sdpa(q, k, v, bias)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def choose_attention(name: AttentionName, q: Tensor, bias: Tensor | None) -> AttentionName:
    """Return how attention is computed: `triton`, `sdpa` or `math`.

    `triton` is the kernel of window attention; attention to text, whose bias is a mask, then takes `sdpa`. `sdpa` is torch's fused call,
    never by cuDNN. `math` is matrix product, softmax, matrix product. `auto` decides by the device:

    - CUDA: the kernel for windows in bfloat16 or float16, if it compiles and gives right values there; else `sdpa`. Its exact float32
      products run outside the tensor cores, so float32 takes `sdpa`.
    - CPUs: `math`. The fused call takes its slow path for a bias of three axes and for a bias with a gradient. In bfloat16 `math` takes
      0.3 to 0.6 of its CPU time for windows of 16 to 1,024 tokens, and 0.5 to 0.8 of it for masks with a gradient. In float32 `math`
      takes 0.55 to 1.1 of it for windows. Masks favour `sdpa` in float32, by up to 1.7 times at 16 tokens.
    - Other devices: `sdpa`.

    Args:
        name: as typed.
        q: queries [b heads n e].
        bias: as in `attend`.

    Raises:
        ValueError: `triton` was typed and cannot run here.
    """
    of_window = bias is not None and bias.dim() == 3
    if name == "triton":
        refusal = explain_refusal(q) if of_window else None
        if refusal:
            raise ValueError(f"denoiser.attention: triton {refusal}; type --model.denoiser.attention auto")
        return "triton" if of_window else "sdpa"
    if name != "auto":
        return name
    if q.device.type == "cpu":
        return "math"
    if q.device.type == "cuda" and of_window and q.shape[-1] <= WIDEST_HEAD:
        dtype = compute_dtype_of(q)
        assert q.device.index is not None
        if dtype in (torch.bfloat16, torch.float16) and kernel_is_right(q.device.index, dtype, *q.shape[1:]):
            return "triton"
    return "sdpa"


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Return torch's fused attention, by any kernel but cuDNN's."""
    disable_cudnn_attention()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))


class QKNorm(nn.Module):
    """Norm of queries or keys per head, before their product (qk-norm). It bounds the attention logits."""

    def __init__(self, size: int, name: NormName) -> None:
        super().__init__()
        self.norm: nn.Module = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "none": nn.Identity}[name](size)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).to(x.dtype)


class RelativePositionBias(nn.Module):
    """Learned bias of each head and each offset within a window (Swin, arXiv 2103.14030).

    The table has (2t-1)(2h-1)(2w-1) entries for each head.
    """

    index: Tensor

    def __init__(self, window: Window, num_heads: int) -> None:
        super().__init__()
        self.window = window
        entries = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.table = nn.Parameter(torch.zeros(num_heads, entries))
        self.register_buffer("index", _relative_index(window), persistent=False)

    def forward(self) -> Tensor:
        """Return the bias of every pair of tokens, [heads n n]; call it once in a forward pass of a layer."""
        bias: Tensor = gather_bias(self.table, self.index, list(self.window))
        return bias


def _relative_index(window: Window) -> Tensor:
    """Return the table entry of each pair of the window's tokens (row-major t h w), int64 [n n]."""
    axes = torch.meshgrid(*(torch.arange(size) for size in window), indexing="ij")
    place = torch.stack([axis.flatten() for axis in axes])  # [3 n]
    offset = place[:, :, None] - place[:, None, :]  # [3 n n]
    t, h, w = (offset[i] + window[i] - 1 for i in range(3))
    return (t * (2 * window[1] - 1) + h) * (2 * window[2] - 1) + w


class WindowAttention(nn.Module):
    """Window self-attention over (t, h, w) tokens, with relative position bias and qk-norm.

    A window of one frame is a spatial layer (SW): every frame of the batch is a window, whether of a video or an image. A window of
    several frames is a spatiotemporal layer (STW): it partitions videos into windows. Images get the identity mask there. Under that
    mask attention returns each token's own value, so the layer computes only `W_o v` for images.
    """

    def __init__(self, width: int, num_heads: int, window: Window, qk_norm: NormName, attention: AttentionName) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.attention = attention
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = QKNorm(width // num_heads, qk_norm)
        self.k_norm = QKNorm(width // num_heads, qk_norm)
        self.bias = RelativePositionBias(window, num_heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, layout: FrameLayout, grid: tuple[int, int]) -> Tensor:
        """Attend within each window.

        Args:
            x: tokens [f n d].
            layout: of the frames.
            grid: (rows, columns) of tokens in a frame.

        Returns:
            Tokens [f n d].
        """
        if self.window[0] == 1:
            return self.out(self._attend(x))
        videos, images = x[: layout.video_frames], x[layout.video_frames :]
        mixed = []
        if layout.videos:
            windows = window_partition(videos, layout.frames, grid, self.window)
            mixed.append(window_reverse(self._attend(windows), layout.frames, grid, self.window))
        if layout.images:
            width = x.shape[-1]
            mixed.append(F.linear(images, self.qkv.weight[2 * width :], self.qkv.bias[2 * width :]))
        y = self.out(torch.cat(mixed) if len(mixed) > 1 else mixed[0])
        if not layout.videos and torch.is_grad_enabled():
            # Sharded engines want a gradient for every parameter on every rank. Images do not use all of them: add a zero-weighted term.
            y = y + 0 * sum(p.sum() for p in self.parameters())
        return y

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three heads e) -> three b heads n e", three=3, heads=self.num_heads)
        y = attend(self.q_norm(q), self.k_norm(k), v, self.bias(), self.attention)
        return rearrange(y, "b heads n e -> b n (heads e)")


def window_partition(x: Tensor, frames: int, grid: tuple[int, int], window: Window) -> Tensor:
    """Partition frames of videos [(v t) n d] into windows of tokens [(v nt nh nw) (t h w) d]."""
    return rearrange(
        x,
        "(v nt t) (nh h nw w) d -> (v nt nh nw) (t h w) d",
        nt=frames // window[0],
        t=window[0],
        nh=grid[0] // window[1],
        h=window[1],
        w=window[2],
    )


def window_reverse(x: Tensor, frames: int, grid: tuple[int, int], window: Window) -> Tensor:
    """Join windows of tokens [(v nt nh nw) (t h w) d] into frames [(v t) n d]: the inverse of `window_partition`."""
    return rearrange(
        x,
        "(v nt nh nw) (t h w) d -> (v nt t) (nh h nw w) d",
        nt=frames // window[0],
        nh=grid[0] // window[1],
        nw=grid[1] // window[2],
        t=window[0],
        h=window[1],
        w=window[2],
    )


class CrossAttention(nn.Module):
    """Cross-attention of a window's tokens over themselves and the text (section 3.4): keys = concat(window, text).

    The keys include the window's own tokens. A layer can therefore ignore the caption, and a one-word caption does not get all the
    weight. A window of one frame is the whole frame, for videos and images. Windows of several frames need batches without images.
    """

    def __init__(self, width: int, num_heads: int, window: Window, qk_norm: NormName, attention: AttentionName) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.attention = attention
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.q_norm = QKNorm(width // num_heads, qk_norm)
        self.k_norm = QKNorm(width // num_heads, qk_norm)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, x: Tensor, text: Tensor, mask: Tensor, layout: FrameLayout, grid: tuple[int, int], text_kv: Tensor | None = None
    ) -> Tensor:
        """Attend to the window and the text.

        Args:
            x: tokens [f n d].
            text: projected text tokens of each sample [s l d].
            mask: [s l] bool, true for words.
            layout: of the frames.
            grid: (rows, columns) of tokens in a frame.
            text_kv: keys and values of the text, `kv(text)` [s l 2d], where a sampling has computed them once; None to compute them.

        Returns:
            Tokens [f n d].
        """
        text_kv = self.kv(text) if text_kv is None else text_kv
        if self.window[0] == 1:
            return self._attend(x, text_kv, mask, layout)
        windows = window_partition(x, layout.frames, grid, self.window)
        # All windows of a video use its caption, so each window counts as a frame here.
        shared = FrameLayout(layout.videos, len(windows) // layout.videos, 0)
        return window_reverse(self._attend(windows, text_kv, mask, shared), layout.frames, grid, self.window)

    def _attend(self, x: Tensor, text_kv: Tensor, mask: Tensor, layout: FrameLayout) -> Tensor:
        kv = torch.cat([self.kv(x), layout.per_frame(text_kv)], dim=1)
        k, v = rearrange(kv, "f m (two heads e) -> two f heads m e", two=2, heads=self.num_heads)
        q = rearrange(self.q(x), "f n (heads e) -> f heads n e", heads=self.num_heads)
        own = mask.new_ones(mask.shape[0], x.shape[1])
        keep = layout.per_frame(torch.cat([own, mask], dim=1))[:, None, None]  # [f 1 1 m]
        bias = torch.zeros_like(keep, dtype=q.dtype).masked_fill(~keep, -torch.inf)
        y = attend(self.q_norm(q), self.k_norm(k), v, bias, self.attention)
        return self.out(rearrange(y, "f heads n e -> f n (heads e)"))
