"""Report which clips and images of an index an experiment uses, for ``walt index --config``."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from datamodules.joint import JointData
from walt_pl.cli.experiment_data import data_of
from walt_pl.data.batch import Kind
from walt_pl.data.selection import Selection
from walt_pl.indexing import doctor


def prepare_report(path: Path, config: Path, overrides: Sequence[str] = ()) -> Callable[[], None]:
    """Return a function that reports the clips and images of an index that an experiment uses.

    Args:
        path: the index.
        config: experiments/EXP/STAGE.yaml.
        overrides: options and values of keys that differ from the config, as fit takes them.
    """
    name = f"{config.resolve().parent.name}-{config.stem}"
    return partial(_report_use, path, name, data_of(config, path, overrides))


def _report_use(path: Path, name: str, data: JointData) -> None:
    selections: dict[str, dict[Kind, Selection]] = {}
    problems: list[str] = []
    for kind, pattern in (data.shards or {}).items():
        print(f"train: {kind}s are streamed from {pattern} (data.shards), not read from this index")
    for split in [*(["train"] if data.shards is None else []), *(["val"] if data.val_videos else [])]:
        try:
            selections[split] = data.choice(split)
            print("\n".join(data.describe(split)))
            data.selection(split)
        except ValueError as error:  # of the whole split: it is said once, and each clip keeps its own reason
            problems.append(str(error).partition("\n")[0].rstrip(":"))  # its counts are printed above
    print(f"every clip and image: {doctor.write_use(path, name, selections, data.buckets)}")
    if problems:
        raise ValueError("\n".join(["training would stop with:", *problems]))
