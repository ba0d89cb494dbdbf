"""Count operations and bytes of a training step on the meta device, where tensors have shapes and no bytes.

Operations are counted by PyTorch's own formulas (torch.utils.flop_counter). Activations are counted by following every tensor from its
creation to its release.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from walt_pl.training.attention_model import window_attention


class AutocastEmulation(TorchFunctionMode):
    """Emulate two GPU features that the meta device lacks: autocast, and attention kernels that never store the scores.

    Custom operations run as they are: they have shapes of their own for the meta device, and autocast leaves their inputs alone.

    Args:
        low: dtype of autocast (its lists of functions are PyTorch's); None computes in the dtype of the tensors.
        window_kernel: whether the attention of windows with a bias runs in the kernel of walt_pl.training.attention_model.
    """

    LOW = ("linear", "matmul", "bmm", "conv2d", "conv3d", "scaled_dot_product_attention")
    FLOAT32 = ("layer_norm", "group_norm", "softmax", "softplus")

    def __init__(self, low: torch.dtype | None, window_kernel: bool = False) -> None:
        super().__init__()
        self.low = low
        self.window_kernel = window_kernel
        self._weights: dict[nn.Parameter, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if self.low is not None and name in self.LOW + self.FLOAT32:
            dtype = self.low if name in self.LOW else torch.float32
            args = [self._cast(value, dtype) for value in args]
            kwargs = {key: self._cast(value, dtype) for key, value in kwargs.items()}
        if name != "scaled_dot_product_attention":
            return func(*args, **kwargs)
        return _attention(self.window_kernel, *args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if isinstance(value, nn.Parameter) and dtype == self.low:
            # Autocast caches its copies of the weights until the end of the forward pass.
            if value not in self._weights:
                self._weights[value] = value.to(dtype)
            return self._weights[value]
        return value.to(dtype)

    def forget(self) -> None:
        """Release the cached copies of the weights at the end of the forward pass."""
        self._weights.clear()


def _attention(window_kernel: bool, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Call the memory-efficient kernel, which GPUs use for a bias with a gradient, or that of windows for a bias [heads n n]."""
    if window_kernel and attn_mask is not None and attn_mask.dim() == 3:
        return window_attention(q, k, v, attn_mask)[0]
    bias = None if attn_mask is None else attn_mask.expand(*q.shape[:-1], k.shape[-2])
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, torch.is_grad_enabled())[0]
    return out


Outputs = list[tuple[torch.Size, tuple[int, ...], torch.dtype] | None]

_KNOWN_OUTPUTS: dict[Any, tuple[type, Outputs] | None] = {}
"""Operation and description of its inputs -> type and tensors of its outputs; None for operations that must run."""


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on meta tensors, or make its outputs where it ran on such inputs before.

    Outputs have shapes alone, which follow from the shapes of the inputs. Many operations (norms, broadcast sums) have no kernel for the
    meta device: PyTorch takes them apart in Python, which would be most of a plan's time.
    """
    key = (func, _describe(args), _describe(tuple(kwargs.items())))
    if key not in _KNOWN_OUTPUTS:
        out = func(*args, **kwargs)
        _KNOWN_OUTPUTS[key] = _describe_outputs(out, tree_leaves((args, kwargs)))
        return out
    known = _KNOWN_OUTPUTS[key]
    if known is None:
        return func(*args, **kwargs)
    kind, outputs = known
    made = [None if one is None else torch.empty_strided(one[0], one[1], dtype=one[2], device="meta") for one in outputs]
    return made[0] if kind is Tensor else kind(made)


def _describe(value: Any) -> Any:
    """Return all that the outputs' shapes depend on, as a key of a dictionary."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(map(_describe, value))
    return type(value), value  # 1, 1.0 and True are one key otherwise


