"""All metrics by name. A module of this folder registers its metrics by defining them: there is no list to edit."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import pkgutil
from typing import Any

import walt_pl.metrics
from walt_pl.metrics.metric import Metric

ELSEWHERE = ("walt_pl.shapes.scorer_metric",)
"""Modules of metrics outside of this folder. They lie on a higher floor: they are imported by name, when somebody asks."""


def find_metrics() -> dict[str, type[Metric]]:
    """Return every metric by its name, in the order of names.

    Raises:
        ValueError: two classes have one name.
    """
    for module in pkgutil.iter_modules(walt_pl.metrics.__path__):
        if not module.ispkg:
            importlib.import_module(f"walt_pl.metrics.{module.name}")
    for name in ELSEWHERE:
        if importlib.util.find_spec(name):
            importlib.import_module(name)
    found: dict[str, type[Metric]] = {}
    for metric in _subclasses(Metric):
        # A class without a name is a base of others. Classes of other modules are for those who define them.
        ours = metric.__module__.startswith(f"{walt_pl.metrics.__name__}.") or metric.__module__ in ELSEWHERE
        if not ours or inspect.isabstract(metric) or not hasattr(metric, "name"):
            continue
        other = found.setdefault(metric.name, metric)
        if other is not metric:
            places = " and ".join(sorted(f"{one.__module__}.{one.__qualname__}" for one in (other, metric)))
            raise ValueError(f'two metrics have the name "{metric.name}": {places}; give one of them another `name`')
    return dict(sorted(found.items()))


def choose_metrics(text: str) -> list[type[Metric]]:
    """Return the metrics of names between commas, such as "fvd,kvd", each once.

    Raises:
        ValueError: there is no metric of a name, or no name at all.
    """
    known = find_metrics()
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"no metric is named; there are: {', '.join(known)}")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
            meant = f"did you mean {' or '.join(near)}?" if near else "Names stand between commas."
            raise ValueError(f'there is no metric "{name}"; {meant} There are: {", ".join(known)}')
    return [known[name] for name in dict.fromkeys(names)]


def _subclasses(parent: type[Any]) -> list[type[Any]]:
    """Return all classes below a class, each once."""
    below = dict.fromkeys(grandchild for child in parent.__subclasses__() for grandchild in (child, *_subclasses(child)))
    return list(below)
