"""Null at any depth of a configuration, on the command line and in YAML."""

import dataclasses
import inspect
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from datamodules.joint import JointData
from stages.base import BaseStage
from stages.super_resolution import SuperResolutionStage
from stages.vae import VAEStage
from tests.helpers.environment import ROOT
from walt_pl.cli.fit import WaltCLI
from walt_pl.training.callbacks.checkpoints import Checkpoints
from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.previews import Previews
from walt_pl.training.callbacks.spike_guard import SpikeGuard
from walt_pl.training.callbacks.throughput import Throughput

PARTS = {
    "vae": {"model": VAEStage, "data": JointData},
    "base": {"model": BaseStage},
    "sr1": {"model": SuperResolutionStage},
}
CALLBACKS = {"ema": EMA, "spike_guard": SpikeGuard, "previews": Previews, "throughput": Throughput, "checkpoint": Checkpoints}


class Parsed(WaltCLI):
    """Only parses."""

    def __init__(self, *words: str) -> None:
        super().__init__(words, run=False)

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def value(self, key: str) -> Any:
        return self.options[key.replace("model.", "model.init_args.", 1)]


def optional_keys(owner: Any, prefix: str) -> Iterator[str]:
    """Yield the keys of a class's arguments, or of a dataclass's fields, that take null."""
    call = owner if dataclasses.is_dataclass(owner) else owner.__init__
    hints = get_type_hints(call)
    names = [name for name in inspect.signature(owner).parameters if name in hints]
    for name in names:
        hint = hints[name]
        inside = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        if type(None) in inside:
            yield f"{prefix}.{name}"
        elif dataclasses.is_dataclass(hint):
            yield from optional_keys(hint, f"{prefix}.{name}")


def cases() -> list[tuple[str, str]]:
    found = [(stage, key) for stage, parts in PARTS.items() for prefix, owner in parts.items() for key in optional_keys(owner, prefix)]
    return found + [("vae", key) for name, owner in CALLBACKS.items() for key in optional_keys(owner, name)]


def test_optional_keys_are_found_at_every_depth() -> None:
    expected = {("base", "model.denoiser.num_classes"), ("vae", "model.perceptual_frames"), ("vae", "data.fps"), ("sr1", "model.text_path")}
    assert expected <= set(cases())


@pytest.mark.parametrize(("stage", "key"), cases())
def test_fit_parser_reads_null_for_every_optional_key(stage: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = f"experiments/shapes/{stage}.yaml"
    assert Parsed("--config", config, f"--{key}", "null").value(key) is None
    overlay = tmp_path / "overlay.yaml"
    first, *rest = key.split(".")
    value: Any = None
    for name in reversed(rest):
        value = {name: value}
    overlay.write_text(json.dumps({first: {"init_args": value} if first == "model" else value}))
    assert Parsed("--config", config, "--config", str(overlay)).value(key) is None


def test_null_inside_a_mapping_or_a_second_class_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    base = ["--config", "experiments/shapes/base.yaml"]
    denoiser = Parsed(*base, "--model.denoiser", '{"num_classes": null, "text_width": null}').value("model.denoiser")
    assert (denoiser.num_classes, denoiser.text_width) == (None, None)
    optimizer = Parsed(*base, "--model.optimizer", "torch.optim.AdamW", "--model.optimizer.foreach", "null").value("model.optimizer")
    assert optimizer.init_args.foreach is None


def test_null_leaves_the_text_none_of_outer_keys_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    base = ["--config", "experiments/shapes/base.yaml"]
    assert Parsed(*base, "--run", "None").options.run == "None"
    assert Parsed(*base, "--data.index", "None").options.data.index == "None"
    assert Parsed(*base, "--model.vae", "./None").value("model.vae") == "./None"


@pytest.mark.parametrize(
    ("key", "wanted"),
    [("model.denoiser.depth", "a whole number"), ("model.lr_schedule", "one of cosine, constant"), ("trainer.max_steps", "a whole number")],
)
def test_null_is_refused_where_it_means_nothing(key: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=f"^--{key}: found null, wanted {wanted}"):
        Parsed("--config", "experiments/shapes/base.yaml", f"--{key}", "null")
