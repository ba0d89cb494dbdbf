"""Train and validate a stage: ``python -m walt_pl fit``, ``python -m walt_pl validate``.

Both commands are LightningCLI's; ``plan`` and ``cache`` read the same keys. This file connects the parts and defines no models.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import lightning as L
import torch
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from datamodules.joint import JointData
from stages.finetuning import init_from
from walt_pl.blocks.compute import compute_dtype
from walt_pl.cli.config_files import configs_of, extended_by_first_config, find_configs
from walt_pl.cli.fit_checks import check_engine, check_precision, check_shards
from walt_pl.cli.null_values import ClassParser
from walt_pl.cli.parse_errors import CommandLine, check_nulls, check_top_keys, explain
from walt_pl.cli.renamed_keys import check_renamed
from walt_pl.cli.resume_checks import check_resumed
from walt_pl.cli.resume_command import resume_command
from walt_pl.cli.trainer_checks import check_trainer
from walt_pl.data.index import check_index_file
from walt_pl.runs.artifact import load
from walt_pl.runs.checkpoint import STATE, Checkpoint
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.stage_names import ManifestError, kind_of, parents_of
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.export import ExportArtifact
from walt_pl.training.callbacks.hyperparameters import Hyperparameters
from walt_pl.training.callbacks.previews import Previews
from walt_pl.training.callbacks.progress_file import ProgressFile
from walt_pl.training.callbacks.reseed import Reseed
from walt_pl.training.callbacks.save_config import SaveConfig
from walt_pl.training.callbacks.spike_guard import SpikeGuard
from walt_pl.training.callbacks.text_progress import TextProgress
from walt_pl.training.callbacks.throughput import Throughput
from walt_pl.training.logger import ResilientTensorBoardLogger

START_OVER = "add --from_scratch true to the command you typed (make: FRESH=1)"
"""Advice to train a stage from the beginning that is done or cannot resume."""
AUTO = "auto"
"""Value of --ckpt_path for the newest complete checkpoint of the stage. `fit` uses it by default."""

DEFAULTS: dict[str, Any] = {
    "trainer.max_epochs": -1,
    "trainer.num_sanity_val_steps": 0,
    "trainer.use_distributed_sampler": False,  # the loader defines the order; Lightning's sampler always shuffles
    "trainer.enable_model_summary": False,
    "trainer.log_every_n_steps": 10,
    "trainer.check_val_every_n_epoch": None,
}

# Validation metric whose best checkpoint is kept, by kind of stage.
BEST = {"vae": ("val/psnr_video", "max"), "base": ("val/loss", "min"), "super_resolution": ("val/loss", "min")}


class WaltParser(ClassParser, LightningArgumentParser):
    """LightningCLI's parser, with what ClassParser adds."""


