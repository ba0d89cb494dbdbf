"""DeepSpeed's ZeRO (arXiv 1910.02054) through Lightning, on GPUs and on plain CPUs, with one engine and one sharding.

It adds features that Lightning's strategy lacks:
    processes on a CPU (gloo)
    resuming with another number of ranks
    evaluation from checkpoints of stage 3
    the gradient norm in the log
    batches that keep their precision
"""

import argparse
import atexit
import importlib.util
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.distributed import _InfiniteBarrier
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer

from walt_pl.removal import remove_own
from walt_pl.runs.checkpoint import LATEST, TAG, CheckpointError, check_pickle, tensors_only
from walt_pl.runs.run_files import RESHARDED_FILES
from walt_pl.training.strategies.lost_ranks import set_time_out
from walt_pl.training.strategies.shards import trainable_parameters
from walt_pl.training.strategies.store import TIME_OUT


class ZeROStrategy(DeepSpeedStrategy):
    """Shard the optimiser's state (stage 1), also the gradients (2), also the weights (3).

    The module has one optimiser, which trains all parameters of the module: frozen networks are kept outside. Its attribute
    `gradient_clip_val` is the largest gradient norm, None for none. The engine clips, and the norm is logged as `train/gradient_norm`.

    Args:
        stage: stage of ZeRO.
        offload: keep the optimiser's state and the float32 weights in CPU memory (stages 1 and 2); the optimiser then runs on the CPU.
        bucket: number of weights or gradients that are sent at a time; two buckets are held.
        keep_whole: weights with at most this number of values stay unsharded on every rank at stage 3.
        timeout: time-out of the process group: ranks that wait for longer than this for another rank end with an error.

    Raises:
        ValueError: DeepSpeed is not installed, or offload is set at stage 3.
    """

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload: bool = False,
        bucket: int = 200_000_000,
        keep_whole: int = 100_000,
        timeout: timedelta = TIME_OUT,
    ) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise ValueError(
                "trainer.strategy: ZeRO needs DeepSpeed, which is not installed; type: make setup, or outside of a checkout: "
                "pip install 'walt-pl[train]'; or leave --config experiments/strategy/... out to train with DDP"
            )
        if offload and stage == 3:
            raise ValueError("trainer.strategy: offload is for stages 1 and 2, got stage 3; use experiments/strategy/zero2_offload.yaml")
        super().__init__(stage=stage, offload_optimizer=offload, allgather_bucket_size=bucket, reduce_bucket_size=bucket, timeout=timeout)
        assert isinstance(self.config, dict)
        self.config["zero_optimization"]["stage3_param_persistence_threshold"] = keep_whole
        # The gradients of bfloat16 weights are bfloat16. Without this, their sum over ranks would be bfloat16, too.
        self.config["communication_data_type"] = "fp32"
        # Torch's AdamW works with offloading too. DeepSpeed's own optimiser would compile C++ at the first start.
        self.config["zero_force_ds_cpu_optimizer"] = False
        self.stage: Literal[1, 2, 3] = stage

    # ---- CPUs ---------------------------------------------------------------------------------------------------------

    @property
    def root_device(self) -> torch.device:
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device  # the engine compares the device index with integers

    def setup_environment(self) -> None:
        self.precision_plugin = ZeROPrecision(cast(Any, self.precision_plugin.precision))
        if self.root_device.type == "cpu":
            DDPStrategy.setup_environment(self)  # DeepSpeedStrategy's adds a check for CUDA
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        if self.root_device.type != "cpu":
            super().setup_distributed()
            return
        import deepspeed
        from deepspeed.accelerator import get_accelerator, set_accelerator

        if get_accelerator().device_name() != "cpu":  # a machine with GPUs that trains on its CPU
            from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

            set_accelerator(CPU_Accelerator())
        # DeepSpeed's shared-memory collectives need a minute of C++ compilation at the first start. gloo serves as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()
        # In about one of fifty runs a process ended with "terminate called without an active exception" after its work was done.
        atexit.register(_destroy_process_group)

    # ---- Training -----------------------------------------------------------------------------------------------------

    def init_deepspeed(self) -> None:
        from deepspeed.accelerator import get_accelerator

        if self.precision_plugin.precision == "16-mixed" and not get_accelerator().is_fp16_supported():
            raise ValueError(
                f"trainer.precision: {self.precision_plugin.precision} is not for ZeRO on this device, which has no float16 arithmetic; "
                "choose bf16-mixed or 32-true"
            )
        # This replaces Lightning's code, which takes the norm from the trainer and warns of the stages' own clipping.
        module = self.lightning_module
        assert module is not None and isinstance(self.config, dict) and isinstance(self.model, L.LightningModule)
        self.config["gradient_clipping"] = cast(Any, module).gradient_clip_val or 0.0
        if module.trainer.training:
            _check_state(module)
            self._initialize_deepspeed_train(self.model)
            # `export` converts shards to plain files, so DeepSpeed's recovery script is not needed.
            self.deepspeed_engine._copy_recovery_script = lambda path: None
        else:
            self._initialize_deepspeed_inference(self.model)
            if self.zero_stage_3 and not hasattr(self.deepspeed_engine.optimizer, "_restore_from_bit16_weights"):
                # DeepSpeed calls it after loading, though there is nothing to restore (DeepSpeed issue 7272).
                self.deepspeed_engine.optimizer._restore_from_bit16_weights = lambda: None
        set_time_out(self._timeout or TIME_OUT)
        # The import is here, since DeepSpeed is not installed everywhere.
        from walt_pl.training.strategies.shard_files import ShardFiles

        self.deepspeed_engine.checkpoint_engine = self._files = ShardFiles()

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        if self.deepspeed_engine.was_step_applied():
            module = self.lightning_module
            assert module is not None
            module.log("train/gradient_norm", torch.as_tensor(self.deepspeed_engine.get_global_grad_norm(), dtype=torch.float32))
        return result

    # ---- Checkpoints --------------------------------------------------------------------------------------------------

    failure: OSError | None = None
    """Error in this rank's part of the last checkpoint, None if it succeeded."""

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of the shards that this rank wrote last, by path."""
        return self._files.hashes

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write every rank's shards.

        A full disk raises no error here but sets `failure`: if one rank raised it, the other ranks would wait for that rank.
        """
        self.failure = None
        self._files.begin()
        if self.is_global_zero:  # before the engine makes the folder, which would raise
            self._keep_failure(lambda: (Path(filepath) / TAG).mkdir(parents=True, exist_ok=True))
        self.failure = self.broadcast(self.failure)
        if self.failure is not None:
            return
        state = {name: value for name, value in checkpoint.items() if name not in ("state_dict", "optimizer_states")}
        self.deepspeed_engine.save_checkpoint(str(filepath), tag=TAG, client_state=state, save_latest=False)
        self.failure = self._files.failure
        if self.is_global_zero:
            self._keep_failure(lambda: (Path(filepath) / LATEST).write_text(TAG, encoding="utf-8"))

    def _keep_failure(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:
            self.failure = error

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore the engine from a folder of shards, which another number of ranks may have written.

        Returns:
            The state that was saved beside the shards.

        Raises:
            ValueError: it was written by another strategy, or evaluation uses another number of ranks at stage 3.
            UnsafePickle: reading it would run code.
            CheckpointError: its shards cannot be merged for this number of ranks.
        """
        path = Path(self.broadcast(checkpoint_path))  # rank zero has checked its choice
        ranks = self._check_checkpoint(path)
        if ranks == self.world_size:
            return self._read(path, weights_only)
        if self.lightning_module.trainer.state.fn != TrainerFn.FITTING:  # type: ignore[union-attr]
            if self.zero_stage_3:
                raise ValueError(f"{path} was written by {ranks} ranks, and stage 3 evaluates with as many, got {self.world_size}")
            return self._read(path, weights_only)
        with self._reshard_checkpoint(path, ranks) as universal, self._keep_groups_apart():
            self.deepspeed_engine._config.load_universal_checkpoint = True
            try:
                return self._read(universal, weights_only)
            finally:
                self.deepspeed_engine._config.load_universal_checkpoint = False

    @contextmanager
    def _keep_groups_apart(self) -> Iterator[None]:
        """Keep parameter groups separate when DeepSpeed's stage 3 (0.19.8) loads a universal checkpoint.

        DeepSpeed gives the first group's weight decay to all groups. It also gives all groups one shared tensor as step count, and each
        group increments it.
        """
        optimizer = self.deepspeed_engine.optimizer
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        yield
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for state in optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()

    def _read(self, path: Path, weights_only: bool | None) -> dict[str, Any]:
        with tensors_only(path.parent):
            return super().load_checkpoint(path, weights_only)

    def _check_checkpoint(self, path: Path) -> int:
        """Return the number of ranks that wrote a checkpoint. DeepSpeed unpickles shards, so their types are checked first.

        Raises:
            ValueError: it was written by another strategy.
            UnsafePickle: a shard names a type that could run code.
        """
        if path.is_dir():
            check_pickle(path)
        ranks = len(list((path / TAG).glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt")))
        sharded_weights = any((path / TAG).glob("*zero_pp_rank_*_mp_rank_00_model_states.pt"))
        if not ranks or sharded_weights != self.zero_stage_3:
            found = "without ZeRO" if not ranks else "by ZeRO 3" if sharded_weights else "by ZeRO 1 or 2"
            raise ValueError(
                f"{path} was written {found}, and now the strategy is ZeRO {self.stage}: go on with the strategy that it was begun "
                "with, or start over with --from_scratch true --init and the artifact that export makes of it (the optimiser then starts "
                "anew)"
            )
        return ranks

    @contextmanager
    def _reshard_checkpoint(self, path: Path, ranks: int) -> Iterator[Path]:
        """Yield the checkpoint in DeepSpeed's universal format: gathered weights and moments by name.

        It lies beside the original while it is read.

        Raises:
            CheckpointError: the shards cannot be merged.
        """
        universal, failure = path.with_name(f"{path.name}.resharded"), None
        rank_zero_info(f"{path} was written by {ranks} ranks: putting it together for {self.world_size}, moments included")
        with _InfiniteBarrier():  # a normal barrier would time out after half an hour
            if self.is_global_zero:
                failure = _put_together(path / TAG, universal, {name for name, _ in trainable_parameters(self.lightning_module)})  # type: ignore[arg-type]
        failure = self.broadcast(failure)
        if failure is not None:
            raise CheckpointError(
                f"{path} was written by {ranks} ranks and could not be put together for {self.world_size} ({failure}); that takes 24 bytes "
                f"of {path.parent.parent} for each parameter: make room there, or go on with {ranks} ranks"
            )
        try:
            yield universal
        finally:
            self.barrier("loaded")
            if self.is_global_zero:
                remove_own(universal, RESHARDED_FILES)


class ZeROPrecision(DeepSpeedPrecision):
    """Leave batches in their precision.

    Sample weights are counts, pixels are the input of a frozen autoencoder, and only the model needs bfloat16.
    """

    def convert_input(self, data: Any) -> Any:
        return data

    def backward(self, *args: Any, **kwargs: Any) -> None:
        # Lightning has divided the loss by the number of accumulated batches. The engine would divide it again.
        super().backward(*args, scale_wrt_gas=False, **kwargs)


def _put_together(shards: Path, universal: Path, names: set[str]) -> str | None:
    """Merge a folder of shards into DeepSpeed's universal checkpoint.

    Args:
        shards: folder of the shards.
        universal: folder to write.
        names: names of the weights that the shards may have.

    Returns:
        The error as text; None if there was none.
    """
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(shards),
        output_folder=str(universal / TAG),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        remove_own(universal, RESHARDED_FILES)  # of a start that was killed
        universal.mkdir()
        # DeepSpeed prints many lines and progress bars.
        with tensors_only(universal.parent), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            _check_names(shards, names)
            ds_to_universal.main(options)
    except Exception as error:  # any error is returned: the other ranks wait for the result
        remove_own(universal, RESHARDED_FILES)
        return f"{type(error).__name__}: {error}"
    return None


def _check_names(shards: Path, names: set[str]) -> None:
    """Check that the shards name only weights of this model.

    DeepSpeed writes a folder for each weight, under its name in the shards: "../x" would lie outside of the checkpoint.

    Raises:
        CheckpointError: a shard has another name, or experts.
    """
    for path in sorted(shards.iterdir()):
        shard = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        mappings = shard.get("optimizer_state_dict", {}).get("param_slice_mappings") or []
        found = {name for group in (shard.get("module") or {}, *(shard.get("param_shapes") or []), *mappings) for name in group}
        if {"ds_autoep_layers", "autoep_layers"} & set(shard) or not found <= names:
            other = sorted(map(repr, found - names))
            raise CheckpointError(
                f"{path} is not of this model ({other[0] if other else 'it has experts'}); use a checkpoint of this stage"
            )


def _destroy_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _check_state(module: nn.Module) -> None:
    """Check that the state of a module consists of trained weights only.

    With another number of ranks only the trained weights are restored, so there must be no other state.

    Raises:
        ValueError: there is other state, such as buffers or frozen weights.
    """
    other = set(module.state_dict()) - {name for name, _ in trainable_parameters(module)}
    if other:
        raise ValueError(f"trainer.strategy: ZeRO takes modules whose whole state is trained weights; keep these outside: {sorted(other)}")
