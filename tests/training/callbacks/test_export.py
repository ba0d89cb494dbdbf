"""The card and the model card of an artifact that a training wrote."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.guarded_training import Guarded, run
from walt_pl.runs.card import read_card
from walt_pl.training.callbacks.export import ExportArtifact


@pytest.mark.parametrize(("decay", "said"), [(0.5, ", averaged weights"), (0.0, "")])
def test_export_artifact_tells_averages_from_raw_weights(decay: float, said: str, tmp_path: Path) -> None:
    run(Guarded("short", steps=3, decay=decay), tmp_path, 0, 1)
    protocol = read_card(tmp_path / "run" / "base")["metrics"]["protocol"]
    assert protocol == f"the validation clips of the index, view 0{said}"


def test_export_artifact_records_command_and_machine_for_people(tmp_path: Path) -> None:
    run(Guarded("short", steps=3), tmp_path, 0, 1)
    training = read_card(tmp_path / "run" / "base")["training"]
    assert training["command"] == "" and training["machine"].endswith(", 1 process")
    assert 0 < training["seconds"] < 240 and training["from_step"] == 0
    assert "| optimiser steps | 3 |" in (tmp_path / "run" / "base" / "README.md").read_text()


@pytest.mark.parametrize("facts", [{"starts": 0}, {"starts": "many"}, {"starts": 1.5}, {"more": 1}, 7])
def test_export_artifact_counts_from_1_where_a_checkpoint_has_no_number_of_starts_for_the_card(facts: Any, tmp_path: Path) -> None:
    """It is for people alone, so the training goes on."""
    nothing: Any = None
    callback = ExportArtifact(tmp_path, "vae", {}, "")
    with pytest.warns(UserWarning, match="counted from 1 again"):
        callback.on_load_checkpoint(nothing, nothing, {"export": {"training": facts}})
    assert callback._starts == 1
    callback.on_load_checkpoint(nothing, nothing, {"export": {"training": {"starts": 2}}})
    assert callback._starts == 3
