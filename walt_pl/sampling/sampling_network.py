"""The denoiser as one sampling calls it: features of the condition computed once, and the network as a CUDA graph."""

import torch
from torch import Tensor

from walt_pl.blocks.transfer import to_device
from walt_pl.diffusion.condition import Condition, derive_once
from walt_pl.models.denoiser import Denoiser
from walt_pl.sampling.cuda_graph import GraphedNetwork


class SamplingNetwork:
    """A denoiser for the steps of one sampling, called as `Denoise` says. Its timesteps may be on the CPU.

    Under ZeRO-3 the weights are whole only within a pass. There, each pass computes the features anew, and no graph is captured.

    Args:
        denoiser: the network.
        graphs: CUDA graphs of it; None where it runs without.
    """

    def __init__(self, denoiser: Denoiser, graphs: GraphedNetwork | None = None) -> None:
        self.denoiser = denoiser
        self.graphs = graphs
        self.whole = all(p.numel() for p in denoiser.parameters())
        self._features = derive_once(denoiser.prepare)

    def __call__(self, x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        """Predict the target of the path, see `Denoiser.forward`."""
        timestep = to_device(timestep, x.device)
        if not self.whole:
            return self.denoiser(x, timestep, condition, estimate)
        features = self._features(condition)
        if self.graphs is None or torch.is_grad_enabled():
            return self.denoiser(x, timestep, condition, estimate, features)
        return self.graphs(x, timestep, condition, estimate, features)
