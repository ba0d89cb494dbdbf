"""Conversion of weights to another configuration, to initialise a training (finetuning).

A denoiser of another aspect ratio gets interpolated position tables. A video autoencoder gets the inflated weights of an image
autoencoder.
"""

from dataclasses import fields
from typing import Any

import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from walt_pl.blocks.attention import Window
from walt_pl.blocks.causal_conv import CausalConv3d, Upsample
from walt_pl.models.denoiser import Denoiser
from walt_pl.models.vae import VAE

State = dict[str, Tensor]


def inflate_weights(target: nn.Module, source: nn.Module) -> State:
    """Return the state dict of `source` in the shapes of `target`.

    Args:
        target: model to initialise.
        source: model of that class with trained weights.

    Raises:
        ValueError: the configurations differ in more than can be converted.
    """
    if isinstance(target, Denoiser) and isinstance(source, Denoiser):
        return _resize_denoiser(target, source)
    if isinstance(target, VAE) and isinstance(source, VAE) and source.config.time_kernel < target.config.time_kernel:
        return _inflate_vae(target, source)
    _require_same(target.config, source.config, (), "nothing")
    return source.state_dict()


def _require_same(target: Any, source: Any, free: tuple[str, ...], may_differ: str) -> None:
    names = [field.name for field in fields(target) if field.name not in free]
    differing = [
        f"{name} is {getattr(source, name)} there and {getattr(target, name)} here"
        for name in names
        if getattr(source, name) != getattr(target, name)
    ]
    if differing:
        raise ValueError(f"is of another size: {', '.join(differing)}; {may_differ} may differ")


# ---- Another aspect ratio ----------------------------------------------------------------------------------------------


def _resize_denoiser(target: Denoiser, source: Denoiser) -> State:
    """Interpolate the position tables. All other weights do not depend on the number of tokens (docs/METHOD.md, section 3.8).

    Raises:
        ValueError: the configurations differ in more than rows and columns of size and window_size.
    """
    old, new = source.config, target.config
    may_differ = "rows and columns of size and window_size"
    probabilities = ("self_conditioning", "frame_prediction")
    _require_same(new, old, ("size", "window_size", "attention", "activation_checkpointing", *probabilities), may_differ)
    for name in probabilities:
        if bool(getattr(new, name)) != bool(getattr(old, name)):
            raise ValueError(f"has other input channels: {name} is {getattr(old, name)} there and {getattr(new, name)} here")
    if (old.size[0], old.window_size[0]) != (new.size[0], new.window_size[0]):
        raise ValueError(
            f"is of another length: size and window_size have {old.size[0]} and {old.window_size[0]} frames there, "
            f"{new.size[0]} and {new.window_size[0]} here; {may_differ} may differ"
        )
    state: State = source.state_dict()
    state["position.space"] = resize_position_table(state["position.space"].T, (1, *old.grid), (1, *new.grid)).T
    for layer in range(new.depth):
        key = f"blocks.{layer}.attention.bias.table"
        state[key] = resize_position_table(state[key], _offsets(old.window_of(layer)), _offsets(new.window_of(layer)))
    return state


def _offsets(window: Window) -> Window:
    """Return the number of offsets between two tokens of a window, along each axis."""
    return 2 * window[0] - 1, 2 * window[1] - 1, 2 * window[2] - 1


def resize_position_table(table: Tensor, old: Window, new: Window) -> Tensor:
    """Interpolate a table over a (t, h, w) grid, linearly along each axis with aligned corners.

    Aligned corners map the frame's edges to edges and the offset zero to the offset zero. At equal sizes they are the identity. Linear
    interpolation keeps a ramp a ramp up to the edge. It never overshoots, unlike the bicubic interpolation of Swin's released code.

    Args:
        table: [c (t h w)] with the grid `old`.
        old: grid of the table.
        new: grid of the result.

    Returns:
        Table [c (t h w)] with the grid `new`, in the dtype of `table`.
    """
    grid = table.double().unflatten(1, old)[None]
    return F.interpolate(grid, size=new, mode="trilinear", align_corners=True)[0].flatten(1).to(table.dtype)


# ---- From images to videos ---------------------------------------------------------------------------------------------


def _inflate_vae(target: VAE, source: VAE) -> State:
    """Inflate 2D kernels to 3D ones that see only their last frame (docs/METHOD.md, section 2.9).

    The initialised model therefore treats a video as a sequence of images.

    Raises:
        ValueError: the configurations differ in more than time_kernel and the strides in time.
    """
    may_differ = "time_kernel and the strides in time"
    _require_same(target.config, source.config, ("time_kernel", "strides"), may_differ)
    spatial = [[stride[1:] for stride in model.config.strides] for model in (source, target)]
    if spatial[0] != spatial[1]:
        raise ValueError(f"is of another size: strides in space are {spatial[0]} there and {spatial[1]} here; {may_differ} may differ")
    state: State = source.state_dict()
    for name, module in target.named_modules():
        if isinstance(module, Upsample):
            # Equal weights in every time phase: the remaining frames are right, for any number of dropped frames.
            st, sh, sw = module.factors
            for key in (f"{name}.conv.weight", f"{name}.conv.bias"):
                state[key] = repeat(state[key], "(c s) ... -> (c st s) ...", st=st, s=sh * sw)
        if isinstance(module, CausalConv3d):
            state[f"{name}.weight"] = F.pad(state[f"{name}.weight"], (0, 0, 0, 0, module.past, 0))
    return state
