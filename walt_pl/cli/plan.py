"""What a stage costs, before anybody pays for it: ``python -m walt_pl plan --config FILE``.

The stage is built on the meta device, where tensors have shapes and no bytes, and one training step of one GPU's share of the batch runs
there, forward and backward. Operations are counted by PyTorch's own formulas (torch.utils.flop_counter), activations by following every
tensor from its birth to its end. Nothing is read but the configuration: no data, no parents, no text encoder, no weight file.

How far it can be trusted (tests/cli/test_plan.py): FLOPs equal those of the stage's own training step, to the last one. What autograd
keeps of a small model in float32 on a CPU (54,656,560 bytes), and what its step allocates at most (55,504,496), came out 4 bytes too high
and 56 too low. Autocast and the attention kernel of GPUs are imitated, and no GPU has been asked yet; a tenth of a card is held back for
what is not counted: the CUDA context, fragmentation, the frozen autoencoder and text encoder, and data on its way. Days follow from the
FLOPs and from what a GPU was seen to do (--step_seconds, --tflops): they hold for a batch that keeps the GPUs as busy, and for links that
do not hold them up. What a checkpoint takes on disk came out within a hundredth of real ones of every engine.
"""

import json
import math
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveFloat
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console, Group
from rich.table import Table
from timm.optim.adafactor_bv import AdafactorBigVision
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from datamodules.joint import JointData
from stages.latent_diffusion import LatentDiffusion
from stages.vae import VAEStage
from walt_pl.blocks.frames import Layout
from walt_pl.cli.fit import Program
from walt_pl.cli.fit_checks import check_engine, check_precision
from walt_pl.diffusion.condition import Condition
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.losses import discriminator_loss, generator_loss, pick_frames, r1_penalty

CARDS = (24, 40, 80)
"""GiB of memory of the cards that a plan is tried on."""
USABLE = 0.9
"""Share of a card that may be filled with what is counted."""
CAPTION = 128
"""Tokens of a caption where the stage does not say: super-resolution takes its text encoder from the base's artifact."""
BUCKET, LIVE = 200_000_000, 1_000_000_000
"""Elements of a communication bucket (Lightning's default) and of the parameters that ZeRO-3 keeps gathered at most (DeepSpeed's)."""

FLEETS = (1, 8, 16, 32, 64, 128, 256)
"""Numbers of GPUs that days are told for, where they divide the batch; beside the number planned."""

Engine = Literal["ddp", "zero1", "zero2", "zero3"]


# ---- Running a step without bytes ------------------------------------------------------------------------------------


class Arithmetic(TorchFunctionMode):
    """What a GPU does and the meta device does not: autocast, and the attention kernel that never writes its scores down.

    Args:
        low: dtype of autocast (its lists of functions are PyTorch's); None computes in the dtype of the tensors.
    """

    LOW = ("linear", "matmul", "bmm", "conv2d", "conv3d", "scaled_dot_product_attention")
    FLOAT32 = ("layer_norm", "group_norm", "softmax", "softplus")

    def __init__(self, low: torch.dtype | None) -> None:
        super().__init__()
        self.low = low
        self._weights: dict[nn.Parameter, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if self.low is not None and name in self.LOW + self.FLOAT32:
            dtype = self.low if name in self.LOW else torch.float32
            args = [self._cast(value, dtype) for value in args]
            kwargs = {key: self._cast(value, dtype) for key, value in kwargs.items()}
        return _attention(*args, **kwargs) if name == "scaled_dot_product_attention" else func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if isinstance(value, nn.Parameter) and dtype == self.low:
            # Autocast keeps its copies of the weights until the forward pass is over.
            if value not in self._weights:
                self._weights[value] = value.to(dtype)
            return self._weights[value]
        return value.to(dtype)

    def forget(self) -> None:
        """The forward pass is over."""
        self._weights.clear()


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """The memory-efficient kernel: what GPUs take for a bias with a gradient."""
    bias = None if attn_mask is None else attn_mask.expand(*q.shape[:-1], k.shape[-2])
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, torch.is_grad_enabled())[0]
    return out


