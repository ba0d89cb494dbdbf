"""The one program, ``python -m walt_pl``.

``fit`` and ``validate`` are LightningCLI's; ``plan`` and ``cache`` read the same keys; the others are functions of
``walt_pl.cli.commands``. This file wires things up and defines no models.
"""

import argparse
import glob
import inspect
import keyword
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import auto_parser
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only

from datamodules.joint import JointData
from stages.finetuning import take_weights
from walt_pl.blocks.compute import compute_dtype, trainer_precision
from walt_pl.cli.commands import COMMANDS
from walt_pl.runs.artifact import load
from walt_pl.runs.checkpoint import STATE, Checkpoint
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.stage_names import NAMES, ManifestError, kind_of, parents_of
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.export import Export
from walt_pl.training.callbacks.hyperparameters import Hyperparameters
from walt_pl.training.callbacks.previews import Previews
from walt_pl.training.callbacks.reseed import Reseed
from walt_pl.training.callbacks.save_config import Versions
from walt_pl.training.callbacks.spike_guard import Guard
from walt_pl.training.callbacks.text_progress import LogLine
from walt_pl.training.callbacks.throughput import Throughput
from walt_pl.training.logger import Curves

ZERO = "walt_pl.strategies.Zero"
"""Class path of the strategy that shards."""
START_OVER = "add --fresh true to the command you typed (make: FRESH=1)"
"""What makes `fit` train a stage from the beginning that is done, or cannot go on."""
AUTO = "auto"
"""Value of --ckpt_path: the newest whole checkpoint of the stage. `fit` takes it by itself."""

DEFAULTS: dict[str, Any] = {
    "trainer.max_epochs": -1,
    "trainer.num_sanity_val_steps": 0,
    "trainer.use_distributed_sampler": False,  # order is the loader's, Lightning's own sampler always shuffles
    "trainer.enable_model_summary": False,
    "trainer.log_every_n_steps": 10,
    "trainer.check_val_every_n_epoch": None,
}

# The value of a validation whose best checkpoint is kept, by kind of stage.
BEST = {"vae": ("val/psnr_video", "highest"), "base": ("val/loss", "lowest"), "super_resolution": ("val/loss", "lowest")}


