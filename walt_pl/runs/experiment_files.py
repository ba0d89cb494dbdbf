"""Find the files of experiments: those of the current folder first, then those that are installed with the program."""

import os
from pathlib import Path, PurePosixPath

EXPERIMENTS = Path("experiments")
"""Folder of the experiments, relative to the current folder."""


PACKAGE = Path(__file__).parents[1]


def is_installed() -> bool:
    """Return whether the program was installed from a wheel. Otherwise it runs from a checkout."""
    return (PACKAGE / EXPERIMENTS).is_dir()


def has_make() -> bool:
    """Return whether make trains stages here: the current folder has the Makefile of the checkout that the program runs from."""
    own, here = PACKAGE.parent / "Makefile", Path("Makefile")
    return not is_installed() and own.is_file() and here.is_file() and here.samefile(own)


def packaged_experiments() -> Path:
    """Return the folder of the experiments that came with the program: inside the package, or beside it in a checkout."""
    return (PACKAGE if is_installed() else PACKAGE.parent) / EXPERIMENTS


def find_experiment(path: Path) -> Path:
    """Return where a file or folder of an experiment is.

    Args:
        path: as a user typed it.

    Returns:
        The path itself, unless it is a missing one below experiments/ that came with the program: then its installed counterpart.
    """
    if path.exists() or path.is_absolute():
        return path
    # A config may extend `../common/base.yaml`; the folder in front of `..` need not exist in the current folder.
    plain = Path(os.path.normpath(path))
    if plain.parts[:1] != EXPERIMENTS.parts:
        return path
    packaged = packaged_experiments() / plain.relative_to(EXPERIMENTS)
    return packaged if packaged.exists() else path


def as_typed(path: Path) -> Path:
    """Return the path that a user types for an installed file or folder, the inverse of `find_experiment`; other paths stay as they are."""
    packaged = packaged_experiments()
    if not path.is_relative_to(packaged):
        return path
    typed = EXPERIMENTS / path.relative_to(packaged)
    return typed if find_experiment(typed).resolve() == path.resolve() else path


def is_recorded_experiment(name: str) -> bool:
    """Return whether a name is a folder below experiments/, as a manifest keeps it. A stranger's manifest leads to no other folder."""
    path = PurePosixPath(name)
    is_short = len(name) < 1000 and all(len(os.fsencode(part)) < 256 for part in path.parts)  # longer ones are errors of the system
    return is_short and path.parts[:1] == EXPERIMENTS.parts and len(path.parts) > 1 and ".." not in path.parts


def record_experiment(folder: Path) -> str | None:
    """Return the name of an experiment's folder for the manifest; None for a folder elsewhere, which other machines do not have."""
    name = Path(os.path.relpath(as_typed(folder))).as_posix()
    return name if is_recorded_experiment(name) else None