class Meter(TorchDispatchMode):
    """Counts every operation, and follows the storage of every tensor that one makes.

    Not FlopCounterMode itself: it follows modules as well, which fails in the gradient penalty's autograd.grad.

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
        out = func(*args, **kwargs)
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
class Cost:
    """What a pass takes."""

    flops: Mapping[str, float]
    """By kind: attention, matrices, convolutions. A multiplication and an addition are two."""
    forward: Mapping[str, float]
    """Those of the forward pass alone."""
    kept: int
    """Bytes that are alive when the forward pass is over."""
    peak: int
    """Bytes that are alive at most, without parameters and their gradients."""


def cost_of(step: Callable[[], Tensor], modules: Iterable[nn.Module], low: torch.dtype | None = None) -> Cost:
    """Run ``step`` on the meta device, and the backward pass from the loss that it returns, if that has one.

    Args:
        step: a forward pass.
        modules: whose parameters and buffers are counted elsewhere.
        low: dtype of autocast.
    """
    modules = list(modules)
    parameters = [p for module in modules for p in module.parameters()]
    with _without_gradients(parameters):
        meter = Meter([*parameters, *(b for module in modules for b in module.buffers())])
        with torch.device("meta"), meter, (arithmetic := Arithmetic(low)):
            loss = step()
            arithmetic.forget()
            forward, kept = dict(meter.flops), meter.now
            if loss.requires_grad:
                # loss.backward() is a function to the modes, which are off inside it; but layers are recomputed there.
                _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)
    return Cost(dict(meter.flops), forward, kept, meter.peak)


@contextmanager
def _without_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Each gradient is let go of as soon as it is there: gradients are counted apart."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(drop) for p in parameters if p.requires_grad]
    yield
    for hook in hooks:
        hook.remove()


def _kind(operation: str) -> str:
    """Products of batches of matrices are attention's; a thousandth of them is the correction of AdaLN-LoRA."""
    if "convolution" in operation:
        return "convolutions"
    return "attention" if "attention" in operation or "bmm" in operation else "matrices"


def _sum(*parts: tuple[float, Mapping[str, float]]) -> dict[str, float]:
    """Operations of passes, each so often in a step."""
    return {kind: sum(times * flops[kind] for times, flops in parts) for kind in parts[0][1]}


