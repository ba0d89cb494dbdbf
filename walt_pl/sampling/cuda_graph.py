"""A network as CUDA graphs: one launch for all kernels of a pass. For one clip, their launches take longer than their work."""

import warnings
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from walt_pl.diffusion.condition import Condition
from walt_pl.models.denoiser import ConditionFeatures

MOST_GRAPHS = 2
"""Graphs of one network that are kept: with and without guidance in a pass, or whole batches and the last one."""

Output = TypeVar("Output")
Record = Callable[[Callable[[], Tensor], torch.device], tuple[Callable[[], None], Tensor]]
"""Records a call. Returns a function that repeats it on the memory that it read, and the memory of its output."""


def record_cuda_graph(call: Callable[[], Output], device: torch.device) -> tuple[Callable[[], None], Output]:
    """Capture a call as a CUDA graph, after one call that compiles kernels and makes handles.

    Only this thread is watched during the capture: threads of data loaders pin memory at any time.

    Args:
        call: reads and writes memory of the GPU alone, and waits for nothing.
        device: the GPU.

    Returns:
        A function that launches the graph, and its output.

    Raises:
        RuntimeError: the call cannot be captured, or there is not enough memory.
    """
    with torch.cuda.device(device):
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            output = call()
    return graph.replay, output


@dataclass
class _Recorded:
    """A recorded pass: its inputs, output and replay."""

    inputs: tuple[Any, ...]
    """x, timestep, condition, estimate and features that the pass reads."""
    replay: Callable[[], None]
    output: Tensor
    source: Callable[[], ConditionFeatures | None]
    """Weak reference to the features that were copied into the inputs."""


class GraphedNetwork:
    """A denoiser that is recorded once for each set of input shapes, and replayed on new values.

    Replays read the weights where they lie: weights that change in place, as averaged ones do, need no new graph. Weights that have moved
    do. A capture that fails gives one warning, and the network runs without graphs from then on.

    Args:
        network: a denoiser. Its output may depend only on its inputs and weights.
        record: see `Record`; another one for tests without a GPU.
    """

    def __init__(self, network: nn.Module, record: Record = record_cuda_graph) -> None:
        self.network = network
        self.record = record
        self.failed = False
        self._recorded: dict[Hashable, _Recorded] = {}
        self._weights: tuple[Hashable, ...] = ()

    def __call__(self, x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None, features: ConditionFeatures) -> Tensor:
        """Return the network's output, see `Denoiser.forward`. The condition and its features have to stay as they are."""
        # Zeros stand for no estimate, so that the first step has the graph of the others.
        inputs = (x, timestep, condition, torch.zeros_like(x) if estimate is None else estimate, features)
        if self.failed:
            return self.network(*inputs)
        self._drop_stale(features)
        key = (_map_tensors(inputs, _describe), _arithmetic(x.device))
        recorded = self._recorded.pop(key, None)
        if recorded is None:
            recorded = self._try_to_record(inputs)
            if recorded is None:
                return self.network(*inputs)
        self._recorded[key] = recorded  # the last one is the newest
        while len(self._recorded) > MOST_GRAPHS:
            del self._recorded[next(iter(self._recorded))]
        _fill(recorded, inputs)
        recorded.replay()
        return recorded.output.clone()

    def clear(self) -> None:
        """Drop all graphs and their memory."""
        self._recorded.clear()

    def _drop_stale(self, features: ConditionFeatures) -> None:
        """Drop all graphs if weights have moved since. Within one sampling they do not."""
        if any(recorded.source() is features for recorded in self._recorded.values()):
            return
        state = [*self.network.parameters(), *self.network.buffers()]
        weights = tuple((w.data_ptr(), w.dtype, w.shape) for w in state)
        if weights != self._weights:
            self.clear()
        self._weights = weights

    def _try_to_record(self, inputs: tuple[Any, ...]) -> _Recorded | None:
        """Record a pass on copies of the inputs; None if that fails."""
        copies = _map_tensors(inputs, lambda x: x.clone(memory_format=torch.contiguous_format))
        device = inputs[0].device
        dtype, enabled = torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)

        def call() -> Tensor:
            # Without the cache of casts: a graph that read it would read freed memory, and weights from before a change.
            with torch.autocast(device.type, dtype, enabled=enabled, cache_enabled=False):
                return self.network(*copies)

        try:
            replay, output = self.record(call, device)
        except RuntimeError as error:  # every error of CUDA is one, that of missing memory included
            self.failed = True
            self.clear()
            _warn_once(f"sampling runs without a CUDA graph, which is slower for few clips: {error}")
            return None
        return _Recorded(copies, replay, output, weakref.ref(inputs[-1]))


def _fill(recorded: _Recorded, inputs: tuple[Any, ...]) -> None:
    """Copy inputs to where the recorded pass reads them; a condition only once for all steps of a sampling."""
    features = inputs[-1]
    parts = [0, 1, 3] if recorded.source() is features else range(len(inputs))
    for part in parts:
        for kept, new in zip(_tensors(recorded.inputs[part]), _tensors(inputs[part]), strict=True):
            kept.copy_(new)
    recorded.source = weakref.ref(features)


def _describe(x: Tensor) -> Hashable:
    return x.shape, x.dtype, x.device


def _arithmetic(device: torch.device) -> Hashable:
    """Return the modes of torch that a recorded pass keeps."""
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    return autocast, torch.is_inference_mode_enabled()


def _map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return tuples and dataclasses with each tensor in them changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_map_tensors(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: _map_tensors(getattr(value, item.name), change) for item in fields(value)})
    return value


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in tuples and dataclasses, in order."""
    found: list[Tensor] = []
    _map_tensors(value, found.append)
    return found


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