class Program(LightningCLI):
    """LightningCLI that knows runs: where a stage writes, what its parents are, how it goes on."""

    def __init__(self, run: bool = True) -> None:
        beneath = {"default_config_files": _beneath_first_config(sys.argv[1:])}
        super().__init__(
            L.LightningModule,
            JointData,
            subclass_mode_model=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=None,
            parser_kwargs=dict.fromkeys(self.subcommands(), beneath) if run else beneath,
            run=run,
        )

    # ---- Arguments --------------------------------------------------------------------------------------------------

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those of LightningCLI that a stage has steps for."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str | None, default=None, help="Folder of the run; runs/EXP for experiments/EXP/STAGE.yaml.")
        parser.add_argument("--stage", type=str | None, default=None, help="Name of the stage; the name of the first config file.")
        parser.add_argument("--over", type=list[str], default=[], help="Files that the first config is laid over, relative to it.")
        parser.add_argument("--init", type=str | None, default=None, help="Artifact to start from, also of another aspect ratio.")
        parser.add_argument("--fresh", type=bool, default=False, help="Train again from the beginning, whatever there is.")
        parser.add_argument("--allow_stale", type=bool, default=False, help="Use parents that are stale.")
        for callback, key in (
            (EMA, "ema"),
            (Guard, "guard"),
            (Previews, "previews"),
            (Throughput, "throughput"),
            (Checkpoints, "checkpoint"),
        ):
            parser.add_lightning_class_args(callback, key)
        parser.set_defaults(DEFAULTS)

    @property
    def options(self) -> Any:
        """The parsed arguments (of the subcommand, where there are subcommands)."""
        return self.config if self.subcommand is None else self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        options = self.options
        self._name()
        self._check_precision()
        self.parents: dict[str, str] = {}
        if self.subcommand == "fit":
            self._check_parents()
        self.work = self.run_dir / "training" / self.stage
        options.trainer.default_root_dir = str(self.work)
        options.checkpoint.folder = options.checkpoint.folder or str(self.work / "checkpoints")
        if options.checkpoint.best is None:
            options.checkpoint.best, options.checkpoint.best_is = BEST[kind_of(self.stage)]
        self._fill_parents()
        self._fill_seed()
        self._check_engine()
        if options.trainer.precision is None:
            options.trainer.precision = "bf16-mixed" if compute_dtype(_device()) is torch.bfloat16 else "32-true"
            _say(f"precision {options.trainer.precision}: what this machine is fastest at")
        if self.subcommand == "fit":
            self._begin(self.manifest)
        if self.subcommand is not None:
            self._find_checkpoint()
            self._check_shards()

    def _name(self) -> None:
        """Run and stage, from their options or the config's path."""
        options = self.options
        self.run_dir, self.stage = _run_and_stage(options)
        self.manifest = Manifest.open(self.run_dir, Path(str(options.config[0])).parent if options.config else None)
        options.run, options.stage, options.over = str(self.run_dir), self.stage, []  # what is written down lies over nothing

    def _check_parents(self) -> None:
        """Parents that were named become those of the run, which are checked."""
        arguments = self.options.model.init_args
        for parent in parents_of(self.stage):
            if arguments.get(parent) is not None:
                self.manifest.adopt(parent, Path(arguments[parent]))
        self.parents = self.manifest.check_parents(self.stage, allow_stale=self.options.allow_stale)

    def _fill_parents(self) -> None:
        """Parents that were not named are those of the run."""
        arguments, data = self.options.model.init_args, self.options.data
        for parent in parents_of(self.stage):
            if parent in arguments and arguments[parent] is None:
                arguments[parent] = str(self.manifest.folder(parent))
        if "vae" in parents_of(self.stage):
            if data.vae is not None and Path(data.vae) != Path(arguments.vae):
                raise ValueError(
                    f"data.vae is {data.vae}, model.vae {arguments.vae}: the latents must be of one autoencoder; leave data.vae out"
                )
            data.vae = arguments.vae

    def _fill_seed(self) -> None:
        """One seed for order, crops, noise and initial weights, where data.seed and model.seed are not given."""
        seed = self.options.seed_everything
        if isinstance(seed, int) and not isinstance(seed, bool):
            for arguments in (self.options.data, self.options.model.init_args):
                arguments.seed = arguments.seed or seed

    def _check_precision(self) -> None:
        """Before anything is read or written down."""
        trainer = self.options.trainer
        trainer.precision = None if trainer.precision is None else trainer_precision(trainer.precision)

    def _check_engine(self) -> None:
        """What shards and clips; the autoencoder has two optimisers that take turns."""
        trainer, name = self.options.trainer, _strategy_name(self.options.trainer.strategy)
        overlays = sorted(path.stem for path in Path("experiments/strategy").glob("*.yaml"))
        lay_over = f"add --config experiments/strategy/NAME.yaml (NAME: {', '.join(overlays)})"
        sharded = name == ZERO
        if kind_of(self.stage) == "vae" and (sharded or "deepspeed" in name.lower()):
            raise ValueError(
                "trainer.strategy: DeepSpeed takes one optimiser, the autoencoder and its discriminator have two that take turns; leave it "
                "out, or add --config experiments/strategy/ddp.yaml (the autoencoder is small: DDP fits every card it trains on)"
            )
        if not sharded and "deepspeed" in name.lower():
            raise ValueError(f"trainer.strategy: {name} resumes and averages nothing here; for ZeRO {lay_over}")
        if name != "auto" and "." not in name and name not in StrategyRegistry:
            raise ValueError(f"trainer.strategy: no strategy {name!r}; leave it out for one device or DDP, or {lay_over}")
        if trainer.gradient_clip_val is not None:
            raise ValueError(
                f"trainer.gradient_clip_val: the stages clip and log the norm; type --model.clip {trainer.gradient_clip_val} instead"
            )
        optimizer = str(self.options.model.init_args.optimizer.class_path)
        if sharded and re.search("adafactor|muon", optimizer, re.IGNORECASE):
            raise ValueError(
                f"model.optimizer: ZeRO flattens the weights, and {optimizer} looks at their shapes; give "
                "--model.optimizer torch.optim.AdamW (text_to_video: --config experiments/text_to_video/adamw.yaml)"
            )
        if kind_of(self.stage) != "vae":
            return
        if trainer.precision == "16-mixed":
            raise ValueError(
                "trainer.precision: the autoencoder's two optimisers cannot share a gradient scaler; choose bf16-mixed or 32-true"
            )
        processes = torch.cuda.device_count() if trainer.devices == "auto" else trainer.devices
        several = processes not in (0, 1, "1") or trainer.num_nodes > 1
        if name == "ddp" or (name == "auto" and several):
            trainer.strategy = "ddp_find_unused_parameters_true"

    def _check_shards(self) -> None:
        """What ZeRO wrote is in shards that only ZeRO reads; the strategy itself knows which."""
        if self.restored is None or self.restored.name != STATE:
            return
        written = Checkpoint.at(self.restored.parent).strategy
        if written.startswith("zero") and _strategy_name(self.options.trainer.strategy) != ZERO:
            raise ValueError(
                f"{self.restored.parent} was written with {written}: add --config experiments/strategy/{written}.yaml "
                f"(make: STRATEGY={written}) to go on, or start over with --fresh true"
            )

    # ---- Going on, or starting ----------------------------------------------------------------------------------------

    def _parse_ckpt_path(self) -> None:
        """LightningCLI would let hyper-parameters in a checkpoint win over the command line; here the command line wins."""

    def _begin(self, manifest: Manifest) -> None:
        """Decide between the end, going on and starting; refuse where another process trains the stage."""
        options = self.options
        manifest.check_free(self.stage)
        if options.ckpt_path not in (None, AUTO):
            return
        options.ckpt_path = None
        state = manifest.state(self.stage)
        if state == "done" and not options.fresh:
            _say(f'stage "{self.stage}" of {self.run_dir} is done; nothing was trained. To train it again {START_OVER}')
            raise SystemExit(0)
        found = manifest.stages().get(self.stage)
        if found is None or found.training is None or options.fresh:
            return
        if Checkpoint.newest(options.checkpoint.folder) is None:
            _say(f"{options.checkpoint.folder} has no whole checkpoint to go on from: training starts at step 0")
            return
        if found.training.parents != self.parents:
            before = found.training.parents
            changed = [
                f'"{parent}" (now {sha256[:12]}, training began with {before.get(parent, "none")[:12]})'
                for parent, sha256 in self.parents.items()
                if before.get(parent) != sha256
            ]
            raise ManifestError(
                f'stage "{self.stage}" was interrupted, and what it is trained from has changed since: {", ".join(changed)}; '
                f"to start over {START_OVER}"
            )
        options.ckpt_path = AUTO

    def _find_checkpoint(self) -> None:
        """The file or folder that Lightning restores from, for the checkpoint that was named: a folder of ours, or a file."""
        options = self.options
        self.restored: Path | None = None
        if not options.ckpt_path:
            return
        path = Path(options.ckpt_path)
        if options.ckpt_path == AUTO:
            newest = Checkpoint.newest(options.checkpoint.folder)
            if newest is None:
                raise ValueError(f"--ckpt_path {AUTO}: {options.checkpoint.folder} has no whole checkpoint; name one, or train first")
            self.restored = newest.state
        elif path.is_dir() and path.name != STATE:
            self.restored = Checkpoint.at(path).state
        elif path.exists():
            self.restored = path
        else:
            raise ValueError(f"--ckpt_path: there is no {path}; there are: {', '.join(str(c.path) for c in self._checkpoints()) or 'none'}")
        _say(f"going on from {self.restored.parent if self.restored.name == STATE else self.restored}")
        options.ckpt_path = None  # the trainer is told itself, early enough for what is set up before anything is read

    def _checkpoints(self) -> list[Checkpoint]:
        return Checkpoint.all(self.options.checkpoint.folder)

    def before_fit(self) -> None:
        """Take the weights of ``--init``, unless training goes on."""
        if self.options.init is None or self.restored is not None:
            return
        take_weights(self.model.sections(), load(self.options.init))

    # ---- What the trainer is made of ----------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer_options = self.options.trainer
        if trainer_options.logger in (None, True):
            kwargs["logger"] = Curves(str(self.work), name="logs")
        # On a terminal the Trainer brings its own rich progress bar.
        first: list[L.Callback] = []
        extra: list[L.Callback] = []
        if not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False
            extra.append(LogLine())
        if self.subcommand == "fit":
            config = self._parser(self.subcommand).dump(self.options, skip_validation=True)
            extra += [Hyperparameters(), Reseed(self.options.model.init_args.seed), Versions(config)]
            # The first of all: what it refuses must not have been begun by another.
            first.append(Export(self.run_dir, self.stage, self.parents, config))
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks[:] = [*first, *trainer.callbacks, *extra]  # type: ignore[attr-defined]
        if self.subcommand is not None and self.restored is not None:
            trainer.ckpt_path = str(self.restored)
        return trainer