# ---- The training steps ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """One GPU's part of a batch."""

    videos: int
    images: int

    @classmethod
    def of(cls, data: JointData, gpus: int) -> "Share":
        """What each of ``gpus`` gets. Raises ValueError where they do not divide the batch."""
        for name in ("videos_per_batch", "image_stacks_per_batch"):
            if getattr(data, name) % gpus:
                raise ValueError(
                    f"data.{name} counts the global batch and must be a multiple of the {gpus} GPUs, got {getattr(data, name)}"
                )
        return cls(data.videos_per_batch // gpus, data.images_per_batch // gpus)


def diffusion_cost(
    stage: LatentDiffusion, config: DenoiserConfig, share: Share, caption: int, dtype: torch.dtype, low: torch.dtype | None
) -> Cost:
    """A step of the base or a super-resolution stage, `LatentDiffusion.training_step`.

    A pair of layers, spatial and spatiotemporal, costs what the pair before it does: a deep model is run with few, and the rest is added.

    Args:
        stage: built on the meta device.
        config: of its denoiser, perhaps with checkpointing.
        share: of the batch.
        caption: tokens of a caption.
        dtype: of weights and latents.
        low: dtype of autocast.
    """
    few = 2 + config.layers % 2
    if config.layers <= few + 2:
        return _diffusion_cost(stage, config, share, caption, dtype, low)
    short, long = (_diffusion_cost(stage, replace(config, layers=layers), share, caption, dtype, low) for layers in (few, few + 2))
    pairs = (config.layers - few) // 2
    return Cost(
        _sum((1 - pairs, short.flops), (pairs, long.flops)),
        _sum((1 - pairs, short.forward), (pairs, long.forward)),
        short.kept + pairs * (long.kept - short.kept),
        short.peak + pairs * (long.peak - short.peak),
    )


def _diffusion_cost(
    stage: LatentDiffusion, config: DenoiserConfig, share: Share, caption: int, dtype: torch.dtype, low: torch.dtype | None
) -> Cost:
    c, layout = config, Layout(share.videos, config.size[0], share.images)
    with torch.device("meta"):
        denoiser = Denoiser(config).to(dtype)
    encoder = getattr(stage, "text", None)
    modules = [denoiser] if encoder is None else [denoiser, encoder.to(dtype)]

    def words() -> Tensor:
        if encoder is None:
            return torch.empty(layout.samples, caption, c.text_width or 0, dtype=dtype)
        ids, mask = (torch.zeros(layout.samples, caption, dtype=kind) for kind in (torch.int64, torch.bool))
        text: Tensor = encoder(ids, mask)
        return text

    def forward() -> Tensor:
        step, mask = torch.zeros(layout.samples, dtype=torch.int64), torch.ones(layout.samples, caption, dtype=torch.bool)
        text = words() if c.text_width else None
        x = torch.empty(layout.total, c.latent_channels, *c.size[1:], dtype=dtype)
        small = torch.empty(layout.total, c.latent_channels, c.size[1] // 2, c.size[2] // 2, dtype=dtype)
        past = torch.empty_like(x[:, :1])
        condition = Condition(layout, mask[:, 0], text, mask, labels=step, past=x, past_mask=past, low=small, low_step=step)
        v = denoiser(x, step, condition, torch.empty_like(x) if c.self_conditioning else None)
        return (v - torch.empty_like(v)).square().mean()

    whole = cost_of(forward, modules, low)
    with torch.no_grad():
        text = cost_of(words, modules, low)
    # The first pass of self-conditioning is a forward pass over its share of the rows; the text is encoded once for both.
    p = stage.self_conditioning
    return replace(whole, flops=_sum((1, whole.flops), (p, whole.forward), (-p, text.flops)))


def _picture(data: JointData) -> tuple[int, int]:
    """Rows and columns of what the autoencoder is trained on."""
    crop = data.framing.crop
    return (crop, crop) if crop else data.framing.shape(data.framing.size)


def autoencoder_cost(stage: VAEStage, data: JointData, share: Share, low: torch.dtype | None) -> Cost:
    """A step of the autoencoder and one of its critic, `VAEStage.training_step`; the gradient penalty as often as it comes."""
    picture, dtype = _picture(data), next(stage.parameters()).dtype
    shapes = [(share.videos, 3, data.framing.frames, *picture), (share.images, 3, 1, *picture)]
    shapes = [shape for shape in shapes if shape[0]]
    metric = _perceptual() if stage.perceptual == "lpips" else None
    critic = stage.discriminator
    modules = [module for module in (stage, metric) if module is not None]

    def clips() -> list[Tensor]:
        return [torch.empty(shape, dtype=dtype) for shape in shapes]

    def generator() -> Tensor:
        reals, fakes, losses = clips(), [], []
        for x in reals:
            posterior = stage.vae.encode(x)
            fakes.append(stage.vae.decode(posterior.sample(torch.empty_like(posterior.mean))))
            losses += [(x - fakes[-1]).square().sum(), posterior.kl().sum()]
        if metric is not None:
            for y, x in zip(fakes, reals, strict=True):
                frames = min(x.shape[2], stage.perceptual_frames or x.shape[2])
                chosen = torch.arange(frames).expand(len(x), frames)
                losses.append(metric(pick_frames(y, chosen), pick_frames(x, chosen)).mean())
        if critic is not None:
            losses.append(generator_loss(torch.cat([critic(y) for y in fakes])).mean())
        return torch.stack(losses).sum()

    def judge(penalised: bool) -> Tensor:
        assert critic is not None
        real, fake = (torch.cat([critic(x) for x in side]) for side in (clips(), clips()))
        loss = discriminator_loss(real, fake).mean()
        if penalised:
            loss = loss + torch.cat([r1_penalty(x, critic(x)) for x in (x.requires_grad_() for x in clips())]).mean()
        return loss

    if critic is None:
        return cost_of(generator, modules, low)
    critic.requires_grad_(False)  # the turns of training_step
    reconstruct = cost_of(generator, modules, low)
    critic.requires_grad_(True)
    plain, penalised = (cost_of(partial(judge, penalised), modules, low) for penalised in (False, True))
    often = 1 / stage.r1_every if stage.r1_weight else 0.0
    turns = [reconstruct, plain, penalised] if often else [reconstruct, plain]
    return Cost(
        _sum((1, reconstruct.flops), (1 - often, plain.flops), (often, penalised.flops)),
        _sum((1, reconstruct.forward), (1 - often, plain.forward), (often, penalised.forward)),
        max(turn.kept for turn in turns),
        max(turn.peak for turn in turns),
    )


def _perceptual() -> nn.Module:
    """LPIPS without its weights."""
    import lpips

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about the way lpips calls it
        metric: nn.Module = lpips.LPIPS(net="vgg", pnet_rand=True, pretrained=False, verbose=False)
    return metric.requires_grad_(False).to("meta")


# ---- Bytes of an engine ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bytes:
    """What one GPU holds."""

    parameters: int
    gradients: int
    optimizer: int
    """Moments, and under ZeRO the float32 weights."""
    ema: int
    buffers: int
    """What the engine sends from and gathers into."""
    activations: dict[str, int]
    """"kept" through the forward pass or "recomputed" by checkpointing; at their peak."""

    def total(self, way: str) -> int:
        """All together, with activations kept or recomputed."""
        return self.parameters + self.gradients + self.optimizer + self.ema + self.buffers + self.activations[way]


def engine_bytes(
    engine: Engine, count: int, moments: int, gpus: int, precision: str, accumulate: int, ema: bool, activations: dict[str, int]
) -> Bytes:
    """What an engine holds of ``count`` trained parameters on each GPU.

    Args:
        engine: DDP as Lightning runs it, or a stage of DeepSpeed's ZeRO.
        count: parameters.
        moments: bytes of the optimiser's state for whole float32 parameters.
        gpus: that share the work.
        precision: of the trainer. "bf16-mixed" keeps float32 weights under DDP; DeepSpeed makes the weights bfloat16.
        accumulate: batches to an optimiser step.
        ema: whether there is an average, and on the GPU.
        activations: of this engine's arithmetic.
    """
    if engine == "ddp":
        # DDP's buckets are as large as the gradients, which are copied there and back.
        return Bytes(4 * count, 4 * count, moments, 4 * count * ema, 4 * count * (gpus > 1), activations)
    word, stage = 4 if precision == "32-true" else 2, int(engine[-1])

    def shard(size: int) -> int:
        return math.ceil(size / gpus)

    # Stages 1 and 2 differ while gradients are accumulated: only then does stage 1 hold them whole. The average is of the shards.
    gradients = word * count if stage == 1 and accumulate > 1 else shard(word * count)
    gathered = word * min(count, LIVE) if stage == 3 else 0
    # One is filled while the other is on its way; on the way gradients are float32.
    buckets = 2 * word * BUCKET + (4 * BUCKET if word < 4 else 0)
    parameters = shard(word * count) if stage == 3 else word * count
    return Bytes(parameters, gradients, shard(4 * count + moments), shard(4 * count) * ema, gathered + buckets, activations)


def checkpoint_bytes(engine: Engine, weights: int, count: int, moments: int, precision: str, ema: bool) -> int:
    """What one checkpoint takes on disk, all ranks together.

    Args:
        engine: that writes it.
        weights: elements of the module's parameters and buffers.
        count: those that are trained.
        moments: as for `engine_bytes`.
        precision: as for `engine_bytes`.
        ema: whether there is an average, a float32 file of its own.
    """
    if engine == "ddp":
        return 4 * weights + moments + 4 * count * ema
    # Float32 weights and moments are in the shards; beside them stages 1 and 2 keep the module as it computes, stage 3 nothing.
    word = 4 if precision == "32-true" else 2
    return (0 if engine == "zero3" else word * weights) + 4 * count + moments + 4 * count * ema


def moment_bytes(stage: LatentDiffusion | VAEStage, parameters: list[nn.Parameter], flat: bool) -> int:
    """Bytes of the state of the stage's optimiser after a step on float32 parameters.

    Args:
        stage: built on the meta device.
        parameters: what it trains.
        flat: as ZeRO sees them, in one row; then AdamW takes the place of Adafactor, which has nothing to factor.
    """
    copies = [nn.Parameter(torch.empty_like(p, device="meta", dtype=torch.float32)) for p in parameters]
    optimizer = stage.optimizer(copies)
    if flat and isinstance(optimizer, AdafactorBigVision):
        return 8 * sum(p.numel() for p in copies)
    for p in copies:
        p.grad = torch.empty_like(p)
    optimizer.step()
    return sum(
        value.numel() * value.element_size() for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    )


# ---- The plan --------------------------------------------------------------------------------------------------------


def parts_of(model: nn.Module) -> dict[str, int]:
    """Parameters of a model by part; those of all transformer blocks together."""
    parts: Counter[str] = Counter()
    for name, p in model.named_parameters():
        words = name.split(".")
        parts[".".join([words[0], *words[2:3]]) if words[0] == "blocks" else words[0]] += p.numel()
    return dict(parts)


def _numel(modules: Iterable[nn.Module | None]) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


class Plan(Program):
    """The stage that a command line describes, built on the meta device."""

    def __init__(self) -> None:
        super().__init__(run=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--gpus", type=int | None, default=None, help="GPUs that share a batch; trainer.devices x trainer.num_nodes.")
        parser.add_argument(
            "--step_seconds", type=PositiveFloat | None, default=None, help="Measured seconds of a step on --gpus GPUs: gives days."
        )
        parser.add_argument(
            "--tflops", type=PositiveFloat | None, default=None, help="TFLOP/s that each GPU reaches, in place of --step_seconds."
        )
        parser.add_argument("--disk", type=PositiveFloat, default=1000.0, help="MB/s that checkpoints are written at, all ranks together.")
        parser.add_argument("--json", type=bool, nargs="?", const=True, default=False, help="Print JSON in place of tables.")

    def before_instantiate_classes(self) -> None:
        self._name()
        check_precision(self.options.trainer)
        self._fill_parents()
        check_engine(self.stage, self.options)

    def instantiate_classes(self) -> None:
        with torch.device("meta"):
            self.config_init = self.parser.instantiate(self.config)
        self.model, self.datamodule = self.config_init.model, self.config_init.data

    @property
    def gpus(self) -> int:
        """How many share a batch."""
        trainer, given = self.options.trainer, self.options.gpus
        devices = str(trainer.devices)
        wanted: int = given if given is not None else int(devices) * int(trainer.num_nodes) if devices.isdigit() else 1
        if wanted < 1:
            raise ValueError(f"plan: --gpus must be at least 1, got {wanted}")
        return wanted

    def parameters(self) -> dict[str, Any]:
        """Parameters: of the model this stage is named for, by part, and what is trained beside it."""
        stage = self.model
        main = stage.vae if isinstance(stage, VAEStage) else stage.denoiser
        beside = {name: _numel([getattr(stage, name, None)]) for name in ("discriminator", "text")}
        return {"total": _numel([main]), "parts": parts_of(main), "beside": {name: count for name, count in beside.items() if count}}

    def report(self) -> dict[str, Any]:
        """The plan as plain numbers."""
        stage, data, options = self.model, self.datamodule, self.options
        share, precision = Share.of(data, self.gpus), str(options.trainer.precision or "bf16-mixed")
        accumulate = int(options.trainer.accumulate_grad_batches)
        trained = [p for p in stage.parameters() if p.requires_grad]
        costs = self._costs(share, precision)
        engines: list[Engine] = ["ddp"] if isinstance(stage, VAEStage) else ["ddp", "zero1", "zero2", "zero3"]
        moments = {flat: moment_bytes(stage, trained, flat) for flat in (False, True)}
        count, averaged = sum(p.numel() for p in trained), bool(options.ema.decay)
        on_gpu = averaged and not options.ema.cpu
        held = {}
        for engine in engines:
            activations = {way: cost.peak for way, cost in costs["ddp" if engine == "ddp" else "zero"].items()}
            held[engine] = engine_bytes(engine, count, moments[engine != "ddp"], self.gpus, precision, accumulate, on_gpu, activations)
        checkpointing = isinstance(stage, LatentDiffusion) and stage.denoiser.config.checkpointing
        flops = costs["ddp"]["recomputed" if checkpointing else "kept"].flops
        by_kind = {kind: round(value * self.gpus * accumulate) for kind, value in flops.items()}
        weights = sum(tensor.numel() for tensor in stage.state_dict().values())
        files = {engine: checkpoint_bytes(engine, weights, count, moments[engine != "ddp"], precision, averaged) for engine in engines}
        return {
            "stage": self.stage,
            "class": f"{type(stage).__module__}.{type(stage).__qualname__}",
            "gpus": self.gpus,
            "batch_per_gpu": asdict(share),
            "precision": precision,
            "checkpointing": checkpointing,
            "parameters": self.parameters(),
            "tokens": self._tokens(),
            "flops_per_step": sum(by_kind.values()),
            "flops_by_kind": by_kind,
            "steps": int(options.trainer.max_steps),
            "time": self._time(sum(by_kind.values())),
            "checkpoint": {engine: {"bytes": size, "seconds": size / (1e6 * options.disk)} for engine, size in files.items()},
            "bytes_per_gpu": {
                engine: {
                    **asdict(b),
                    "total": {way: b.total(way) for way in b.activations},
                    "fits_gib": {way: _fitting(b, way) for way in b.activations},
                }
                for engine, b in held.items()
            },
        }

    def _time(self, flops: int) -> dict[str, Any] | None:
        """Days of the whole training by number of GPUs; None where nobody said how fast a GPU is."""
        options, data = self.options, self.datamodule
        if options.step_seconds is None and options.tflops is None:
            return None
        if options.step_seconds is not None and options.tflops is not None:
            raise ValueError("plan: --step_seconds and --tflops both say how fast a GPU is; leave out one of them")
        steps = int(options.trainer.max_steps)
        if steps < 1:
            raise ValueError(f"plan: a training without an end has no days, got trainer.max_steps {steps}; give --trainer.max_steps")
        speed = options.tflops * 1e12 if options.tflops is not None else flops / (self.gpus * options.step_seconds)
        batch = (data.videos_per_batch, data.image_stacks_per_batch)
        fleets = sorted({self.gpus, *(gpus for gpus in FLEETS if not any(part % gpus for part in batch))})
        return {"tflops_per_gpu": speed / 1e12, "days": {gpus: steps * flops / (gpus * speed) / 86400 for gpus in fleets}}

    def _costs(self, share: Share, precision: str) -> dict[str, dict[str, Cost]]:
        """Of a step by arithmetic (of DDP, of ZeRO) and way (activations kept, or recomputed)."""
        stage, low = self.model, torch.bfloat16 if precision.endswith("mixed") else None
        narrow = torch.float32 if precision == "32-true" else torch.bfloat16
        if isinstance(stage, VAEStage):
            return {"ddp": {"kept": autoencoder_cost(stage, self.datamodule, share, low)}}
        text = self.options.model.init_args.get("text")
        caption = text.length if text else CAPTION
        costs: dict[str, dict[str, Cost]] = {}
        for arithmetic, dtype, autocast in (("ddp", torch.float32, low), ("zero", narrow, None)):
            config = stage.denoiser.config
            costs[arithmetic] = {
                way: diffusion_cost(stage, replace(config, checkpointing=way == "recomputed"), share, caption, dtype, autocast)
                for way in ("kept", "recomputed")
            }
        return costs

    def _tokens(self) -> dict[str, int]:
        """Tokens of a frame, a video and a window; of the autoencoder: positions of its latent."""
        if isinstance(self.model, VAEStage):
            (ft, fh, fw), framing = self.model.vae.config.factors, self.datamodule.framing
            rows, columns = _picture(self.datamodule)
            frame = (rows // fh) * (columns // fw)
            return {"frame": frame, "video": frame * (1 + (framing.frames - 1) // ft)}
        c: DenoiserConfig = self.model.denoiser.config
        frame = math.prod(c.grid)
        return {"frame": frame, "video": c.size[0] * frame, "spatial_window": frame, "spatiotemporal_window": math.prod(c.window_of(1))}

    def show(self) -> None:
        """Print the plan."""
        report = self.report()
        if self.options.json:
            print(json.dumps(report, indent=2))
        else:
            Console().print(render(report))


def _fitting(b: Bytes, way: str) -> list[int]:
    """The cards that a plan fits on."""
    return [card for card in CARDS if b.total(way) <= USABLE * card * 2**30]


def render(report: Mapping[str, Any]) -> Group:
    """A plan for the terminal."""
    share, parameters = report["batch_per_gpu"], report["parameters"]
    size = Table(title=f"{report['stage']} ({report['class']})", title_justify="left", show_header=False)
    size.add_row("parameters", f"{parameters['total']:,}")
    for name, count in parameters["parts"].items():
        size.add_row(f"  {name}", f"{count:,}")
    for name, count in parameters["beside"].items():
        size.add_row(f"trained beside: {name}", f"{count:,}")
    size.add_row("tokens", ", ".join(f"{count:,} a {name.replace('_', ' ')}" for name, count in report["tokens"].items()))
    size.add_row("batch on each GPU", f"{share['videos']} videos, {share['images']} images ({report['gpus']} GPUs)")
    size.add_row(
        "FLOPs of a training step, all GPUs", f"{report['flops_per_step']:.3e}{', layers recomputed' if report['checkpointing'] else ''}"
    )
    for kind, flops in report["flops_by_kind"].items():
        size.add_row(f"  {kind}", f"{flops:.3e}")
    if report["time"]:
        days = ", ".join(f"{days:,.1f} on {gpus}" for gpus, days in report["time"]["days"].items())
        size.add_row(f"days for {report['steps']:,} steps, by GPUs", f"{days} (at {report['time']['tflops_per_gpu']:.3g} TFLOP/s each)")
    for engine, file in report["checkpoint"].items():
        size.add_row(f"a checkpoint under {engine}", f"{file['bytes'] / 1e9:.1f} GB, {file['seconds']:.0f} s to write")
    held = Table(title=f"GiB on each GPU ({report['precision']}; a tenth of a card is held back)", title_justify="left")
    columns = ("parameters", "gradients", "optimizer", "ema", "buffers")
    for column in ("engine", *columns, "activations", "total", *(f"{card} GB" for card in CARDS)):
        held.add_column(column, justify="left" if column == "engine" else "right")
    for engine, b in report["bytes_per_gpu"].items():
        for way, activations in b["activations"].items():
            fits = (["[green]fits[/]", "[red]no[/]"][card not in b["fits_gib"][way]] for card in CARDS)
            figures = [*(b[column] for column in columns), activations, b["total"][way]]
            held.add_row(engine if way == "kept" else "  + checkpointing", *(f"{value / 2**30:.1f}" for value in figures), *fits)
    left_out = "Not counted: the frozen autoencoder and text encoder, the CUDA context, fragmentation, data on its way."
    return Group(size, held, left_out)
