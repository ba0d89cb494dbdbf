"""Transparent pictures that sampling begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

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
    picture = np.full((16, 16, 4), (0, 255, 0, 0), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "rgba"
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba")))
        container.mux(stream.encode())
    seen: list[Any] = []
    monkeypatch.setattr(Cascade, "encode_context", lambda self, pictures, name, crop: seen.append(pictures) or {})
    _encode_context(cascade, str(tmp_path / "a.png"), None, crop=False)
    _encode_context(cascade, None, str(tmp_path / "a.mov"), crop=False)
    assert [pictures.shape[0] for pictures in seen] == [1, cascade.overlap]
    assert all((pictures == colour).all() for pictures in seen)
