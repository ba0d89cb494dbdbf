"""Known figures of published files, for those who have them: WALT_I3D=FILE make test-weights."""

import os

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.configured import ExtractorSettings
from walt_pl.metrics.extractors.i3d import I3D
from walt_pl.metrics.extractors.known_files import GOLDEN_NUMBERS, I3D_SHA256, KNOWN_FILES, GoldenNumber, NoiseClips, constant_clip
from walt_pl.metrics.protocol import EvaluationProtocol

VARIABLE = "WALT_I3D"
"""Names the published I3D torchscript."""


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The distance written out, with covariances divided by n - 1."""
    x, y = a.double().numpy(), b.double().numpy()
    covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root))


def rows_of(extractor: I3D, golden: GoldenNumber, side: int) -> Tensor:
    clips = (golden.clip(side, position) for position in range(golden.clips))
    return torch.cat([extractor(ClipBatch([clip]))["video_features"] for clip in clips])


@pytest.mark.weights
@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} does not name {KNOWN_FILES['i3d'].describe()}")
@pytest.mark.parametrize("number", [0, 1], ids=["black and white", "noise"])
def test_i3d_gives_its_known_figures(number: int) -> None:
    extractor = I3D(ExtractorSettings(EvaluationProtocol(resize="inside"), os.environ[VARIABLE]))
    golden = GOLDEN_NUMBERS[I3D_SHA256]()[number]
    found = frechet_distance(rows_of(extractor, golden, 0), rows_of(extractor, golden, 1))
    assert found == pytest.approx(golden.value, abs=golden.tolerance), golden.description


def test_noise_clips_are_one_draw_of_numpy() -> None:
    rand = np.random.RandomState(1).rand
    whole = rand(2, 16, 224, 224, 3).astype(np.float32)
    clips = NoiseClips()
    assert all(np.array_equal(clips(0, i).numpy(), whole[i]) for i in range(2))
    assert np.array_equal(clips(1, 0).numpy()[0, 0], np.random.RandomState(2).rand(224, 3).astype(np.float32))
    assert constant_clip(1, 0).unique().tolist() == [255] and constant_clip(0, 0).shape == (30, 64, 64, 3)
