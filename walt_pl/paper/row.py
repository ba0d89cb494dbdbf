"""Rows of the paper's tables: their trainings, and the result that the paper reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from walt_pl.runs.stage_names import kind_of

Table = Literal["tasks", "ablations", "equal time", "causes"]
TABLES: tuple[Table, ...] = ("tasks", "ablations", "equal time", "causes")
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Training:
    """A training of one stage: a file of the experiment with overlays laid over it."""

    stage: str
    """Name of the stage; its file is STAGE.yaml in the folder of the experiment."""
    overlays: tuple[str, ...] = ()
    """Files laid over it, relative to the folder of the experiment."""
    steps: int | None = None
    """Optimiser steps; those of the files when None."""
    init: str = ""
    """Stage of the run, adopted or trained before, whose weights the training starts from; empty for random weights."""
    shared: bool = False
    """Trained once, with seed 0, and adopted by the runs of all seeds."""
    time_of: str = ""
    """Row whose training time this one gets: the steps follow from measured seconds a step; empty for none."""
    pace_of: str = ""
    """Row that was trained with these files before. Its seconds a step are those of this training."""

    def __post_init__(self) -> None:
        kind_of(self.stage)
        if bool(self.time_of) != bool(self.pace_of) or (self.time_of and self.steps is not None):
            raise ValueError("time_of and pace_of go together, and leave no other number of steps")


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    name: str
    """Name of its files and for --only. No two rows have one name."""
    table: Table
    text: str
    """Short description on the page."""
    trainings: tuple[Training, ...]
    """Trainings in order; none for a row that measures what it adopts.

    The autoencoder of the command is adopted unless one of them trains the stage `vae`.
    """
    measure: str
    """Name of a function in `walt_pl.paper.measure_table.MEASURES`."""
    seeds: tuple[int, ...] = SEEDS
    """Seeds of the trainings."""
    adopts: tuple[tuple[str, str], ...] = ()
    """Rows and their stages that its run takes over, of the same seed."""
    wide: bool = False
    """It is trained and measured on the set of 128 rows x 224 columns."""
    about: str = ""
    """Sentences below the heading of a task: what is given, and the meaning of its figures."""
    paper: str = ""
    """Figures of the paper."""
    expected: int = 0
    """Result of the paper against the row `against`: 1 better, -1 worse, 0 without a clear difference."""
    against: str = ""
    """Row that it is compared with; empty for none."""
    figures: tuple[str, ...] = ()
    """Figures that the two rows are compared by, of those in `walt_pl.paper.compare.MARGINS`."""

    def __post_init__(self) -> None:
        if not self.trainings and not self.adopts:
            raise ValueError(f"row {self.name}: a row trains a stage or adopts one")
        if self.expected not in (-1, 0, 1) or bool(self.against) != bool(self.figures):
            raise ValueError(f"row {self.name}: expected is -1, 0 or 1, and a comparison has figures")

    @property
    def folder(self) -> str:
        """Name of the folder of its table."""
        return self.table.replace(" ", "_")

    @property
    def has_own_autoencoder(self) -> bool:
        """Return true where it trains the stage `vae` itself."""
        return any(training.stage == "vae" for training in self.trainings)

    @property
    def sources(self) -> tuple[str, ...]:
        """Rows that have to be measured before it, of the same seed."""
        names = [name for name, _ in self.adopts]
        names += [name for training in self.trainings for name in (training.time_of, training.pace_of)]
        return tuple(dict.fromkeys(name for name in names if name))


def find_row(name: str, rows: Sequence[Row]) -> Row:
    """Return the row of a name.

    Raises:
        ValueError: there is none.
    """
    for row in rows:
        if row.name == name:
            return row
    raise ValueError(f"paper: there is no row {name}; there are: {', '.join(row.name for row in rows)}")
