"""Bytes of a compiled transformer layer, from the graphs that torch.compile would compile.

AOTAutograd traces forward and backward pass together on the meta device. Its min-cut partitioner then selects the tensors that the forward
pass keeps, as for Inductor. Inductor fuses elementwise operations, norms and sums into the kernels around them: a tensor exists in memory
only where a matrix product, an attention kernel, a custom operation or the end of the graph reads or makes it. Lifetimes follow from that.
"""

import operator
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

KERNELS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "embedding_dense_backward", "index_put")
"""Operations of PyTorch, beside attention, that read and write memory: nothing is fused into them."""


@dataclass(frozen=True)
class LayerMemory:
    """Bytes of a compiled layer. Parameters and the layer's inputs do not count."""

    kept: int
    """Bytes that the forward pass keeps for the backward pass, beside the layer's inputs and its output."""
    forward: int
    """Most bytes alive in the forward pass, with `kept` and the output."""
    backward: int
    """Most bytes alive in the backward pass, with `kept` and the gradient of the output."""


def trace_layer(layer: nn.Module, inputs: tuple[Any, ...], context: Callable[[], Any]) -> LayerMemory:
    """Return the bytes of a layer as torch.compile would run it.

    Args:
        layer: on the meta device; it returns one tensor.
        inputs: its arguments. Tensors that need a gradient require one.
        context: makes the context manager of its forward pass (autocast).
    """
    # The import of these takes a second, which only plans of compiled training need.
    from torch._functorch.aot_autograd import aot_function
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    named = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    halves: list[tuple[fx.GraphModule, fx.GraphModule]] = []

    def run(*values: Tensor) -> Tensor:
        given = iter(values[len(named) :])
        arguments = [next(given) if isinstance(value, Tensor) else value for value in inputs]
        with context():
            out: Tensor = torch.func.functional_call(layer, dict(zip(named, values, strict=False)), tuple(arguments))
        return out

    def partition(joint: fx.GraphModule, joint_inputs: Any, **options: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
        halves.append(min_cut_rematerialization_partition(joint, joint_inputs, **options))
        return halves[-1]

    def leave(gm: fx.GraphModule, example_inputs: Any) -> Any:
        return gm

    traced = aot_function(run, leave, leave, partition_fn=partition, decompositions=select_decomp_table())
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the meta device and of private functions: nothing that a plan's reader could change
        traced(*named.values(), *tensors)
    forward, backward = (half.graph for half in halves[0])
    given = set(forward.find_nodes(op="placeholder"))
    sources = _sources(forward)
    outputs = [value for value in forward.output_node().args[0] if isinstance(value, fx.Node)]  # type: ignore[union-attr]
    own = {sources[node] for node in outputs} - given
    kept = sum(map(_bytes, own - {sources[outputs[0]]}))
    return LayerMemory(kept, _peak(forward, set()), _peak(backward, _owned(backward, forward)))


def _owned(backward: fx.Graph, forward: fx.Graph) -> set[fx.Node]:
    """Return the inputs of the backward pass that it may release: kept tensors and gradients, each storage once."""
    given = {node.name for node in forward.find_nodes(op="placeholder")}
    sources = {node.name: source for node, source in _sources(forward).items()}
    owned, seen = set(), set()
    for node in backward.find_nodes(op="placeholder"):
        source = sources.get(node.name)
        if node.name in given or source in seen:
            continue
        if source is not None:
            seen.add(source)
        owned.add(node)
    return owned


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    return sum(one.numel() * one.element_size() for one in values if isinstance(one, Tensor))


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    returned = schema.returns[0].alias_info if schema.returns else None
    return (returned is not None and not returned.is_write) or str(node.target).startswith("aten._unsafe_view")


def _sources(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Return the node whose memory each node's tensor lies in. Outputs of an operation with several have memory of their own."""
    sources: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        parent = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        is_view = parent is not None and (_is_view(node) or (node.target is operator.getitem and _is_view(parent)))
        sources[node] = sources[parent] if is_view and parent is not None else node
    return sources


def _is_kernel(node: fx.Node) -> bool:
    """Return whether an operation runs by itself, so that its inputs and outputs are in memory. The end of the graph counts as one."""
    namespace, _, name = str(node.target).partition(".")
    is_operation = node.op == "call_function" and node.target is not operator.getitem
    return node.op == "output" or (
        is_operation and (namespace not in ("aten", "prims") or name.split(".")[0] in KERNELS or "attention" in name)
    )


def _peak(graph: fx.Graph, owned: set[fx.Node]) -> int:
    """Return the most bytes that are alive at a time.

    Args:
        graph: forward or backward pass.
        owned: inputs that count, and end with their last use; the others do not count.
    """
    sources = _sources(graph)
    order = {node: number for number, node in enumerate(graph.nodes)}
    stored = set(owned)
    end = dict.fromkeys(graph.nodes, -1)  # place of the last reader of a tensor's memory
    for node in reversed(list(graph.nodes)):
        is_made_by_kernel = _is_kernel(node) or (node.target is operator.getitem and _is_kernel(node.args[0]))
        for user in node.users:
            is_view = sources[user] is sources[node]
            if node.op == "call_function" and (is_made_by_kernel or _is_kernel(user) or (is_view and user in stored)):
                stored.add(node)
            # Fused operations read their inputs when the tensor at the end of their kernel is written.
            is_written = _is_kernel(user) or (user in stored and not is_view)
            end[node] = max(end[node], order[user] if is_written else end[user])
    return _most_alive(graph, sources, stored, owned, end)


def _most_alive(
    graph: fx.Graph, sources: dict[fx.Node, fx.Node], stored: set[fx.Node], owned: set[fx.Node], end: dict[fx.Node, int]
) -> int:
    ends = Counter[fx.Node]()
    for node in stored:
        ends[sources[node]] = max(ends[sources[node]], end[node])
    now = sum(map(_bytes, owned))
    peak = now
    released: dict[int, int] = defaultdict(int)
    for node in owned:
        released[ends[node]] += _bytes(node)
    for number, node in enumerate(graph.nodes):
        has_parts = isinstance(node.meta.get("val"), tuple | list)
        if node in stored and sources[node] is node and node not in owned and not has_parts:
            now += _bytes(node)
            released[max(ends[node], number)] += _bytes(node)
        # Outputs that nobody reads live as long as the operation.
        peak = max(peak, now + (_bytes(node) if has_parts and _is_kernel(node) else 0))
        now -= released.pop(number, 0)
    return peak
