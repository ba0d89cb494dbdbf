"""Schemes of streamed shards are taken from what a person types, never from a configuration that is stored with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.environment import ROOT
from walt_pl.cli.allowed_schemes import without_allowed_schemes
from walt_pl.cli.fit import WaltCLI


class Started(WaltCLI):
    """Builds model and data, and starts nothing."""

    def __init__(self, *words: str) -> None:
        super().__init__(words, run=False)


def config(path: Path, **data: Any) -> Path:
    """Write a configuration of a small autoencoder that streams from a pipe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = yaml.safe_load((ROOT / "experiments/shapes/vae.yaml").read_text())
    del small["data"]["sizes"]
    small["data"] |= {"shards": {"video": f"pipe:touch {path.parent}/marker"}, "val_videos": 0, "image_stacks_per_batch": 0, **data}
    path.write_text(yaml.safe_dump(small))
    return path


def test_fit_refuses_a_pipe_in_a_configuration_without_the_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'"pipe:" runs the command in it and is not allowed; .* type --data.allow_schemes \'\[pipe\]\''):
        Started("--config", str(config(tmp_path / "vae.yaml")))


def test_fit_takes_allowed_schemes_from_the_command_line_and_from_a_configuration(tmp_path: Path) -> None:
    typed = Started("--config", str(config(tmp_path / "vae.yaml")), "--data.allow_schemes", "[pipe]")
    own = Started("--config", str(config(tmp_path / "vae.yaml", allow_schemes=["pipe"])))
    for started in (typed, own):
        assert started.datamodule._streams["video"].allow_schemes == ("pipe",)
    assert not (tmp_path / "marker").exists(), "nothing is opened before training"


@pytest.mark.parametrize("mark", ["card.json", "checkpoint.json", "../../../../manifest.json"])
@pytest.mark.parametrize("extended", [False, True])
def test_fit_takes_no_allowed_schemes_from_a_stored_configuration(tmp_path: Path, mark: str, extended: bool) -> None:
    folder = tmp_path / "run/training/vae/logs/version_0"
    stored = config(folder / "vae.yaml", allow_schemes=["pipe"])
    (folder / mark).write_text("{}")
    if extended:
        config(tmp_path / "elsewhere.yaml", allow_schemes=["pipe"])
        stored.write_text(yaml.safe_dump({"extends": [str(tmp_path / "elsewhere.yaml")]}))
    with pytest.raises(ValueError, match=r"is not taken from .*vae\.yaml, which is stored .* type --data\.allow_schemes '\[pipe\]'"):
        Started("--config", str(stored))
    typed = Started("--config", str(stored), "--data.allow_schemes=[pipe,https]")
    assert typed.datamodule._streams["video"].allow_schemes == ("pipe", "https")


def test_fit_stores_a_configuration_without_allowed_schemes(tmp_path: Path) -> None:
    started = Started("--config", str(config(tmp_path / "vae.yaml")), "--data.allow_schemes", "[pipe]")
    stored = started.parser.dump(without_allowed_schemes(started.options), skip_validation=True)
    assert yaml.safe_load(stored)["data"]["allow_schemes"] == []
    assert tuple(started.options.data.allow_schemes) == ("pipe",)
