"""Promises of `compare`: figures of unlike protocols are refused, and the others are told apart by their error bars."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from walt_pl.evaluation.card import ErrorBar, MetricCard, write_cards
from walt_pl.evaluation.compare import compare, compare_cards
from walt_pl.metrics.protocol import EvaluationProtocol

CARD = MetricCard(
    metric="fvd",
    value=100.0,
    better="min",
    preset="tats",
    protocol=EvaluationProtocol(size=(128, 128)).to_plain(),
    settings={"splits": 1},
    extractor={"kind": "i3d", "sha256": "ab" * 32, "file": "/a/i3d.pt", "resize": "half_pixel"},
    real={"kind": "index", "path": "/a/index.parquet", "split": "train", "sha256": "cd" * 32, "clips": 2048, "left_out": {"short": 1}},
    generated={"kind": "run", "clips": 2048, "guidance": {"base": 3.0}, "steps": {"base": 50}, "ema": True},
    error=ErrorBar("disjoint folds", (110.0, 114.0), 2.0, 3.0),
    program={"device": "cpu", "versions": {"torch": "2.14.1"}},
)


def set_entry(card: MetricCard, path: str, value: Any) -> MetricCard:
    """Return a card with another value of one entry."""
    name, _, rest = path.partition(".")
    if not rest:
        return replace(card, **{name: value})
    nested = asdict(card)[name]
    place, *inner = rest.split(".")
    nested[place] = {**nested[place], inner[0]: value} if inner else value
    return replace(card, **{name: nested})


def text_of(tmp_path: Path, a: list[MetricCard], b: list[MetricCard], force: bool = False) -> str:
    """Return what is printed for two files of cards."""
    write_cards(tmp_path / "a.json", a)
    write_cards(tmp_path / "b.json", b)
    console = Console(width=250, markup=False)
    with console.capture() as captured:
        console.print(compare(tmp_path / "a.json", tmp_path / "b.json", force))
    return captured.get()


OBSTACLES: dict[str, Any] = {
    **{f"protocol.{field.name}": "another" for field in fields(EvaluationProtocol) if field.name != "seed"},
    "protocol.a_new_field": 3,
    "metric": "kvd",
    "better": "max",
    "preset": None,
    "settings.splits": 10,
    "settings.a_new_field": "x",
    "extractor.kind": "videomae",
    "extractor.sha256": "00" * 32,
    "extractor.resize": "tf1",
    "real.sha256": "11" * 32,
    "real.split": "val",
    "real.clips": 2047,
    "real.left_out.short": 2,
    "real.left_out.broken": 1,
    "real": None,
    "generated.clips": 10_000,
}


@pytest.mark.parametrize("field", OBSTACLES)
def test_compare_refuses_each_field_that_makes_figures_incomparable(tmp_path: Path, field: str) -> None:
    other = set_entry(CARD, field, OBSTACLES[field])
    with pytest.raises(ValueError, match="must not be compared") as error:
        text_of(tmp_path, [CARD], [other])
    lines = str(error.value).split("\n")
    assert len(lines) == 3 and f"fvd: {field} is " in lines[1] and "--force" in lines[2]
    forced = text_of(tmp_path, [CARD], [other], force=True)
    assert "fields that forbid a comparison" in forced and field in forced and "not comparable" in forced
    assert "+0" in forced and "is better (" not in forced


NOTES: dict[str, Any] = {
    "protocol.seed": 5,
    "settings.seed": 5,
    "extractor.file": "/b/i3d.pt",
    "real.path": "/b/index.parquet",
    "generated.guidance.base": 1.0,
    "generated.steps.base": 8,
    "generated.ema": False,
    "generated.left_out": {"failed": 1},
    "program.device": "cuda",
    "program.versions.torch": "2.15",
}


@pytest.mark.parametrize("field", NOTES)
def test_compare_tells_differences_that_do_not_forbid_it(tmp_path: Path, field: str) -> None:
    found = text_of(tmp_path, [CARD], [set_entry(CARD, field, NOTES[field])])
    assert "other differences" in found and field in found and "forbid" not in found


def test_compare_tells_figures_apart_from_two_standard_errors_on() -> None:
    def verdict(value: float, better: Any = "min") -> str:
        return compare_cards(replace(CARD, better=better), replace(CARD, value=value, better=better)).verdict()

    assert compare_cards(CARD, replace(CARD, value=90.0)).uncertainty == pytest.approx(18**0.5)
    assert verdict(100 + 2.01 * 18**0.5) == "a is better" and verdict(100 - 2.01 * 18**0.5) == "b is better"
    assert verdict(150, "max") == "b is better" and verdict(50, "max") == "a is better"
    assert verdict(100 + 1.99 * 18**0.5) == verdict(100 - 1.99 * 18**0.5) == "cannot be told apart (below 2 standard errors)"
    assert verdict(100) == "equal"


def test_compare_says_where_there_is_no_error_bar(tmp_path: Path) -> None:
    alone = replace(CARD, value=50.0, error=ErrorBar())
    found = text_of(tmp_path, [CARD], [alone])
    assert "b by the figures; whether by chance is not known: no error bar in b (lower is better)" in found
    assert "+50 (no error bar)" in found and "100 ± 3" in found
    assert "no error bar in a and b" in text_of(tmp_path, [replace(CARD, error=ErrorBar())], [alone])


def test_compare_pairs_cards_by_metric_and_then_by_likeness(tmp_path: Path) -> None:
    kvd, debiased = replace(CARD, metric="kvd", value=1.0), set_entry(replace(CARD, value=7.0), "extractor.kind", "videomae")
    found = text_of(tmp_path, [CARD, debiased, kvd], [replace(debiased, value=9.0), replace(CARD, value=120.0)])
    lines = [line.split("│") for line in found.split("\n") if " fvd " in line]
    assert [[cell.split()[0] for cell in line[2:5]] for line in lines] == [["100", "120", "-20"], ["7", "9", "-2"]]
    assert "a.json alone has kvd" in found
    with pytest.raises(ValueError, match=r"no metric is in both files: .* has kvd, .* has fvd"):
        text_of(tmp_path, [kvd, kvd], [CARD, CARD])
