"""Choose the extractors that give the rows of chosen metrics. An extractor is found by its class; a module of this folder registers it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from walt_pl.metrics import extractors
from walt_pl.metrics.extractor import Extractor
from walt_pl.metrics.extractors.configured import ConfiguredExtractor, ExtractorSettings
from walt_pl.metrics.metric import Metric
from walt_pl.metrics.protocol import EvaluationProtocol

BY_NAME = ("walt_pl.shapes.scorer_metric",)
"""Modules of higher floors with an extractor of their own, which are imported by name where their rows are needed."""


@dataclass(frozen=True)
class ExtractorOptions:
    """Options `--extractor`, `--extractor-kind` and `--extractor-sha256`."""

    files: str | dict[str, str] | None = None
    """File by kind, or one file: that of `kind`, or of the one kind that needs a file."""
    kind: str | None = None
    """Kind that gives the rows of the videos, where there are several (videomae in place of i3d)."""
    sha256: str | dict[str, str] | None = None
    """Hash by kind, or that of the one file."""


def find_extractors() -> dict[str, type[ConfiguredExtractor]]:
    """Return the extractors of this folder by kind."""
    for module in pkgutil.iter_modules(extractors.__path__):
        if f"{extractors.__name__}.{module.name}" != __name__:
            importlib.import_module(f"{extractors.__name__}.{module.name}")
    # Subclasses that tests or other packages define elsewhere are theirs to choose.
    found = [one for one in ConfiguredExtractor.__subclasses__() if one.__module__.startswith(extractors.__name__)]
    return {one.kind: one for one in sorted(found, key=lambda one: (not one.is_default, one.kind))}


def choose_extractors(
    metrics: Sequence[type[Metric]], options: ExtractorOptions, protocol: EvaluationProtocol, of_images: bool, device: str = "cpu"
) -> list[Extractor]:
    """Load the extractors that the metrics need: each name of rows is given by exactly one of them.

    Args:
        metrics: the chosen metrics.
        options: as typed.
        protocol: of the evaluation.
        of_images: whether the clips are images.
        device: to run on.

    Raises:
        ValueError: a kind is unknown, a file is missing or has another hash, or no extractor gives the rows.
    """
    known = find_extractors()
    needed = list(dict.fromkeys(metric.needs for metric in metrics))
    for option in (options.files, options.sha256, {options.kind: ""} if options.kind else None):
        if isinstance(option, Mapping):
            _check_kinds(option, known)
    chosen: dict[str, type[ConfiguredExtractor]] = {}
    others: list[Extractor] = []
    for rows in needed:
        candidates = [one for one in known.values() if rows in one.gives]
        if candidates:
            kind = _choose(rows, candidates, options, of_images)
            chosen[kind.kind] = kind
        else:
            others.append(_find_by_name(rows))
    if options.kind is not None and options.kind not in chosen:
        raise ValueError(f"--extractor-kind {options.kind}: it gives no rows of {', '.join(m.name for m in metrics)} of these clips")
    with_files = [kind for kind, one in chosen.items() if one.takes_file]
    owners = [options.kind] if options.kind in with_files else with_files
    files = _by_kind("--extractor", options.files, owners)
    hashes = _by_kind("--extractor-sha256", options.sha256, owners)
    made = [one(ExtractorSettings(protocol, files.get(kind), hashes.get(kind), device)) for kind, one in chosen.items()]
    return [*made, *others]


def _check_kinds(option: Mapping[str, str], known: Mapping[str, type[ConfiguredExtractor]]) -> None:
    for kind in option:
        if kind not in known:
            raise ValueError(f"there is no extractor {kind}; there are: {', '.join(sorted(known))}")


def _choose(
    rows: str, candidates: Sequence[type[ConfiguredExtractor]], options: ExtractorOptions, of_images: bool
) -> type[ConfiguredExtractor]:
    """Return the extractor that gives rows: the one that was named, else the one that has a file, else the usual one.

    Raises:
        ValueError: none takes these clips, or files of several are given.
    """
    fitting = [one for one in candidates if one.of_images in (None, of_images)]
    if not fitting:
        sort, other = ("images", "videos") if of_images else ("videos", "images")
        least = "more than one" if of_images else "1"
        kinds = " and ".join(one.kind for one in candidates)
        raise ValueError(f"{rows} are computed by {kinds}, which is for {other}, and these clips are {sort}; set --frames ({least})")
    named = [one for one in fitting if one.kind == options.kind]
    if named:
        return named[0]
    given = [one for one in fitting if isinstance(options.files, dict) and one.kind in options.files]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(one.kind for one in given)} both give {rows}; choose one: --extractor-kind {given[0].kind}")
    return given[0] if given else fitting[0]


def _by_kind(option: str, value: str | dict[str, str] | None, kinds: Sequence[str]) -> dict[str, str]:
    """Return the values of an option by kind.

    Raises:
        ValueError: one value was typed, and not exactly one kind needs it.
    """
    if not isinstance(value, str):
        return value or {}
    if len(kinds) != 1:
        word = "HEX" if option.endswith("sha256") else "FILE"
        mapping = ", ".join(f'"{kind}": "{word}"' for kind in kinds)
        raise ValueError(
            f"{option} {value}: {len(kinds)} extractors need one ({', '.join(kinds)}); name each: {option} '{{{mapping}}}'"
            if kinds
            else f"{option} {value}: no chosen metric needs a file; leave {option} out"
        )
    return {kinds[0]: value}


def _find_by_name(rows: str) -> Extractor:
    """Return the extractor of a higher floor that gives rows.

    Raises:
        ValueError: there is none.
    """
    for name in BY_NAME:
        module = importlib.import_module(name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Extractor) and value.__module__ == name and rows in value.gives:
                return value()
    raise ValueError(f"no extractor gives the rows {rows}")
