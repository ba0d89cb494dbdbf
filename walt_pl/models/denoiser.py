"""The window-attention transformer that denoises latents of videos and images (W.A.L.T, arXiv 2312.06662, section 3).

The base and the super-resolution stages use this one network. A config selects its inputs beside the noisy latents.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from walt_pl.blocks.attention import AttentionName, CrossAttention, NormName, Window, WindowAttention
from walt_pl.blocks.embeddings import PositionEmbedding, TimestepEmbedding
from walt_pl.blocks.frames import FrameLayout
from walt_pl.blocks.modulation import AdaLN, FinalModulation, modulate
from walt_pl.diffusion.condition import Condition


@dataclass(frozen=True)
class DenoiserConfig:
    """Size and inputs of the denoiser. The defaults are the paper's L model on UCF-101 latents (313 M parameters)."""

    width: int = 1024
    """Channels of the token stream."""
    depth: int = 24
    """Transformer layers; spatial and spatiotemporal windows alternate, spatial first."""
    num_heads: int = 16
    """Attention heads of each layer."""
    mlp_width: int | None = None
    """Hidden width of the feed-forward part; null for 4 x width."""
    latent_channels: int = 8
    """Channels of the autoencoder's latent."""
    size: Window = (5, 16, 16)
    """Latent frames, rows and columns of a video."""
    patch_size: int = 1
    """Side of a square patch of a latent frame."""
    window_size: Window = (5, 8, 8)
    """Tokens of the spatiotemporal window (frames, rows, columns); one frame makes every layer spatial (a whole frame)."""
    lora_rank: int | None = 2
    """Rank of AdaLN-LoRA; null gives every layer its own full modulation (the paper's "separate")."""
    qk_norm: NormName = "layer"
    """Norm of queries and keys per head."""
    self_conditioning: float = 0.9
    """Probability, per sample in training, of a first pass that estimates the clean latent for the network's input; 0: no input channels
    for it."""
    frame_prediction: float = 0.0
    """Probability in training that a video has context frames; 1 for pure frame prediction; 0: no input channels for them."""
    num_classes: int | None = None
    """Number of classes, for class-conditional models."""
    text_width: int | None = None
    """Width of the text encoder's tokens, for text-conditional models."""
    stw_cross_attention: bool = False
    """Spatiotemporal layers attend to the text with their own windows instead of frames; for training on videos alone."""
    super_resolution: bool = False
    """Input channels for upscaled latents of half the size, and an embedding of their noise augmentation level."""
    attention: AttentionName = "auto"
    """Triton kernel of window attention, torch's fused attention (sdpa), or matrix products (math). auto: the kernel on GPUs where it
    compiles, matrix products on CPUs."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"denoiser.width must be a multiple of denoiser.num_heads, got {self.width} and {self.num_heads}")
        if self.size[1] % self.patch_size or self.size[2] % self.patch_size:
            raise ValueError(f"denoiser.patch_size must divide the latent's sides {self.size[1:]}, got {self.patch_size}")
        tokens = (self.size[0], *self.grid)
        if any(size % side for size, side in zip(tokens, self.window_size, strict=True)):
            raise ValueError(
                f"denoiser.window_size must divide the {tokens} tokens of a video (size {self.size}, patch_size {self.patch_size}), "
                f"got {self.window_size}"
            )
        for name in ("self_conditioning", "frame_prediction"):
            if isinstance(getattr(self, name), bool) or not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"denoiser.{name} is a probability, 0 .. 1 (0: no input channels for it), got {getattr(self, name)}")
        if self.frame_prediction and self.size[0] < 3:
            raise ValueError(f"denoiser.frame_prediction: two latent frames are given, size must have three or more, got {self.size[0]}")
        if self.super_resolution and (self.size[1] % 2 or self.size[2] % 2):
            raise ValueError(f"denoiser.size: super-resolution wants even rows and columns, got {self.size[1:]}")
        if self.stw_cross_attention and (self.text_width is None or self.window_size[0] == 1):
            raise ValueError(
                "denoiser.stw_cross_attention wants text (denoiser.text_width) and windows of several frames, "
                f"got text_width {self.text_width} and window {self.window_size}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in a frame."""
        return self.size[1] // self.patch_size, self.size[2] // self.patch_size

    @property
    def in_channels(self) -> int:
        """Input channels: the noisy latents and all inputs concatenated to them (docs/METHOD.md, section 3.1)."""
        c = self.latent_channels
        return c + c * (self.self_conditioning > 0) + (c + 1) * (self.frame_prediction > 0) + c * self.super_resolution

    def window_of(self, layer: int) -> Window:
        """Return the attention window of a layer: SW in even layers, STW in odd ones."""
        return (1, *self.grid) if layer % 2 == 0 or self.window_size[0] == 1 else self.window_size

    def text_window_of(self, layer: int) -> Window:
        """Return the window in which a layer attends to the text: a whole frame, or the layer's own window."""
        return self.window_of(layer) if self.stw_cross_attention else (1, *self.grid)


