"""Plots: thinned without the loss of a spike, readable without colour, and described in words."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from walt_pl.report.plots import Line, draw_chain, draw_curves, draw_lines, thin
from walt_pl.report.training_logs import Series
from walt_pl.runs.status import StatusRow


def texts(svg: bytes) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("}text")]


def test_thin_keeps_first_last_and_every_spike() -> None:
    values = np.sin(np.arange(20_000) / 900)
    values[[777, 15_001]] = 40, -40
    series = Series(np.arange(20_000), values)
    few = thin(series)
    assert 400 < len(few.steps) <= 500 and (np.diff(few.steps) > 0).all()
    assert {0, 777, 15_001, 19_999} <= set(few.steps.tolist())
    assert np.array_equal(values[few.steps], few.values)
    short = Series(np.arange(500), values[:500])
    assert thin(short) is short


def test_draw_curves_is_told_apart_without_colour() -> None:
    steps = np.arange(30)
    names = ("loss", "loss_video", "loss_image", "mse")
    plot = draw_curves("Loss", {f"train/{name}": Series(steps, np.exp(-steps / 9) + n) for n, name in enumerate(names)}, "loss", True)
    assert plot is not None
    svg = plot.svg.decode()
    lines = re.findall(r'<g id="line2d_\d+">\s*<path d="M[^"]{200,}" clip-path="[^"]*" style="([^"]*)"', svg)
    dashes = [re.sub(r"stroke: #\w+;?", "", style) for style in lines]
    assert len(lines) == 4 and len(set(dashes)) == 4, "dashes differ"
    markers = re.findall(r'<path id="m\w+" d="([^"]+)" style="stroke: #(?:0072b2|d55e00|009e73|cc79a7)', svg)
    assert len(set(markers)) >= 4, "shapes differ"
    assert set(names) <= set(texts(plot.svg))


def test_draw_curves_says_first_last_and_extremes() -> None:
    series = Series(np.array([9, 19, 29, 39]), np.array([0.5, 2.0, np.nan, 0.25]))
    plot = draw_curves("Gradient norm", {"train/gradient_norm": series}, "norm")
    assert plot is not None
    assert plot.alt == "Gradient norm, against step. gradient_norm: 0.5 at step 9, 0.25 at step 39, least 0.25, greatest 2."
    assert draw_curves("Nothing", {"a/b": Series(np.array([1]), np.array([np.nan]))}, "x") is None


@pytest.mark.parametrize("name", ["$x_1$ & <script>", "a\x00b\u202ec"])
def test_draw_lines_takes_any_name(name: str) -> None:
    plot = draw_lines("Loss", [Line(name, [0, 1], np.array([0.0, 1.0])), Line("b", [0, 1], np.array([1.0, 2.0]))], "step", "loss", True)
    shown = [text for text in texts(plot.svg) if "$x_1$ & <script>" in text or text == "a\\x00b\\u202ec"]
    assert len(shown) == 1


def test_draw_chain_shows_states_hashes_and_parents() -> None:
    rows = [
        StatusRow("vae", "vae", "done", sha256="a" * 64),
        StatusRow("base", "base", "stale", sha256="b" * 64, parents={"vae": "c" * 64}),
        StatusRow("sr1", "super_resolution", "not started"),
    ]
    plot = draw_chain(rows)
    assert {"vae: done", "base: stale", "sr1: not started", "a" * 12, "no weights"} <= set(texts(plot.svg))
    boxes = set(re.findall(r'<g id="patch_\d+">\s*<path d="[^"]*" clip-path="[^"]*" style="([^"]*)"', plot.svg.decode()))
    assert len([style for style in boxes if "stroke-width: 1.4" in style]) == 3, "a line of its own for each state"
    assert plot.alt == (
        "Chain of stages: vae is done, weights aaaaaaaaaaaa; base is stale, weights bbbbbbbbbbbb, trained from vae; sr1 is not started."
    )
