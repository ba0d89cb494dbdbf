"""Train on torch's meta device, which has no values: each read of a value is an error there, as each is a wait on a GPU."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from walt_pl.blocks.transfer import HostCopy
from walt_pl.data.batch import JointBatch
from walt_pl.training.callbacks.checkpoints import Checkpoints

META = torch.device("meta")
QUEUED = "to_device"
"""Function whose copies join the device's queue."""


class DeviceWait(AssertionError):
    """The host would wait for the device."""


def _is_on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device == META


def _is_queued() -> bool:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_code.co_name == QUEUED:
            return True
        frame = frame.f_back
    return False


class MetaAccelerator(CPUAccelerator):
    """Lightning's, which refuses every other device."""

    def setup_device(self, device: torch.device) -> None:
        assert device == META


class Stream:
    """Batches without a number: Lightning would ask the ranks, on the device, whether there are any."""

    def __init__(self, batches: Sequence[JointBatch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[JointBatch]:
        return iter(self.batches)


class Operations(TorchDispatchMode):
    """Refuse copies from the host that are not queued. Copies to the host, and reads of values, fail on the meta device by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.is_watching = False
        self.fused_steps = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_fused_adamw_", "_fused_adam_"):  # there is none on the meta device
            assert _is_on_device((kwargs or {}).get("found_inf")), "the guard decides on the device"
            self.fused_steps += 1
            return None
        out = func(*args, **(kwargs or {}))
        if self.is_watching and name in ("_to_copy", "copy_") and _is_on_device(out):
            source = args[1] if name == "copy_" else args[0]
            if not _is_on_device(source) and not _is_queued():
                raise DeviceWait(f"{name} copies {tuple(source.shape)} from the host: use walt_pl.blocks.transfer.to_device")
        return out


class Functions(TorchFunctionMode):
    """Refuse tensors of values of the host, such as ``torch.tensor(values, device=...)``: they are copied while the host waits."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        is_copied = name in ("tensor", "as_tensor", "asarray", "new_tensor") and not (name != "new_tensor" and _is_on_device(args[0]))
        if self.operations.is_watching and is_copied and _is_on_device(out):
            raise DeviceWait(f"torch.{name} copies {args[-1]} from the host: use walt_pl.blocks.transfer.to_device")
        return out


class Ended(Exception):
    """The training has made its steps. It ends by an error, since the last step of a training writes a checkpoint and shows the loss."""


class Watched(L.Callback):
    """Watch every step after the first two, from the end of one to the end of the next: the transfer of the batch included."""

    def __init__(self, operations: Operations, last: int) -> None:
        self.operations = operations
        self.last = last
        self.steps = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.steps += self.operations.is_watching
        self.operations.is_watching = 2 <= trainer.global_step < self.last
        if trainer.global_step == self.last:
            raise Ended


def fused(kind: Callable[..., torch.optim.Optimizer], **settings: Any) -> Callable[[Any], torch.optim.Optimizer]:
    """Return a maker of optimisers as they are on GPUs."""
    return lambda parameters: kind(parameters, fused=True, **settings)


def train_on_meta(
    module: L.LightningModule, batches: Sequence[JointBatch], monkeypatch: pytest.MonkeyPatch, *callbacks: L.Callback
) -> tuple[int, int]:
    """Train through the Trainer without a GPU, and fail at a wait.

    Returns:
        Steps that were watched, and steps of fused optimisers.
    """
    # A read of a copy that was begun earlier: it does not let the device idle.
    monkeypatch.setattr(HostCopy, "read", lambda copy: torch.zeros(copy._value.shape))
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None)
    operations = Operations()
    watched = Watched(operations, len(batches))
    trainer = L.Trainer(
        strategy=SingleDeviceStrategy(device=META, accelerator=MetaAccelerator()),
        max_steps=len(batches) + 1,
        log_every_n_steps=1000,
        callbacks=[*callbacks, watched],
        enable_checkpointing=any(isinstance(callback, Checkpoints) for callback in callbacks),
        **dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False),  # type: ignore[arg-type]
    )
    monkeypatch.setattr(trainer, "_teardown", lambda: None)  # it copies everything to the host
    with operations, Functions(operations), pytest.raises(Ended):
        trainer.fit(module, Stream(batches))
    return watched.steps, operations.fused_steps
