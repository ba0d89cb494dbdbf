"""Report which clips and images of an index an experiment uses, for ``walt index --config``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from datamodules.joint import JointData
from walt_pl.cli.experiment_data import data_of
from walt_pl.data.batch import Kind
from walt_pl.data.selection import Selection
from walt_pl.indexing import doctor


def prepare_report(path: Path, config: Path) -> Callable[[], None]:
    """Return a function that reports the clips and images of an index that an experiment uses."""
    name = f"{config.resolve().parent.name}-{config.stem}"
    return partial(_report_use, path, name, data_of(config, path))


def _report_use(path: Path, name: str, data: JointData) -> None:
    selections: dict[str, dict[Kind, Selection]] = {}
    problems: list[str] = []
    for split in ["train", "val"] if data.val_videos else ["train"]:
        try:
            selections[split] = data.choice(split)
            data.selection(split)  # its error has the description
            print("\n".join(data.describe(split)))
        except ValueError as error:
            problems.append(str(error))
    print(f"every clip and image: {doctor.write_use(path, name, selections, data.buckets)}")
    if problems:
        raise ValueError("\n".join(["training would stop with:", *problems]))
