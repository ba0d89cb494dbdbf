"""Transparent pictures that sampling begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.clips import write_transparent
from tests.helpers.tiny_stages import write_stages
from walt_pl.cli.sample import _encode_context
from walt_pl.runs.artifact import load
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.sampling.cascade import Cascade


@pytest.mark.parametrize(
    ("train_config", "colour"),
    [("data:\n  background: [10, 20, 200]\n", (10, 20, 200)), ("data:\n  size: 8\n", (255, 255, 255)), ("", (255, 255, 255))],
)
def test_sample_command_reads_pictures_over_the_background_of_the_training(
    train_config: str, colour: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = write_stages(tmp_path / "stages")
    base = load(folders["base"])
    entries: dict[str, Any] = {"files": {"tokenizer.model": base.read("tokenizer.model")}, "card": {"parents": {}}}
    settings = {"diffusion": base.section("diffusion")}
    save_artifact(tmp_path / "base", kind="base", models=base.models, sampling_config=settings, train_config=train_config, **entries)
    cascade = Cascade({**folders, "base": tmp_path / "base"})
    write_transparent(tmp_path, height=16, width=16, frames=6)
    seen: list[Any] = []
    monkeypatch.setattr(Cascade, "encode_context", lambda self, pictures, name, crop: seen.append(pictures) or {})
    _encode_context(cascade, str(tmp_path / "a.png"), None, crop=False)
    _encode_context(cascade, None, str(tmp_path / "a.mov"), crop=False)
    assert [pictures.shape[0] for pictures in seen] == [1, cascade.overlap]
    assert all((pictures == colour).all() for pictures in seen)
