"""Train and validate a stage: ``python -m walt_pl fit``, ``python -m walt_pl validate``.

Both commands are LightningCLI's; ``plan`` and ``cache`` read the same keys. This file connects the parts and defines no models.
"""

import sys
from collections.abc import Mapping, Sequence
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
from walt_pl.blocks.compute import Float32Precision, compute_dtype, set_float32_precision
from walt_pl.cli.allowed_schemes import check_allowed_schemes, without_allowed_schemes
from walt_pl.cli.checkpoint_folder import check_own_folder
from walt_pl.cli.chosen_logger import DEFAULT_LOGGER, LoggerName, check_logger, open_logger
from walt_pl.cli.class_count import fill_classes
from walt_pl.cli.config_files import configs_of, extended_by_first_config, find_configs, run_and_stage
from walt_pl.cli.fit_checks import check_engine, check_precision, check_shards
from walt_pl.cli.fit_help import render_help, without_help
from walt_pl.cli.monitored_metric import fill_monitor
from walt_pl.cli.null_values import ClassParser
from walt_pl.cli.parse_errors import CommandLine, check_nulls, check_top_keys, explain
from walt_pl.cli.preview_prompts import check_preview_prompts
from walt_pl.cli.rate_change import describe_rate_change
from walt_pl.cli.renamed_keys import check_renamed
from walt_pl.cli.resume_checks import check_resumed
from walt_pl.cli.resume_command import resume_command, typed_command
from walt_pl.cli.task_settings import task_settings
from walt_pl.cli.train_longer import START_OVER, FinishedTraining, Limits, is_past
from walt_pl.cli.trainer_checks import check_trainer
from walt_pl.data.index_table import check_index_file
from walt_pl.runs.artifact import load
from walt_pl.runs.checkpoint import STATE, Checkpoint, steps
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.stage_names import ManifestError, parents_of
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.compile_time import CompileTime
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.export import ExportArtifact
from walt_pl.training.callbacks.hyperparameters import Hyperparameters
from walt_pl.training.callbacks.metrics import Metrics
from walt_pl.training.callbacks.previews import Previews
from walt_pl.training.callbacks.progress_bar import ProgressBar
from walt_pl.training.callbacks.progress_file import ProgressFile
from walt_pl.training.callbacks.record_start import RecordStart
from walt_pl.training.callbacks.record_task import RecordTask
from walt_pl.training.callbacks.reseed import Reseed
from walt_pl.training.callbacks.save_config import SaveConfig
from walt_pl.training.callbacks.spike_guard import SpikeGuard
from walt_pl.training.callbacks.text_progress import TextProgress
from walt_pl.training.callbacks.throughput import Throughput
from walt_pl.training.rank import is_rank_zero
from walt_pl.training.strategies.lost_ranks import explain_lost_ranks
from walt_pl.training.strategies.ranks import check_machines, prepare_ranks

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