class _Data(Program):
    """The data that a config describes; nothing else of it is made."""

    def __init__(self) -> None:
        super().__init__(run=False)

    def before_instantiate_classes(self) -> None:
        self._name()
        self._fill_parents()

    def instantiate_classes(self) -> None:
        self.datamodule = JointData(**self.options.data.as_dict())


def data_of(config: Path, index: Path) -> JointData:
    """The data module of an experiment's stage, with another index in place of its own. Classes that the config names are imported."""
    sys.argv = [sys.argv[0], "--config", str(config), "--data.index", str(index)]
    return _Data().datamodule


def _run_and_stage(options: Any) -> tuple[Path, str]:
    """experiments/EXP/STAGE.yaml writes to runs/EXP/STAGE."""
    configs = [Path(str(path)) for path in options.config or []]
    if not configs and (options.run is None or options.stage is None):
        raise ValueError("which stage? give --config experiments/EXP/STAGE.yaml, or --run and --stage")
    run = Path(options.run) if options.run else Path("runs") / configs[0].resolve().parent.name
    return run, options.stage or configs[0].stem


def _beneath_first_config(arguments: list[str]) -> list[str]:
    """The files that the first config of a command line is laid over, as patterns for jsonargparse's default_config_files.

    Raises:
        ValueError: it is not a stage's, and nothing else names the stage.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[], type=Path)
    parser.add_argument("--stage")
    typed = parser.parse_known_args(arguments)[0]
    if not typed.config:
        return []
    first = typed.config[0]
    if first.is_file() and not typed.stage and not any("stage" in _plain(config) for config in typed.config):
        try:
            kind_of(first.stem)
        except ManifestError as error:
            raise ValueError(
                f'unknown stage "{first.stem}", the name of the first --config: wanted {NAMES}; an overlay comes second '
                f"(--config STAGE.yaml --config {first.name}), or give --stage NAME"
            ) from error
    return [glob.escape(str(path)) for path in beneath(first)]


def _plain(config: Path) -> dict[str, Any]:
    """What a file says; nothing where it cannot be read, of which the parser tells."""
    try:
        plain = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return plain if isinstance(plain, dict) else {}


def beneath(config: Path) -> list[Path]:
    """The files that a config is laid over, the lowest first: those its key ``over`` names, and those that they name.

    Raises:
        ValueError: one of them is not there.
    """
    files: list[Path] = []
    for name in _plain(config).get("over") or []:
        below = config.parent / str(name)
        if not below.is_file():
            raise ValueError(f"{config}: over names {name}, but there is no {below}; paths are relative to the file that names them")
        files += [*beneath(below), below]
    return files


def _strategy_name(strategy: Any) -> str:
    """A strategy as it was typed: a name of Lightning's, or a class path."""
    return str(strategy.class_path) if hasattr(strategy, "class_path") else str(strategy)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


