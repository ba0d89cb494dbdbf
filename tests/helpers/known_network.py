"""A network whose error is known by hand, in the place of a denoiser, and batches of latents for it."""

from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from stages.latent_diffusion import LatentDiffusion
from tests.helpers.condition_subset import select
from walt_pl.blocks.frames import FrameLayout
from walt_pl.data.batch import JointBatch
from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.diffusion.path import ProbabilityPath, alpha_sigma_like
from walt_pl.diffusion.schedule import NoiseSchedule
from walt_pl.models.denoiser import DenoiserConfig

CONFIG = DenoiserConfig(width=8, depth=1, num_heads=2, latent_channels=2, size=(3, 4, 4), window_size=(3, 2, 2), frame_prediction=0.1)
LAYOUT = FrameLayout(videos=3, frames=3, images=2)
OWNER = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4])
"""Sample of each of the 11 frames of LAYOUT."""
ERROR = torch.arange(1.0, 12.0)
"""A number for each of them."""


@dataclass
class Call:
    """One evaluation of a network."""

    x: Tensor
    timestep: Tensor
    condition: Condition
    estimate: Tensor | None


class KnownNetwork(nn.Module):
    """Predict the output that leads to ``x0``, wrong by a known number in each frame, and record every call.

    Args:
        config: of the denoiser whose place it takes.
        x0: clean normalised latents [f c h w] of a whole batch.
        layout: of that batch. A call on part of the batch names its samples by their labels.
        error: added to every element of the output of a frame, [f].
        path: that made the input.
    """

    def __init__(
        self, config: Any, x0: Tensor, layout: FrameLayout, error: Tensor | None = None, path: ProbabilityPath = NoiseSchedule()
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.config = config
        self.x0 = x0
        self.layout = layout
        self.error = torch.zeros(layout.total_frames) if error is None else error
        self.schedule = path
        self.calls: list[Call] = []

    def prepare(self, condition: Condition) -> None:
        """Nothing is computed of the condition."""

    def forward(self, x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None = None, features: object = None) -> Tensor:
        if condition.layout == self.layout.doubled():
            return self._both_branches(x, timestep, condition, estimate)
        self.calls.append(Call(x, timestep, condition, estimate))
        rows = torch.ones(self.layout.num_samples, dtype=torch.bool)
        if condition.labels is not None:
            rows = torch.isin(torch.arange(self.layout.num_samples), condition.labels)
        frames = self.layout.per_frame(rows)
        n = condition.layout.per_frame(timestep)
        alpha, sigma = alpha_sigma_like(self.schedule, n, x)
        eps = (x - alpha * self.x0[frames]) / sigma
        return self.schedule.target(self.x0[frames], eps, n) + self.error[frames, None, None, None]

    def _both_branches(self, x: Tensor, timestep: Tensor, condition: Condition, estimate: Tensor | None) -> Tensor:
        """Record both branches of guidance, which come as one batch, as a call each."""
        layout = self.layout
        given = torch.ones(layout.num_samples, dtype=torch.bool)
        rows = layout.double_samples(given, ~given)
        outputs = []
        for branch in (rows, ~rows):
            frames = condition.layout.per_frame(branch)
            outputs.append(self(x[frames], timestep[branch], select(condition, branch), None if estimate is None else estimate[frames]))
        return layout.double_frames(*outputs)

    def eps(self, call: Call) -> Tensor:
        """Return the noise in the input of a call on the whole batch."""
        alpha, sigma = alpha_sigma_like(self.schedule, call.condition.layout.per_frame(call.timestep), call.x)
        return (call.x - alpha * self.x0) / sigma


@dataclass
class Logged:
    """A value that a module logged, and the options it gave."""

    value: float
    options: dict[str, Any]


def train_without_loop(module: L.LightningModule, total_batch_idx: int = 0, world_size: int = 1, reduced: Any = None) -> dict[str, Logged]:
    """Give a module a trainer without a loop, and return the dict that its logs go to.

    Args:
        module: its steps are called by the test.
        total_batch_idx: batches that were trained on before.
        world_size: number of ranks.
        reduced: called with a tensor and ``reduce_op`` in place of the strategy's reduce; one rank when not given.
    """
    logged: dict[str, Logged] = {}

    def log(name: str, value: Any, **options: Any) -> None:
        logged[name] = Logged(float(value), options)

    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=total_batch_idx))
    strategy = SimpleNamespace(reduce=reduced or (lambda value, reduce_op: value), root_device=torch.device("cpu"))
    module._trainer = SimpleNamespace(fit_loop=loop, strategy=strategy, world_size=world_size)  # type: ignore[assignment]
    module.log = log  # type: ignore[method-assign, assignment]
    return logged


def sgd(parameters: object) -> Optimizer:
    return SGD(parameters, lr=0.1)  # type: ignore[arg-type]


def joint_batch(layout: FrameLayout = LAYOUT, side: int = 4, weight: Tensor | None = None) -> JointBatch:
    """Return raw latents of 2 channels. Labels number the samples, so that a network knows which ones it sees."""
    generator = torch.Generator().manual_seed(0)

    def latents(count: int, frames: int, side: int) -> Tensor:
        return 3 * torch.randn(count, 2, frames, side, side, generator=generator) + 1

    return JointBatch(
        videos=latents(layout.videos, layout.frames, side),
        images=latents(layout.images, 1, side),
        captions=[f"circle {sample}" for sample in range(layout.num_samples)],
        labels=torch.arange(layout.num_samples),
        weight=torch.ones(layout.num_samples) if weight is None else weight,
        global_batch_index=torch.arange(layout.num_samples),
        low_res_videos=latents(layout.videos, layout.frames, max(1, side // 2)),
        low_res_images=latents(layout.images, 1, max(1, side // 2)),
        space="latents",
        paths=["x"] * layout.num_samples,
    )


def build_stage(kind: Any, config: DenoiserConfig = CONFIG, optimizer: Any = sgd, **settings: Any) -> Any:
    """Build a diffusion stage, its settings sorted: probabilities to the denoiser's config, others to the diffusion config or the stage."""
    probabilities = {name: settings.pop(name) for name in ("self_conditioning", "frame_prediction") if name in settings}
    names = {field.name for field in fields(DiffusionConfig)}
    diffusion = DiffusionConfig(**{name: settings.pop(name) for name in sorted(names & set(settings))})
    return kind(replace(config, **probabilities), optimizer, diffusion=diffusion, **settings)


def take_network(stage: LatentDiffusion, batch: JointBatch, error: Tensor | None = None) -> KnownNetwork:
    """Give a stage a network that leads to the latents of ``batch``."""
    x0, layout = stage.latents(batch.videos, batch.images, batch.space)
    network = KnownNetwork(stage.denoiser.config, x0, layout, error, stage.path)
    stage.denoiser = network  # type: ignore[assignment]
    return network