def _describe_outputs(out: Any, inputs: list[Any]) -> tuple[type, Outputs] | None:
    """Return type and tensors of outputs; None if one of them is no new tensor, but a view of an input or a number."""
    kind, outs = (Tensor, [out]) if isinstance(out, Tensor) else (type(out), out)
    if kind not in (Tensor, tuple, list) or not all(one is None or isinstance(one, Tensor) for one in outs):
        return None
    before = {one.untyped_storage()._cdata for one in inputs if isinstance(one, Tensor)}
    if any(one is not None and one.untyped_storage()._cdata in before for one in outs):
        return None
    return kind, [None if one is None else (one.shape, one.stride(), one.dtype) for one in outs]


class CostMeter(TorchDispatchMode):
    """Count every operation, and follow the storage of every tensor that an operation makes.

    FlopCounterMode itself is not used: it follows modules as well, which fails in the gradient penalty's autograd.grad.

    Args:
        known: tensors whose bytes do not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.flops: Counter[str] = Counter({"attention": 0, "matrices": 0, "convolutions": 0})
        self._known = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in known}
        self._living: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # The function modes around this one would see every access to a shape; they have nothing to say here.
        with torch._C.DisableTorchFunction():
            out = _run(func, args, kwargs)
            operation = func._overloadpacket
            if operation in flop_registry:
                self.flops[_kind(str(operation))] += flop_registry[operation](*args, **kwargs, out_val=out)
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known or key in self._living:
            return
        self._living.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._end, key, storage.nbytes())

    def _end(self, key: int, size: int) -> None:
        self._living.discard(key)
        self.now -= size


@dataclass(frozen=True)
class StepCost:
    """Operations and bytes of a pass."""

    flops: Mapping[str, float]
    """Operations by kind: attention, matrices, convolutions. A multiplication and an addition count as two."""
    forward: Mapping[str, float]
    """Operations of the forward pass alone, by kind."""
    kept: int
    """Bytes that are alive at the end of the forward pass."""
    peak: int
    """Most bytes that are alive at a time, without parameters and their gradients."""


def cost_of(
    step: Callable[[], Tensor], modules: Iterable[nn.Module], low: torch.dtype | None = None, window_kernel: bool = False
) -> StepCost:
    """Run ``step`` on the meta device, and the backward pass from its loss, if the loss requires a gradient.

    Args:
        step: a forward pass that returns the loss.
        modules: modules whose parameters and buffers do not count; they are counted elsewhere.
        low: dtype of autocast.
        window_kernel: as for `AutocastEmulation`.
    """
    modules = list(modules)
    parameters = [p for module in modules for p in module.parameters()]
    with _without_gradients(parameters):
        meter = CostMeter([*parameters, *(b for module in modules for b in module.buffers())])
        with torch.device("meta"), meter, (arithmetic := AutocastEmulation(low, window_kernel)):
            loss = step()
            arithmetic.forget()
            forward, kept = dict(meter.flops), meter.now
            if loss.requires_grad:
                # The modes are off inside loss.backward(), but layers are recomputed there. This call keeps them on.
                _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)
    return StepCost(dict(meter.flops), forward, kept, meter.peak)


@contextmanager
def _without_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Release each gradient as soon as it is computed: gradients are counted elsewhere."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(drop) for p in parameters if p.requires_grad]
    yield
    for hook in hooks:
        hook.remove()


def _kind(operation: str) -> str:
    """Return the kind of an operation.

    Products of batches of matrices count as attention. A thousandth of them is the correction of AdaLN-LoRA.
    """
    if "convolution" in operation:
        return "convolutions"
    return "attention" if "attention" in operation or "bmm" in operation else "matrices"


def sum_flops(*parts: tuple[float, Mapping[str, float]]) -> dict[str, float]:
    """Return the sum of the operations of passes, by kind.

    Args:
        *parts: pairs of the number of times that a pass runs in a step, and its operations by kind.
    """
    return {kind: sum(times * flops[kind] for times, flops in parts) for kind in parts[0][1]}
