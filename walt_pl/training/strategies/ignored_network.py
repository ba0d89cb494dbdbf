"""Train a network that DDP ignores: the stage averages its gradients.

DDP wants a gradient for each of its weights in every backward pass. Where some have none, it must search for unused weights, and the host
waits for its device in each pass. Two networks that take turns have no gradients together, so DDP gets one of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.nn.parallel import DistributedDataParallel

from walt_pl.training.strategies.reduction import reduce


def ignore_in_ddp(module: nn.Module, name: str) -> None:
    """Let DDP ignore the weights and buffers of one network of a module. Call it before the strategy wraps the module.

    Args:
        module: the module that DDP will wrap.
        name: attribute of the module that holds the network.
    """
    network = module.get_submodule(name)
    names = [f"{name}.{inner}" for inner, _ in (*network.named_parameters(), *network.named_buffers())]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


def broadcast_weights(strategy: Strategy, network: nn.Module) -> None:
    """Copy weights and buffers of rank zero to all ranks, as DDP does for the networks that it has; all ranks call it.

    Args:
        strategy: the strategy of the trainer; nothing is done unless it is DDP.
        network: the network, on the device of its rank.
    """
    if isinstance(strategy, DDPStrategy):
        _sync_module_states(network)


@contextmanager
def average_gradients(strategy: Strategy, network: nn.Module) -> Iterator[None]:
    """Average the gradients of an ignored network over ranks after a backward pass, which runs in the context; all ranks call it.

    DDP's reducer takes no part in that pass: it would wait for gradients of its own network. The average is queued on the device.

    Args:
        strategy: the strategy of the trainer; nothing is done unless it is DDP.
        network: network with equal weights on all ranks, all of which get a gradient.
    """
    if not isinstance(strategy, DDPStrategy):
        yield
        return
    with strategy.block_backward_sync():
        yield
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    mean = reduce(_flatten_dense_tensors(gradients))
    torch._foreach_copy_(gradients, _unflatten_dense_tensors(mean, gradients))
