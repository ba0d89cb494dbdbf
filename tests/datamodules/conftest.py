"""Fixtures of the data module: an index of small clips, and an autoencoder."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.joint_data import COUNTS, FakeVAE
from walt_pl.data.index import write_index
from walt_pl.media.writing import write_image, write_video
from walt_pl.runs import artifact, card


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Clips of 7 frames, 32 x 48 pixels; one training clip is broken."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for split, counts in COUNTS.items():
        for kind, count in zip(("video", "image"), counts, strict=True):
            for number in range(count):
                path = folder / f"{split}-{number}{'.mp4' if kind == 'video' else '.png'}"
                coarse = rng.integers(0, 256, (7, 4, 6, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
                if kind == "video":
                    write_video(path, coarse, fps=8)
                else:
                    write_image(path, coarse[0])
                size = {"frames": 7 if kind == "video" else 1, "fps": 8.0, "width": 48, "height": 32, "bytes": 1}
                words = {"caption": f"{kind} {number}", "label": number, "split": split}
                rows.append({"path": path.name, "kind": kind, **size, **words})
    (folder / "train-3.mp4").write_bytes((folder / "train-3.mp4").read_bytes()[:200])
    write_index(rows, folder / "index.parquet")
    return str(folder / "index.parquet")


@pytest.fixture
def vae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Path of an artifact that needs no training."""
    FakeVAE.clips = 0
    monkeypatch.setattr(card, "read_card", lambda path: {"sha256": "1"})
    monkeypatch.setattr(artifact, "load", lambda path, device: SimpleNamespace(model={"vae": FakeVAE()}.get))
    return str(tmp_path / "vae")
