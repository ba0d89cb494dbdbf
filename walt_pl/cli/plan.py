"""Estimate the cost of a stage before training: ``python -m walt_pl plan --config FILE``.

The stage is built on the meta device, where tensors have shapes and no bytes. One training step with one GPU's share of the batch runs
there, forward and backward. Operations are counted by PyTorch's own formulas (torch.utils.flop_counter), activations by following every
tensor from its creation to its release. Only the configuration is read: no data, no parents, no text encoder, no weight file.

Accuracy (tests/cli/test_plan_costs.py): FLOPs equal those of the stage's own training step exactly. For a small model in float32 on a CPU,
autograd keeps 54,656,560 bytes, and the step allocates at most 55,504,496. The plan was 4 bytes too high for the first and 56 too low for
the second. Autocast, compilation and the attention kernels of GPUs are emulated. On an H200 (torch 2.11, UCF-101 L, 32 clips) the plan of
weights, gradients and activations was 1 to 5 % below the measured peak in eager mode, and within 3 % of it with compiled layers; for an
autoencoder without fused norms within a tenth (tests/training/test_denoiser_cost.py, test_autoencoder_cost.py). With fused norms the
plan is 12.9 GB, and an H200 measured 11.6. With the kernel of window attention they are 45.9 and 44.7. ZeRO 3 trains uncompiled, and its
row counts that. A tenth of a card is reserved for memory that is not counted. This is the CUDA context, fragmentation, the frozen
autoencoder and text encoder, and data in transfer.

Days follow from the FLOPs and the measured speed of a GPU (--step_seconds, --tflops). They hold for a batch that keeps the GPUs as busy,
and for links that do not slow them down. The size of a checkpoint on disk was within a hundredth of real ones of every engine.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveFloat
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from stages.latent_diffusion import LatentDiffusion
from stages.vae import VAEStage
from walt_pl.cli.console import print_table
from walt_pl.cli.fit import WaltCLI
from walt_pl.cli.fit_checks import check_engine, check_precision
from walt_pl.cli.plan_costs import clip_shapes, is_compiled, picture_size, share_of, stage_cost, vae_stage_cost
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.training.autoencoder_cost import clip_flops
from walt_pl.training.denoiser_cost import Share
from walt_pl.training.engine_memory import Engine, EngineMemory, checkpoint_bytes, engine_bytes, moment_bytes
from walt_pl.training.step_cost import StepCost

CARDS = (24, 40, 80)
"""Memory of the cards that a plan is compared with, GiB."""
USABLE = 0.9
"""Share of a card that counted memory may fill."""
CAPTION = 128
"""Tokens of a caption if the stage does not define them: super-resolution uses the text encoder of the base's artifact."""
FLEETS = (1, 8, 16, 32, 64, 128, 256)
"""Numbers of GPUs for which days are listed, if they divide the batch; the planned number is listed too."""