class Block(nn.Module):
    """Transformer layer: window attention, cross-attention to the text, feed-forward. The condition modulates the first and the last."""

    def __init__(self, config: DenoiserConfig, layer: int) -> None:
        super().__init__()
        d, hidden = config.width, config.mlp_width or 4 * config.width
        self.grid = config.grid
        self.norm1 = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.attention = WindowAttention(d, config.num_heads, config.window_of(layer), config.qk_norm, config.attention)
        self.text_norm = ResidualLayerNorm(d, eps=1e-6) if config.text_width else None
        text_window = config.text_window_of(layer)
        self.text = CrossAttention(d, config.num_heads, text_window, config.qk_norm, config.attention) if config.text_width else None
        self.norm2 = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        layout: FrameLayout,
        text: Tensor | None,
        mask: Tensor | None,
        text_kv: Tensor | None = None,
    ) -> Tensor:
        """Run the layer.

        The residual stream is float32, under autocast and also where an engine has cast the weights to bfloat16. Each part computes in
        the dtype of its weights and adds its output to the stream.

        Args:
            x: tokens, float32 [f n d].
            modulation: of this layer, [s 6 d].
            layout: of the frames.
            text: projected text tokens [s l d]; None for models without text.
            mask: of the text, [s l] bool, true for words.
            text_kv: keys and values of the text, see `CrossAttention`.

        Returns:
            Tokens, float32 [f n d].
        """
        dtype = self.attention.out.weight.dtype
        shift1, scale1, gate1, shift2, scale2, gate2 = layout.per_frame(modulation).unbind(dim=1)  # 6 x [f d]
        h = self.attention(modulate(self.norm1(x), shift1, scale1).to(dtype), layout, self.grid)
        x = torch.addcmul(x, gate1[:, None], h)
        if self.text is not None and self.text_norm is not None:
            assert text is not None and mask is not None
            x = x + self.text(self.text_norm(x).to(dtype), text, mask, layout, self.grid, text_kv)
        h = self.mlp(modulate(self.norm2(x), shift2, scale2).to(dtype))
        return torch.addcmul(x, gate2[:, None], h)


class ResidualLayerNorm(nn.LayerNorm):
    """LayerNorm that computes the float32 residual stream in float32, for every dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class LowResUpsampler(nn.Module):
    """Learned upsampling of low-resolution latents to the size of a super-resolution stage: convolution and depth-to-space.

    It also holds the embedding of the noise augmentation level.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, kernel_size=3, padding=1)
        self.timestep = TimestepEmbedding(width)

    def forward(self, low_res: Tensor) -> Tensor:
        """Upsample latents [f c h/2 w/2] to [f c h w]."""
        return rearrange(self.conv(low_res.to(self.conv.weight.dtype)), "f (c sh sw) h w -> f c (h sh) (w sw)", sh=2, sw=2)


@dataclass(frozen=True)
class ConditionFeatures:
    """Parts of the network that depend on the condition, and not on the timestep or the noisy latents."""

    embeddings: tuple[Tensor, ...]
    """Summands of the condition vector beside the timestep's, [s d] each."""
    low_res: Tensor | None
    """Upsampled low-resolution latents [f c h w]; None for models without."""
    text: Tensor | None
    """Projected text tokens [s l d]; None for models without text."""
    mask: Tensor | None
    """[s l] bool, true for words."""
    text_kv: tuple[Tensor, ...] = ()
    """Keys and values of the text in each layer, [s l 2d]; empty where the layers compute them."""