def _argument(flag: str) -> str:
    """Flags may be typed with dashes, as elsewhere: --allow-stale is allow_stale; and --continue, a word of Python's, is continue_."""
    name = flag.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def _typed(words: list[str], command: Callable[..., None]) -> list[str]:
    """The words as the parser wants them: --report is --report true."""
    parameters = inspect.signature(command).parameters
    typed = []
    for place, word in enumerate(words):
        name = word.removeprefix("--")
        bare = word.startswith("--") and name in parameters and parameters[name].annotation in (bool, "bool")
        typed.append(f"{word}=true" if bare and words[place + 1 : place + 2] not in (["true"], ["false"]) else word)
    return typed


def main() -> None:
    """Run the command line."""
    sys.argv[1:] = [re.sub(r"^--([^=]+)", lambda flag: f"--{_argument(flag[1])}", word) for word in sys.argv[1:]]
    arguments = sys.argv[1:]
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.getMessage())
    if arguments and arguments[0] in COMMANDS:
        command = COMMANDS[arguments[0]]
        parser = auto_parser(command, as_positional=True, prog=f"python -m walt_pl {arguments[0]}")
        options = parser.parse_args(_typed(arguments[1:], command))
        # Not auto_cli, which would keep a command's own --config for itself.
        command(**{name: options[name] for name in inspect.signature(command).parameters})
    elif arguments and arguments[0] == "plan":
        from walt_pl.cli.plan import Plan

        sys.argv = [f"{sys.argv[0]} plan", *arguments[1:]]
        Plan().show()
    elif arguments and arguments[0] == "cache":
        from walt_pl.cli.cache import Caches

        sys.argv = [f"{sys.argv[0]} cache", *arguments[1:]]
        Caches().build()
    else:
        Program()