def parts_of(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters of a model by part; the transformer blocks count together."""
    parts: Counter[str] = Counter()
    for name, p in model.named_parameters():
        words = name.split(".")
        parts[".".join([words[0], *words[2:3]]) if words[0] == "blocks" else words[0]] += p.numel()
    return dict(parts)


def _numel(modules: Iterable[nn.Module | None]) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


class PlanCLI(WaltCLI):
    """LightningCLI that builds the configured stage on the meta device."""

    command = "plan"

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(words, run=False)

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
        self.model = self.config_init.model
        self.datamodule = self.config_init.data

    @property
    def gpus(self) -> int:
        """Number of GPUs that share a batch."""
        trainer, given = self.options.trainer, self.options.gpus
        devices = str(trainer.devices)
        wanted: int = given if given is not None else int(devices) * int(trainer.num_nodes) if devices.isdigit() else 1
        if wanted < 1:
            raise ValueError(f"plan: --gpus must be at least 1, got {wanted}")
        return wanted

    @property
    def gpus_per_node(self) -> int:
        """Number of GPUs that share the memory of a host."""
        devices = str(self.options.trainer.devices)
        return min(self.gpus, int(devices)) if devices.isdigit() else self.gpus

    def _is_compiled(self) -> bool:
        """Return whether the layers run compiled on a GPU, but under ZeRO 3. The bytes of a compiled autoencoder are not modelled."""
        return isinstance(self.model, LatentDiffusion) and is_compiled(self.options.model.init_args.get("compile", False))

    def parameters(self) -> dict[str, Any]:
        """Count the parameters of the stage's main model by part, and those of models trained beside it."""
        stage = self.model
        main = stage.vae if isinstance(stage, VAEStage) else stage.denoiser
        beside = {name: _numel([getattr(stage, name, None)]) for name in ("discriminator", "text")}
        return {"total": _numel([main]), "parts": parts_of(main), "beside": {name: count for name, count in beside.items() if count}}

    def report(self) -> dict[str, Any]:
        """Return the plan as plain numbers."""
        stage, data, options = self.model, self.datamodule, self.options
        share, precision = share_of(data, self.gpus), str(options.trainer.precision or "bf16-mixed")
        accumulate = int(options.trainer.accumulate_grad_batches)
        trained = [p for p in stage.parameters() if p.requires_grad]
        costs = self._costs(share, precision)
        engines: list[Engine] = ["ddp"] if isinstance(stage, VAEStage) else ["ddp", "zero1", "zero2", "zero2_offload", "zero3"]
        moments = moment_bytes(stage.optimizer, trained)
        count, averaged = sum(p.numel() for p in trained), bool(options.ema.decay)
        ema: Literal["gpu", "host"] | None = None if not averaged else "host" if options.ema.cpu else "gpu"
        held = {}
        for engine in engines:
            arithmetic = engine if engine in costs else "zero"
            activations = {way: cost.peak for way, cost in costs[arithmetic].items()}
            held[engine] = engine_bytes(engine, count, moments[engine != "ddp"], self.gpus, precision, accumulate, ema, activations)
        activation_checkpointing = isinstance(stage, LatentDiffusion) and stage.denoiser.config.activation_checkpointing
        flops = costs["ddp"]["recomputed" if activation_checkpointing else "kept"].flops
        by_kind = {kind: round(value * self.gpus * accumulate) for kind, value in flops.items()}
        time = self._time(sum(by_kind.values()))
        weights = sum(tensor.numel() for tensor in stage.state_dict().values())
        files = {engine: checkpoint_bytes(engine, weights, count, moments[engine != "ddp"], precision, averaged) for engine in engines}
        return {
            "stage": self.stage,
            "class": f"{type(stage).__module__}.{type(stage).__qualname__}",
            "gpus": self.gpus,
            "batch_per_gpu": asdict(share),
            "precision": precision,
            "activation_checkpointing": activation_checkpointing,
            "attention": None if isinstance(stage, VAEStage) else stage.denoiser.config.attention,
            "compiled": self._is_compiled(),
            "parameters": self.parameters(),
            "tokens": self._tokens(),
            "flops_per_step": sum(by_kind.values()),
            "flops_by_kind": by_kind,
            "steps": int(options.trainer.max_steps),
            "time": time,
            "clip": self._clip(share, time),
            "checkpoint": {engine: {"bytes": size, "seconds": size / (1e6 * options.disk)} for engine, size in files.items()},
            "bytes_per_gpu": {
                engine: {
                    **asdict(b),
                    "host_of_node": b.host * self.gpus_per_node,
                    "total": {way: b.total(way) for way in b.activations},
                    "fits_gib": {way: _fitting_cards(b, way) for way in b.activations},
                }
                for engine, b in held.items()
            },
        }

    def _time(self, flops: int) -> dict[str, Any] | None:
        """Return the days of the complete training by number of GPUs; None if the speed of a GPU is not specified.

        Raises:
            ValueError: both --step_seconds and --tflops are set, or the training has no number of steps.
        """
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

    def _clip(self, share: Share, time: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return the autoencoder's FLOPs to encode and to decode one clip, and its frames a second; None for other stages."""
        if not isinstance(self.model, VAEStage):
            return None
        _, *shape = clip_shapes(self.datamodule, share)[0]
        frames = shape[1]
        flops = clip_flops(self.model.vae.config, (1, *shape))  # type: ignore[arg-type]
        speed = time["tflops_per_gpu"] * 1e12 if time else None
        per_second = {name: frames * speed / value for name, value in flops.items()} if speed else None
        return {"frames": frames, "flops": flops, "frames_per_second": per_second}

    def _costs(self, share: Share, precision: str) -> dict[str, dict[str, StepCost]]:
        """Return the costs of a step by arithmetic (ddp, zero; zero3 if the others compile) and way (kept, or recomputed)."""
        stage, low = self.model, torch.bfloat16 if precision.endswith("mixed") else None
        narrow = torch.float32 if precision == "32-true" else torch.bfloat16
        if isinstance(stage, VAEStage):
            return {"ddp": {"kept": vae_stage_cost(stage, self.datamodule, share, low)}}
        text = self.options.model.init_args.get("text")
        caption = text.max_length if text else CAPTION
        compiled = self._is_compiled()
        costs: dict[str, dict[str, StepCost]] = {}
        arithmetics = [("ddp", torch.float32, low, compiled), ("zero", narrow, None, compiled)]
        if compiled:  # compiled_blocks.is_compiled: ZeRO 3 trains uncompiled
            arithmetics.append(("zero3", narrow, None, False))
        for arithmetic, dtype, autocast, whole in arithmetics:
            config = stage.denoiser.config
            costs[arithmetic] = {
                way: stage_cost(
                    stage, replace(config, activation_checkpointing=way == "recomputed"), share, caption, dtype, autocast, whole
                )
                for way in ("kept", "recomputed")
            }
        return costs

    def _tokens(self) -> dict[str, int]:
        """Return the tokens of a frame, a video and a window; for the autoencoder the positions of its latent."""
        if isinstance(self.model, VAEStage):
            (ft, fh, fw), clip_transform = self.model.vae.config.factors, self.datamodule.clip_transform
            rows, columns = picture_size(self.datamodule)
            frame = (rows // fh) * (columns // fw)
            return {"frame": frame, "video": frame * (1 + (clip_transform.frames - 1) // ft)}
        c: DenoiserConfig = self.model.denoiser.config
        frame = math.prod(c.grid)
        return {"frame": frame, "video": c.size[0] * frame, "spatial_window": frame, "spatiotemporal_window": math.prod(c.window_of(1))}

    def show(self) -> None:
        """Print the plan."""
        report = self.report()
        if self.options.json:
            print(json.dumps(report, indent=2))
        else:
            print_table(render(report))


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt plan`."""
    PlanCLI(words).show()


def _fitting_cards(b: EngineMemory, way: str) -> list[int]:
    """Return the cards that a plan fits on."""
    return [card for card in CARDS if b.total(way) <= USABLE * card * 2**30]


def _describe_clip(clip: Mapping[str, Any]) -> str:
    """Return the FLOPs and frames a second of an autoencoder's two ways, in words."""
    speeds = clip["frames_per_second"] or {}
    parts = [f"{name} {flops:.3e} FLOPs" + (f", {speeds[name]:,.0f} frames/s" if speeds else "") for name, flops in clip["flops"].items()]
    return "; ".join(parts)


def render(report: Mapping[str, Any]) -> Group:
    """Render a plan for the terminal."""
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
        "FLOPs of a training step, all GPUs",
        f"{report['flops_per_step']:.3e}{', layers recomputed' if report['activation_checkpointing'] else ''}",
    )
    for kind, flops in report["flops_by_kind"].items():
        size.add_row(f"  {kind}", f"{flops:.3e}")
    if report["clip"]:
        size.add_row(f"autoencoder, a clip of {report['clip']['frames']} frames", _describe_clip(report["clip"]))
    if report["time"]:
        days = ", ".join(f"{days:,.1f} on {gpus}" for gpus, days in report["time"]["days"].items())
        size.add_row(f"days for {report['steps']:,} steps, by GPUs", f"{days} (at {report['time']['tflops_per_gpu']:.3g} TFLOP/s each)")
    for engine, file in report["checkpoint"].items():
        size.add_row(f"a checkpoint under {engine}", f"{file['bytes'] / 1e9:.1f} GB, {file['seconds']:.0f} s to write")
    layers = (
        "" if report["attention"] is None else f"attention {report['attention']}, layers {'compiled' if report['compiled'] else 'eager'}, "
    )
    title = f"GiB on each GPU, and on the host of a node ({layers}{report['precision']}; a tenth of a card is held back)"
    held = Table(title=title, title_justify="left")
    columns = ("parameters", "gradients", "optimizer", "ema", "buffers")
    for column in ("engine", *columns, "activations", "total", *(f"{card} GB" for card in CARDS), "host (node)"):
        held.add_column(column, justify="left" if column == "engine" else "right")
    for engine, b in report["bytes_per_gpu"].items():
        for way, activations in b["activations"].items():
            fits = (Text("fits", "green") if card in b["fits_gib"][way] else Text("no", "red") for card in CARDS)
            figures = [*(b[column] for column in columns), activations, b["total"][way]]
            host = f"{b['host_of_node'] / 2**30:.1f}"
            name = f"{engine}, eager" if engine == "zero3" and report["compiled"] else engine
            held.add_row(name if way == "kept" else "  + checkpointing", *(f"{value / 2**30:.1f}" for value in figures), *fits, host)
    left_out = "Not counted: the frozen autoencoder and text encoder, the CUDA context, fragmentation, data on its way."
    return Group(size, held, left_out)
