"""Results of the paper's rows that were not measured, for tests of files, pages and plots."""

from dataclasses import replace
from typing import Any

from walt_pl.paper.figure import Figure
from walt_pl.paper.record import FORMAT, Record
from walt_pl.paper.row import Row


def made_record(row: Row, seed: int, value: float = 0.5, **changes: Any) -> Record:
    """Return a result with the figures `all` and `loss` of one value."""
    record = Record(
        format=FORMAT,
        row=row.name,
        table=row.table,
        seed=seed,
        short=False,
        figures={"all": Figure(value, 256, value - 0.1, value + 0.1), "loss": Figure(value, 256, value - 0.1, value + 0.1)},
        steps={"base": 700},
        seconds_a_step={"base": 0.5},
        minutes={"training": 6.0, "measuring": 1.0},
        peak_gib=1.5,
        machine="a processor, 2 cores, 1 threads",
        device="cpu",
        threads=1,
        jobs=2,
        commit="0123456789abcdef",
        dirty=False,
        date="2026-11-27T09:00:00+00:00",
        stages={"vae": "a" * 64, "base": "b" * 64},
        picture=False,
    )
    return replace(record, **changes)
