"""Cost of a training step of the denoiser, for one GPU's share of a batch."""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from walt_pl.blocks.frames import FrameLayout
from walt_pl.diffusion.condition import Condition
from walt_pl.models.denoiser import Block, Denoiser, DenoiserConfig
from walt_pl.text.small_encoder import SmallTextConfig, SmallTextEncoder
from walt_pl.training.compiled_cost import LayerMemory, trace_layer
from walt_pl.training.step_cost import AutocastEmulation, StepCost, cost_of, sum_flops


@dataclass(frozen=True)
class Share:
    """One GPU's share of a batch: numbers of videos and images."""

    videos: int
    images: int


@dataclass(frozen=True)
class TextInput:
    """Text of a stage's batches."""

    caption: int
    """Tokens of a caption."""
    encoder: SmallTextConfig | None = None
    """Encoder that runs in every step; None where features come ready."""
    is_trained: bool = True
    """True if the encoder trains, too."""


def denoiser_cost(
    config: DenoiserConfig,
    text: TextInput,
    share: Share,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
    compiled: bool = False,
) -> StepCost:
    """Return the cost of a step of the base or a super-resolution stage, `LatentDiffusion.training_step`.

    The first pass of self-conditioning counts as a forward pass over the expected share of the samples. Each pair of layers, spatial and
    spatiotemporal, costs as much as the pair before it. A deep model therefore runs with few layers, and the cost of the others is added.

    Args:
        config: of the denoiser, possibly with activation checkpointing.
        text: of the batches.
        share: one GPU's share of the batch.
        dtype: dtype of weights and latents.
        autocast: dtype of autocast; None for no autocast.
        compiled: whether every layer is compiled. That changes the bytes; operations are those of the model without compilation.
    """
    few = 2 + config.depth % 2
    counted = _Counted(config, text, share, dtype, autocast)
    if config.depth <= few + 2:
        return counted.cost(config.depth, compiled)
    short, long = (counted.cost(depth, compiled) for depth in (few, few + 2))
    pairs = (config.depth - few) // 2
    return StepCost(
        sum_flops((1 - pairs, short.flops), (pairs, long.flops)),
        sum_flops((1 - pairs, short.forward), (pairs, long.forward)),
        short.kept + pairs * (long.kept - short.kept),
        short.peak + pairs * (long.peak - short.peak),
    )


