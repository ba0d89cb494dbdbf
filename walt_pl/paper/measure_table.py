"""Measures by the names that rows give them."""

from __future__ import annotations

from collections.abc import Mapping

from walt_pl.paper.measured import Measure
from walt_pl.paper.measures.prompts import measure_prompts

MEASURES: Mapping[str, Measure] = {"prompts": measure_prompts}