class Denoiser(nn.Module):
    """Window-attention transformer that predicts the target of a probability path from noisy latents and their condition."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        d, p = config.width, config.patch_size
        self.low_res_upsampler = LowResUpsampler(config.latent_channels, d) if config.super_resolution else None
        self.patch_embed = nn.Linear(config.in_channels * p * p, d)
        self.position = PositionEmbedding(config.size[0], config.grid[0] * config.grid[1], d)
        self.timestep = TimestepEmbedding(d)
        # The last row stands for a dropped label.
        self.label = nn.Embedding(config.num_classes + 1, d) if config.num_classes else None
        self.text_in = nn.Linear(config.text_width, d) if config.text_width else None
        self.null_text = nn.Parameter(0.02 * torch.randn(config.text_width)) if config.text_width else None
        self.modulation = AdaLN(d, config.depth, config.lora_rank)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.final_modulation = FinalModulation(d)
        self.norm_out = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.final_layer = nn.Linear(d, config.latent_channels * p * p)
        nn.init.zeros_(self.final_layer.weight)
        nn.init.zeros_(self.final_layer.bias)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        condition: Condition,
        estimate: Tensor | None = None,
        features: ConditionFeatures | None = None,
    ) -> Tensor:
        """Predict the target of the probability path.

        Args:
            x: noisy normalised latents as frames, [f c h w].
            timestep: of each sample, integers [s].
            condition: of the samples, with their layout.
            estimate: self-conditioning, the last estimate of the clean latents [f c h w]; None stands for zeros.
            features: of the condition, from `prepare`; None to compute them.

        Returns:
            Prediction, float32 [f c h w].

        Raises:
            ValueError: the latents have another size than the config's, or there are images and cross-attention has spatiotemporal
                windows, or a super-resolution model gets no low-resolution latents.
        """
        layout = condition.layout
        if x.shape[2:] != self.config.size[1:] or (layout.videos and layout.frames != self.config.size[0]):
            raise ValueError(f"denoiser: got {layout.frames} latent frames of {tuple(x.shape[2:])}, want {self.config.size}")
        if self.config.stw_cross_attention and layout.images:
            raise ValueError(
                f"denoiser.stw_cross_attention is for videos alone, got {layout.images} images in the batch; "
                "set data.image_stacks_per_batch to 0, or denoiser.stw_cross_attention to false"
            )
        # Latents, noise and the residual stream stay float32 where an engine has cast the weights to bfloat16.
        dtype = self.patch_embed.weight.dtype
        features = self._features(condition) if features is None else features
        tokens = self.patch_embed(self._patches(self._inputs(x, condition, estimate, features.low_res)).to(dtype))
        tokens = tokens + self.position(layout.videos, layout.images)
        cond = self._vector(timestep, features)
        text_kv = features.text_kv or [None] * len(self.blocks)
        for block, modulation, kv in zip(self.blocks, self.modulation(cond), text_kv, strict=True):
            tokens = self._run(block, tokens, modulation, layout, features.text, features.mask, kv)
        shift, scale = (layout.per_frame(part) for part in self.final_modulation(cond))
        tokens = self.final_layer(modulate(self.norm_out(tokens), shift, scale).to(dtype))
        return self._frames(tokens).float()

    def prepare(self, condition: Condition) -> ConditionFeatures:
        """Return all of a pass that does not depend on the timestep, keys and values of the text included, for all steps of a sampling."""
        features = self._features(condition)
        if features.text is None:
            return features
        return replace(features, text_kv=tuple(block.text.kv(features.text) for block in self.blocks))  # type: ignore[operator, union-attr]

    def _run(self, block: Callable[..., Tensor], *args: object) -> Tensor:
        if self.config.activation_checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, *args, use_reentrant=False)
            return out
        return block(*args)

    def _inputs(self, x: Tensor, condition: Condition, estimate: Tensor | None, low_res: Tensor | None) -> Tensor:
        """Concatenate all inputs, [f in_channels h w], in the order of docs/METHOD.md, section 3.1."""
        parts = [x]
        if self.config.self_conditioning:
            parts.append(torch.zeros_like(x) if estimate is None else estimate)
        if self.config.frame_prediction:
            context_latents, mask = condition.context_latents, condition.context_mask
            if context_latents is None or mask is None:
                context_latents, mask = torch.zeros_like(x), torch.zeros_like(x[:, :1])
            parts += [context_latents * mask, mask]
        if low_res is not None:
            parts.append(low_res)
        return torch.cat(parts, dim=1)

    def _vector(self, timestep: Tensor, features: ConditionFeatures) -> Tensor:
        """Return the condition vector of each sample, [s d]: timestep, label and noise augmentation level."""
        cond = self.timestep(timestep)
        for embedding in features.embeddings:
            cond = cond + embedding
        return cond

    def _features(self, condition: Condition) -> ConditionFeatures:
        """Return the features of a condition without keys and values of the text."""
        embeddings, low_res = [], None
        if self.label is not None:
            assert condition.labels is not None and self.config.num_classes is not None
            embeddings.append(self.label(torch.where(condition.condition_kept, condition.labels, self.config.num_classes)))
        if self.low_res_upsampler is not None:
            if condition.low_res is None:
                raise ValueError("denoiser: a super-resolution model was called without a low-resolution latent")
            assert condition.noise_aug_level is not None
            embeddings.append(self.low_res_upsampler.timestep(condition.noise_aug_level))
            low_res = self.low_res_upsampler(condition.low_res)
        return ConditionFeatures(tuple(embeddings), low_res, *self._text(condition))

    def _text(self, condition: Condition) -> tuple[Tensor | None, Tensor | None]:
        """Return projected text tokens [s l d] and their mask [s l]; a dropped caption becomes one null token."""
        if self.text_in is None or self.null_text is None:
            return None, None
        assert condition.text is not None and condition.text_mask is not None
        # The dtype of a frozen encoder may differ from the model's.
        text, mask, condition_kept = condition.text.to(self.null_text.dtype), condition.text_mask, condition.condition_kept
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        text = torch.where(condition_kept[:, None, None], text, self.null_text)
        mask = torch.where(condition_kept[:, None], mask, first)
        return self.text_in(text), mask

    def _patches(self, x: Tensor) -> Tensor:
        p = self.config.patch_size
        return rearrange(x, "f c (h p) (w q) -> f (h w) (c p q)", p=p, q=p)

    def _frames(self, tokens: Tensor) -> Tensor:
        p, rows = self.config.patch_size, self.config.grid[0]
        return rearrange(tokens, "f (h w) (c p q) -> f c (h p) (w q)", h=rows, p=p, q=p)