class _Counted:
    """A training step whose depth can be selected."""

    def __init__(self, config: DenoiserConfig, text: TextInput, share: Share, dtype: torch.dtype, autocast: torch.dtype | None) -> None:
        # `auto` takes the kernel where products are bfloat16.
        name = str(config.attention)
        self.uses_kernel = name == "triton" or (name == "auto" and (autocast or dtype) is not torch.float32)
        # On the meta device `auto` would not know of the kernel. AutocastEmulation puts it in place of the fused call.
        attention: Any = "sdpa" if name in ("auto", "triton") else config.attention
        self.config = replace(config, attention=attention)
        self.text = text
        self.layout = FrameLayout(share.videos, config.size[0], share.images)
        self.dtype = dtype
        self.autocast = autocast
        # One trace serves both arithmetics of bfloat16 products. Under ZeRO a layer keeps 1 % less or more: it does not cast its weights.
        traced = (torch.float32, autocast or (dtype if dtype is not torch.float32 else None))
        layer = replace(self.config, depth=2, activation_checkpointing=False)
        self.layer_key = _LayerKey(layer, text.caption, self.layout, *traced, self.uses_kernel)
        self.encoder: SmallTextEncoder | None = None
        if text.encoder is not None:
            with torch.device("meta"):
                self.encoder = SmallTextEncoder(text.encoder).to(dtype).requires_grad_(text.is_trained)

    def cost(self, depth: int, compiled: bool) -> StepCost:
        with torch.device("meta"):
            denoiser = Denoiser(replace(self.config, depth=depth)).to(self.dtype)
        whole = self._pass(denoiser)
        if compiled:
            # Even layers are alike, and so are odd ones: spatial and spatiotemporal.
            memory = [_layer_memory(self.layer_key, number) for number in range(min(2, depth))]
            for number, block in enumerate(denoiser.blocks):
                denoiser.blocks[number] = CompiledLayer(block, memory[number % 2])
            bytes_alone = self._pass(denoiser)
            whole = replace(whole, kept=bytes_alone.kept, peak=bytes_alone.peak)
        # The first pass of self-conditioning runs over a share p of the samples. The text is encoded once for both passes.
        p = self.config.self_conditioning
        if not p:
            return whole
        with torch.no_grad():
            words = cost_of(self._words, self._modules, self.autocast)
        return replace(whole, flops=sum_flops((1, whole.flops), (p, whole.forward), (-p, words.flops)))

    @property
    def _modules(self) -> list[nn.Module]:
        return [] if self.encoder is None else [self.encoder]

    def _words(self) -> Tensor:
        if self.encoder is None:
            return torch.empty(self.layout.num_samples, self.text.caption, self.config.text_width or 0, dtype=self.dtype)
        ids, mask = (torch.zeros(self.layout.num_samples, self.text.caption, dtype=kind) for kind in (torch.int64, torch.bool))
        out: Tensor = self.encoder(ids, mask)
        return out

    def _pass(self, denoiser: Denoiser) -> StepCost:
        c, layout, dtype = self.config, self.layout, self.dtype

        def forward() -> Tensor:
            step = torch.zeros(layout.num_samples, dtype=torch.int64)
            mask = torch.ones(layout.num_samples, self.text.caption, dtype=torch.bool)
            x = torch.empty(layout.total_frames, c.latent_channels, *c.size[1:], dtype=dtype)
            condition = Condition(
                layout,
                mask[:, 0],
                self._words() if c.text_width else None,
                mask,
                labels=step,
                context_latents=x,
                context_mask=torch.empty_like(x[:, :1]),
                low_res=torch.empty(layout.total_frames, c.latent_channels, c.size[1] // 2, c.size[2] // 2, dtype=dtype),
                noise_aug_level=step,
            )
            v = denoiser(x, step, condition, torch.empty_like(x) if c.self_conditioning else None)
            return (v - torch.empty_like(v)).square().mean()

        return cost_of(forward, [denoiser, *self._modules], self.autocast, self.uses_kernel)


class _LayerKey(NamedTuple):
    """All that the bytes of a layer depend on."""

    config: DenoiserConfig
    caption: int
    layout: FrameLayout
    dtype: torch.dtype
    autocast: torch.dtype | None
    uses_kernel: bool


@lru_cache(maxsize=64)
def _layer_memory(key: _LayerKey, number: int) -> LayerMemory:
    """Return the bytes of a compiled layer. A trace takes half a second, and a plan asks for each several times."""
    c, layout, low = key.config, key.layout, key.autocast or key.dtype
    with torch.device("meta"):
        block = Block(c, number).to(key.dtype)
        stream = torch.empty(layout.total_frames, c.grid[0] * c.grid[1], c.width, requires_grad=True)
        modulation = torch.empty(layout.num_samples, 6, c.width, dtype=low, requires_grad=True)
        words = torch.empty(layout.num_samples, key.caption, c.width, dtype=low, requires_grad=True)
        mask = torch.ones(layout.num_samples, key.caption, dtype=torch.bool)
    text = (words, mask) if c.text_width else (None, None)
    return trace_layer(block, (stream, modulation, layout, *text), partial(AutocastEmulation, key.autocast, key.uses_kernel))


class CompiledLayer(nn.Module):
    """Stand-in for a compiled layer on the meta device: it holds its bytes and computes nothing.

    Args:
        layer: the layer, for its parameters.
        memory: its bytes.
    """

    def __init__(self, layer: nn.Module, memory: LayerMemory) -> None:
        super().__init__()
        self.layer = layer
        self.memory = memory

    def forward(self, x: Tensor, modulation: Tensor, layout: FrameLayout, text: Tensor | None, *_: Tensor | None) -> Tensor:
        out: Tensor = _HeldBytes.apply(self.memory, x, modulation, text, *self.layer.parameters())
        return out


class _HeldBytes(torch.autograd.Function):
    """Hold the bytes of a compiled layer in its forward and backward pass."""

    @staticmethod
    def forward(ctx: Any, memory: LayerMemory, x: Tensor, *others: Tensor | None) -> Tensor:
        out = torch.empty_like(x)
        kept = torch.empty(memory.kept, dtype=torch.uint8)
        torch.empty(max(0, memory.forward - memory.kept - out.nbytes), dtype=torch.uint8)
        ctx.memory = memory
        ctx.save_for_backward(kept, x, *others)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        kept, *inputs = ctx.saved_tensors
        gradients = [None if value is None else torch.empty_like(value) for value in inputs]
        held = kept.nbytes + gradient.nbytes + sum(value.nbytes for value in gradients if value is not None)
        torch.empty(max(0, ctx.memory.backward - held), dtype=torch.uint8)
        return None, *gradients
