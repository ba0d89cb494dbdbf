"""Outlines of the embedded set's objects, on painted scenes whose geometry is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from walt_pl.data.transforms import to_square
from walt_pl.shapes.dataset import SHAPES, Scene, distance, paint
from walt_pl.shapes.outline import fit_outline, measure_outlines

SCENE = Scene("circle", "red", "right", "plain", (0.3, 0.5), (0.64375, 0.5), (0.25, 0.25), 40)


def clip_of(scene: Scene, size: int = 64) -> Tensor:
    return to_square(paint(scene), size)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [32, 64, 128])
def test_fit_outline_finds_the_painted_geometry(shape: str, size: int) -> None:
    outline = fit_outline(clip_of(replace(SCENE, shape=shape), size))
    assert outline.shape == shape and outline.iou > 0.97
    assert outline.radius == pytest.approx(np.full(17, 0.25 * size), abs=0.03 * size)
    assert outline.centre[0] == pytest.approx([0.3 * size, 0.5 * size], abs=0.02 * size)
    assert outline.centre[-1] == pytest.approx([0.64375 * size, 0.5 * size], abs=0.02 * size)


@pytest.mark.parametrize("motion", ["right", "growing"])
def test_outline_of_a_painted_clip_is_steady(motion: str) -> None:
    """Moving objects jump by a step every second frame: that is no unsteadiness."""
    growing = {"start": (0.5, 0.5), "end": (0.5, 0.5), "radius": (0.2, 0.34)}
    scene = replace(SCENE, motion=motion, **(growing if motion == "growing" else {}))  # type: ignore[arg-type]
    assert fit_outline(clip_of(scene, 128)).steadiness < 0.3


def test_outline_overlap_is_that_of_the_formula() -> None:
    """A disc with a bite: the fitted circle is the disc, and the overlap is the share that is left."""
    grid = np.arange(128, dtype=np.float32) + 0.5 - 64
    disc = distance("circle", grid[None], grid[:, None], np.full((1, 1), 40, np.float32)) < 0
    bitten = disc & ~((np.abs(grid[None]) < 8) & (grid[:, None] < -20))
    clip = torch.full((3, 2, 128, 128), -0.7)
    clip[0] = torch.where(torch.from_numpy(bitten), 0.3, -0.7)
    assert fit_outline(clip).iou == pytest.approx(bitten.sum() / disc.sum(), abs=0.02)


@pytest.mark.parametrize(("moved", "steadiness"), [(0, 0.0), (4, 2.0)])
def test_outline_steadiness_is_the_spread_around_the_line(moved: int, steadiness: float) -> None:
    """An object that trembles to and fro by 4 pixels is 2 pixels off its line."""
    still = clip_of(replace(SCENE, start=(0.4, 0.5), end=(0.4, 0.5)), 128)
    trembling = still.clone()
    trembling[:, 1::2] = still[:, 1::2].roll(moved, dims=-1)
    assert fit_outline(trembling).steadiness == pytest.approx(steadiness, abs=0.1)


def test_outline_of_one_kind_for_the_whole_clip_sees_a_shape_that_changes() -> None:
    circle, triangle = (clip_of(replace(SCENE, shape=shape)) for shape in ("circle", "triangle"))
    mixed = torch.cat([circle[:, :9], triangle[:, 9:]], dim=1)
    assert fit_outline(mixed).iou < 0.9 < fit_outline(circle).iou


def test_outline_of_a_frame_without_an_object_has_no_overlap() -> None:
    clip = clip_of(SCENE)
    clip[:, 8:] = -0.7
    assert fit_outline(clip).iou == pytest.approx(fit_outline(clip_of(SCENE)).overlap[:8].sum() / 17, abs=0.01)


def test_measure_outlines_are_means_over_clips() -> None:
    clips = torch.stack([clip_of(SCENE), clip_of(replace(SCENE, shape="bar"))])
    found: dict[str, Any] = dict(measure_outlines(clips))
    assert found["iou"] == pytest.approx(np.mean([fit_outline(clip).iou for clip in clips]))
    assert found["steadiness"].clips.tolist() == pytest.approx([fit_outline(clip).steadiness for clip in clips])