class WaltParser(ClassParser, LightningArgumentParser):
    """LightningCLI's parser, with what ClassParser adds. It refuses abbreviated keys.

    jsonargparse makes a parser of this class for every class that a config names, and gives that one no `allow_abbrev`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})


class WaltCLI(LightningCLI):
    """LightningCLI with runs: it finds the folders of a stage, its parents and its checkpoints."""

    command = "fit"
    """Name of the command in messages, for a command that is none of LightningCLI's."""
    RESTORING = "going on from"
    """Beginning of the line that names the checkpoint in use."""

    def __init__(self, words: Sequence[str], run: bool = True) -> None:
        self._words = list(words)
        typed, words = words, find_configs(words)
        for word, found in zip(typed, words, strict=True):
            if word != found:
                _say(f"config {found}: installed with the program; there is no {word} here", sys.stderr)
        self._configs = configs_of(words)
        check_renamed(words, self._configs)
        check_allowed_schemes(words, self._configs)
        kwargs = {"default_config_files": extended_by_first_config(words), "exit_on_error": False}
        super().__init__(
            L.LightningModule,
            JointData,
            subclass_mode_model=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=None,
            parser_class=WaltParser,
            parser_kwargs={**dict.fromkeys(self.subcommands(), kwargs), "exit_on_error": False} if run else kwargs,
            run=run,
            args=list(words),
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        words = without_help(args)
        if len(words) < len(args):
            self._print_help(parser, words)
            raise SystemExit(0)
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

    def _print_help(self, parser: LightningArgumentParser, words: list[str]) -> None:
        """Print the help of the command, with the values of the configs if there are some."""
        options = None
        if configs_of(words):  # without a config, required keys would be missing
            self.parse_arguments(parser, words)
            options = self.config.get(words[0], self.config)
        if hasattr(self, "_subcommand_parsers"):
            print(render_help(words[0], self._subcommand_parsers[words[0]], words, options))
        else:
            print(render_help(self.command, parser, words, options))

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
        parser.add_argument(
            "--rescue", type=str | None, default=None, help="Folder for the artifact if the disk of the run is full at the end."
        )
        parser.add_argument("--from_scratch", type=bool, default=False, help="Train again from the beginning, whatever there is.")
        parser.add_argument("--allow_stale", type=bool, default=False, help="Use parents that are stale.")
        parser.add_argument(
            "--allow_changed", type=bool, default=False, help="Go on from a checkpoint although a changed key breaks its model."
        )
        parser.add_argument(
            "--float32_matmul_precision", type=Float32Precision, default="high", help="Float32 on GPUs: high is TF32, highest full float32."
        )
        parser.add_argument(
            "--logger", type=LoggerName, default=DEFAULT_LOGGER, help="Log of the training; wandb and mlflow need their package."
        )
        callbacks: dict[str, type[L.Callback]] = {"ema": EMA, "spike_guard": SpikeGuard, "previews": Previews, "throughput": Throughput}
        for key, callback in {**callbacks, "checkpoint": Checkpoints, "metrics": Metrics}.items():
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
        if self.subcommand is not None:
            check_logger(options)
        set_float32_precision(options.float32_matmul_precision)
        self.parents: dict[str, str] = {}
        if self.subcommand == "fit":
            check_machines(options.trainer, self.run_dir)
            self._check_parents()
        self.work = self.run_dir / "training" / self.stage
        self.is_trial = self.subcommand == "fit" and bool(options.trainer.fast_dev_run)
        if self.is_trial:
            self._trial = TemporaryDirectory(prefix="walt-trial-")  # removed in `after_fit`
            self.work = Path(self._trial.name)
            options.model.init_args.lr_schedule = "constant"  # a cosine of so few steps would end before its warm-up
        options.trainer.default_root_dir = str(self.work)
        options.checkpoint.dirpath = options.checkpoint.dirpath or str(self.work / "checkpoints")
        if self.subcommand == "fit" and not self.is_trial and is_rank_zero():
            check_own_folder(Path(options.checkpoint.dirpath), self.work, self.run_dir, self.stage)
        fill_monitor(self.stage, options)
        self._fill_parents()
        self._fill_seed()
        fill_classes(options)
        check_engine(self.stage, options)
        if options.trainer.precision is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            options.trainer.precision = "bf16-mixed" if compute_dtype(device) is torch.bfloat16 else "32-true"
            _say(f"precision {options.trainer.precision}: what this machine is fastest at")
        if self.subcommand == "fit" and not self.is_trial:
            self._begin(self.manifest)
        if self.subcommand is not None:
            self._find_checkpoint()
            check_shards(self.restored, options.trainer)
            if options.data.shards is None:
                check_index_file(Path(options.data.index).absolute())
            check_preview_prompts(self.stage, options)

    def _name(self) -> None:
        """Set run and stage, from their options or the path of the config."""
        options = self.options
        self.run_dir, self.stage = run_and_stage(options)
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
        for parent in self.parents:
            training = self.manifest.stages()[parent].training
            if training is not None:
                _say(f'stage "{parent}" is in training again ({training.stop or "not finished"}); its artifact of before is used')

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
            ManifestError: training was interrupted, and a parent has changed since; or a finished stage cannot train longer.
            SystemExit: the stage is done, and the command asks for no more.
        """
        options = self.options
        manifest.check_free(self.stage)
        if options.ckpt_path not in (None, AUTO):
            return
        options.ckpt_path = None
        found = manifest.stages().get(self.stage)
        if found is None or options.from_scratch:
            return
        finished = FinishedTraining.read(manifest.folder(self.stage)) if manifest.has_artifact(found.artifact) else None
        # Every byte is read only if the training goes on, and by rank zero only: the others take its choice (`Checkpoints.setup`).
        goes_on = found.training is not None or (finished is not None and finished.is_shorter_than(Limits.of(options.trainer)))
        newest = Checkpoint.newest(options.checkpoint.dirpath, hashed=goes_on and is_rank_zero())
        if found.training is not None:
            goes_on = self._resume(found.training.parents, newest, finished)
        elif finished is not None and manifest.state(self.stage) == "done":
            goes_on = self._train_longer(newest, finished)
        else:
            goes_on = False
            if finished is not None:
                _say(f'stage "{self.stage}" is stale: training starts at step 0, and {finished.until_the_end()}')
        options.ckpt_path = AUTO if goes_on else None

    def _train_longer(self, newest: Checkpoint | None, finished: FinishedTraining) -> bool:
        """Decide whether a finished stage trains on: if the limits of the command are beyond those of its artifact."""
        limits, done = Limits.of(self.options.trainer), f'stage "{self.stage}" of {self.run_dir} is done'
        folder = self.options.checkpoint.dirpath
        if finished.is_shorter_than(limits):
            if newest is None:
                raise ManifestError(
                    f"{done} after {finished.describe()}, and {folder} has no whole checkpoint from which it could train longer: "
                    f"add {finished.start_over()}"
                )
            _say(f"{done} after {finished.describe()}, and trains longer; {finished.until_the_end(initialise=False)}")
            change = describe_rate_change(finished.config, self.options.as_dict(), newest.step)
            if change:
                _say(change)
            return True
        _say(f"{done}; nothing was trained. It ended after {finished.describe()}")
        longer = f"add {finished.longer()} to train it longer" if newest else f"{folder} has no checkpoint to train it longer from"
        _say(f"{longer}; add {finished.start_over()}")
        raise SystemExit(0)

    def _resume(self, before: Mapping[str, str], newest: Checkpoint | None, finished: FinishedTraining | None) -> bool:
        """Decide whether an interrupted training goes on from its newest checkpoint.

        Args:
            before: parent -> sha256, as training began.
            newest: newest checkpoint.
            finished: the stage's artifact of an earlier training.
        """
        limits = Limits.of(self.options.trainer)
        if newest is None and (left := steps(Path(self.options.checkpoint.dirpath))):
            raise ManifestError(
                f"{left[-1].parent} has no whole checkpoint to go on from, only {', '.join(path.name for path in left)}, each incomplete "
                f"or damaged: restore one, or add {START_OVER} to remove them and start over"
            )
        if newest is None:
            stays = f"; {finished.until_the_end()}" if finished else ""
            _say(f"{self.options.checkpoint.dirpath} has no whole checkpoint to go on from: training starts at step 0{stays}")
            return False
        if before != self.parents:
            changed = [
                f'"{parent}" (now {sha256[:12]}, training began with {before.get(parent, "none")[:12]})'
                for parent, sha256 in self.parents.items()
                if before.get(parent) != sha256
            ]
            raise ManifestError(
                f'stage "{self.stage}" was interrupted, and what it is trained from has changed since: {", ".join(changed)}; '
                f"to go on all the same add --ckpt_path {newest.path} --allow_changed true; to start over add {START_OVER}"
            )
        if finished and newest.step > finished.steps and is_past(newest, limits) and not finished.is_shorter_than(limits):
            _say(
                f'stage "{self.stage}" of {self.run_dir} was training longer and is stopped at step {newest.step}; its artifact of '
                f"{finished.describe()} stays, and nothing was trained. To go on add --trainer.max_steps N with N above {newest.step}; N = "
                f"{newest.step} makes the artifact of that step"
            )
            raise SystemExit(0)
        return True

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
            newest = Checkpoint.newest(options.checkpoint.dirpath, hashed=is_rank_zero())
            if newest is None:
                raise ValueError(f"--ckpt_path {AUTO}: {options.checkpoint.dirpath} has no whole checkpoint; name one, or train first")
            self.restored = newest.state
        elif path.exists() and (path.name == STATE or path.is_dir()):
            self.restored = Checkpoint.at(path.parent if path.name == STATE else path, hashed=is_rank_zero()).state
        elif path.exists():
            self.restored = path
        else:
            there_are = [str(checkpoint.path) for checkpoint in Checkpoint.all(options.checkpoint.dirpath)]
            raise ValueError(f"--ckpt_path: there is no {path}; there are: {', '.join(there_are) or 'none'}")
        _say(f"{self.RESTORING} {self.restored.parent if self.restored.name == STATE else self.restored}")
        options.ckpt_path = None  # trainer.ckpt_path is set in `instantiate_trainer`, since callbacks need it in `setup`

    def before_fit(self) -> None:
        """Check the checkpoint that training resumes from. Otherwise load the weights of ``--init``."""
        if self.restored is not None:
            check_resumed(self.restored, self.model, self.options, self.trainer, self.datamodule)
        if self.options.init is None or self.restored is not None:
            return
        init_from(self.model.components(), load(self.options.init, verify=True))

    def _run_subcommand(self, subcommand: str) -> None:
        with explain_lost_ranks(self.trainer.strategy):
            super()._run_subcommand(subcommand)

    def after_fit(self) -> None:
        """Say that ``--trainer.fast_dev_run`` left nothing."""
        if self.is_trial:
            self._trial.cleanup()
            _say(f'stage "{self.stage}": trainer.fast_dev_run tried {self.trainer.global_step} steps; no checkpoint, no artifact')

    # ---- Parts of the trainer -----------------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer_options = self.options.trainer
        if trainer_options.logger in (None, True):
            name = self.options.logger if self.subcommand else DEFAULT_LOGGER
            goes_on = self.subcommand == "fit" and self.restored is not None
            kwargs["logger"] = open_logger(name, self.work, self.stage, self.manifest, goes_on)
        first: list[L.Callback] = []
        extra: list[L.Callback] = []
        if sys.stdout.isatty() and trainer_options.enable_progress_bar is not False:
            first.append(ProgressBar())  # it ends before any other callback prints its last lines
        else:
            extra.append(TextProgress())
        kwargs["enable_progress_bar"] = False  # Lightning's has a bar for each epoch
        if self.subcommand == "fit" and not self.is_trial:
            config = self._parser(self.subcommand).dump(without_allowed_schemes(self.options), skip_validation=True)
            typed, again = typed_command(self._words), resume_command(self._words)
            extra.append(ProgressFile(self.work, Path(self.options.checkpoint.dirpath), again))
            extra += [SaveConfig(config), RecordStart()]
            # It runs first: another callback must not start something that it refuses.
            rescue = Path(self.options.rescue) if self.options.rescue else None
            first.append(ExportArtifact(self.run_dir, self.stage, self.parents, config, again, typed, self.manifest.experiment, rescue))
        if self.subcommand == "fit":
            extra += [
                CompileTime(),
                Hyperparameters(),
                Reseed(self.options.model.init_args.seed),
                RecordTask(task_settings(self.options), self.parents),
            ]
        trainer = super().instantiate_trainer(**kwargs)
        prepare_ranks(trainer)
        trainer.callbacks[:] = [*first, *trainer.callbacks, *extra]  # type: ignore[attr-defined]
        # A measurement may take long: the checkpoint of its step is written first.
        trainer.callbacks.sort(key=lambda callback: isinstance(callback, Metrics))  # type: ignore[attr-defined]
        if self.subcommand is not None and self.restored is not None:
            trainer.ckpt_path = str(self.restored)
        return trainer


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt fit`."""
    WaltCLI(["fit", *words])


@rank_zero_only
def _say(text: str, file: TextIO | None = None) -> None:
    print(text, file=file, flush=True)