class WaltCLI(LightningCLI):
    """LightningCLI with runs: it finds the folders of a stage, its parents and its checkpoints."""

    command = "fit"
    """Name of the command in messages, for a command that is none of LightningCLI's."""

    def __init__(self, words: Sequence[str], run: bool = True) -> None:
        self._words = list(words)
        typed, words = words, find_configs(words)
        for word, found in zip(typed, words, strict=True):
            if word != found:
                _say(f"config {found}: installed with the program; there is no {word} here", sys.stderr)
        self._configs = configs_of(words)
        check_renamed(words, self._configs)
        kwargs = {"default_config_files": extended_by_first_config(words), "exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            L.LightningModule,
            JointData,
            subclass_mode_model=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=None,
            parser_class=WaltParser,
            parser_kwargs={**dict.fromkeys(self.subcommands(), kwargs), "exit_on_error": False, "allow_abbrev": False} if run else kwargs,
            run=run,
            args=list(words),
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Lightning's own warns of words that the process has as well.
        line = CommandLine(self.command, parser, args, self._configs)
        if hasattr(self, "_subcommand_parsers"):
            line = CommandLine(args[0], self._subcommand_parsers[args[0]], args[1:], self._configs)
        check_top_keys(line)
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise ValueError(explain(error, line)) from error
        check_nulls(line)

    # ---- Arguments --------------------------------------------------------------------------------------------------

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands of LightningCLI that stages support."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str | None, default=None, help="Folder of the run; runs/EXP for experiments/EXP/STAGE.yaml.")
        parser.add_argument("--stage", type=str | None, default=None, help="Name of the stage; the name of the first config file.")
        parser.add_argument("--extends", type=list[str], default=[], help="Files that the first config is laid over, relative to it.")
        parser.add_argument("--init", type=str | None, default=None, help="Artifact to start from, also of another aspect ratio.")
        parser.add_argument("--from_scratch", type=bool, default=False, help="Train again from the beginning, whatever there is.")
        parser.add_argument("--allow_stale", type=bool, default=False, help="Use parents that are stale.")
        for callback, key in (
            (EMA, "ema"),
            (SpikeGuard, "spike_guard"),
            (Previews, "previews"),
            (Throughput, "throughput"),
            (Checkpoints, "checkpoint"),
        ):
            parser.add_lightning_class_args(callback, key)
        parser.set_defaults(DEFAULTS)

    @property
    def options(self) -> Any:
        """Parsed arguments, of the subcommand if there are subcommands."""
        return self.config if self.subcommand is None else self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        options = self.options
        self._name()
        check_precision(options.trainer)
        check_trainer(options.trainer)
        self.parents: dict[str, str] = {}
        if self.subcommand == "fit":
            self._check_parents()
        self.work = self.run_dir / "training" / self.stage
        if options.trainer.fast_dev_run:
            self._trial = TemporaryDirectory(prefix="walt-trial-")  # removed in `after_fit`
            self.work = Path(self._trial.name)
            options.from_scratch = True
            options.model.init_args.lr_schedule = "constant"  # a cosine of so few steps would end before its warm-up
        options.trainer.default_root_dir = str(self.work)
        options.checkpoint.dirpath = options.checkpoint.dirpath or str(self.work / "checkpoints")
        if options.checkpoint.monitor is None:
            options.checkpoint.monitor, options.checkpoint.mode = BEST[kind_of(self.stage)]
        self._fill_parents()
        self._fill_seed()
        check_engine(self.stage, options)
        if options.trainer.precision is None:
            options.trainer.precision = "bf16-mixed" if compute_dtype(_device()) is torch.bfloat16 else "32-true"
            _say(f"precision {options.trainer.precision}: what this machine is fastest at")
        if self.subcommand == "fit":
            self._begin(self.manifest)
        if self.subcommand is not None:
            self._find_checkpoint()
            check_shards(self.restored, options.trainer)
            if options.data.shards is None:
                check_index_file(Path(options.data.index).absolute())

    def _name(self) -> None:
        """Set run and stage, from their options or the path of the config."""
        options = self.options
        self.run_dir, self.stage = _run_and_stage(options)
        self.manifest = Manifest.open(self.run_dir, Path(str(options.config[0])).parent if options.config else None)
        options.run = str(self.run_dir)
        options.stage = self.stage
        options.extends = []  # the stored configuration is complete and extends no files

    def _check_parents(self) -> None:
        """Adopt the parents that the options name as those of the run, and check all parents."""
        arguments = self.options.model.init_args
        for parent in parents_of(self.stage):
            if arguments.get(parent) is not None:
                self.manifest.adopt(parent, Path(arguments[parent]))
        self.parents = self.manifest.check_parents(self.stage, allow_stale=self.options.allow_stale)

    def _fill_parents(self) -> None:
        """Use the run's own parents for those that the options do not name."""
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
        """Use one seed for order, crops, noise and initial weights if data.seed and model.seed are not set."""
        seed = self.options.seed_everything
        if isinstance(seed, int) and not isinstance(seed, bool):
            for arguments in (self.options.data, self.options.model.init_args):
                arguments.seed = arguments.seed or seed

    # ---- Start or resume ----------------------------------------------------------------------------------------------

    def _parse_ckpt_path(self) -> None:
        """Ignore the hyper-parameters in a checkpoint, which LightningCLI would prefer; the command line takes precedence."""

    def _begin(self, manifest: Manifest) -> None:
        """Decide between nothing to do, resuming and starting.

        Raises:
            LockedManifest: another process trains the stage.
            ManifestError: training was interrupted, and a parent has changed since.
            SystemExit: the stage is done.
        """
        options = self.options
        manifest.check_free(self.stage)
        if options.ckpt_path not in (None, AUTO):
            return
        options.ckpt_path = None
        state = manifest.state(self.stage)
        if state == "done" and not options.from_scratch:
            _say(f'stage "{self.stage}" of {self.run_dir} is done; nothing was trained. To train it again {START_OVER}')
            raise SystemExit(0)
        found = manifest.stages().get(self.stage)
        if found is None or found.training is None or options.from_scratch:
            return
        if Checkpoint.newest(options.checkpoint.dirpath) is None:
            _say(f"{options.checkpoint.dirpath} has no whole checkpoint to go on from: training starts at step 0")
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
        """Find the file or folder that Lightning restores from, for the checkpoint of --ckpt_path.

        Raises:
            ValueError: there is no such checkpoint.
        """
        options = self.options
        self.restored: Path | None = None
        if not options.ckpt_path:
            return
        path = Path(options.ckpt_path)
        if options.ckpt_path == AUTO:
            newest = Checkpoint.newest(options.checkpoint.dirpath)
            if newest is None:
                raise ValueError(f"--ckpt_path {AUTO}: {options.checkpoint.dirpath} has no whole checkpoint; name one, or train first")
            self.restored = newest.state
        elif path.is_dir() and path.name != STATE:
            self.restored = Checkpoint.at(path).state
        elif path.exists():
            self.restored = path
        else:
            raise ValueError(f"--ckpt_path: there is no {path}; there are: {', '.join(str(c.path) for c in self._checkpoints()) or 'none'}")
        _say(f"going on from {self.restored.parent if self.restored.name == STATE else self.restored}")
        options.ckpt_path = None  # trainer.ckpt_path is set in `instantiate_trainer`, since callbacks need it in `setup`

    def _checkpoints(self) -> list[Checkpoint]:
        return Checkpoint.all(self.options.checkpoint.dirpath)

    def before_fit(self) -> None:
        """Check the checkpoint that training resumes from. Otherwise load the weights of ``--init``."""
        if self.restored is not None:
            check_resumed(self.restored, self.model, self.options)
        if self.options.init is None or self.restored is not None:
            return
        init_from(self.model.components(), load(self.options.init))

    def after_fit(self) -> None:
        if self.options.trainer.fast_dev_run:
            self._trial.cleanup()
            _say(f"fast_dev_run: batches of training and validation ran; nothing was written, and stage {self.stage} is as it was")

    # ---- Parts of the trainer -----------------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer_options = self.options.trainer
        if trainer_options.logger in (None, True):
            kwargs["logger"] = ResilientTensorBoardLogger(str(self.work), name="logs")
        # On a terminal the Trainer uses its own rich progress bar.
        first: list[L.Callback] = []
        extra: list[L.Callback] = []
        if not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False
            extra.append(TextProgress())
        if self.subcommand == "fit" and not trainer_options.fast_dev_run:
            config = self._parser(self.subcommand).dump(self.options, skip_validation=True)
            extra.append(ProgressFile(self.work, Path(self.options.checkpoint.dirpath)))
            extra += [Hyperparameters(), Reseed(self.options.model.init_args.seed), SaveConfig(config)]
            # It runs first: another callback must not start something that it refuses.
            again = resume_command(self._words)
            first.append(ExportArtifact(self.run_dir, self.stage, self.parents, config, again, self.manifest.experiment))
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks[:] = [*first, *trainer.callbacks, *extra]  # type: ignore[attr-defined]
        if self.subcommand is not None and self.restored is not None:
            trainer.ckpt_path = str(self.restored)
        return trainer


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt fit`."""
    WaltCLI(["fit", *words])


def _run_and_stage(options: Any) -> tuple[Path, str]:
    """Return the folder of the run and the name of the stage: experiments/EXP/STAGE.yaml is trained into runs/EXP/STAGE.

    Raises:
        ValueError: neither a config nor the options name them.
    """
    configs = [Path(str(path)) for path in options.config or []]
    if not configs and (options.run is None or options.stage is None):
        raise ValueError("which stage? give --config experiments/EXP/STAGE.yaml, or --run and --stage")
    run = Path(options.run) if options.run else Path("runs") / configs[0].resolve().parent.name
    return run, options.stage or configs[0].stem


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@rank_zero_only
def _say(text: str, file: TextIO | None = None) -> None:
    print(text, file=file, flush=True)
