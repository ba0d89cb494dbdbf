"""Build and check a data index: ``walt index SOURCE``."""

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from walt_pl.cli.console import print_table
from walt_pl.cli.function_command import call
from walt_pl.indexing.listing import SourceLayout
from walt_pl.media.max_pixels import MAX_PIXELS

_OF_A_SOURCE = ("layout", "root", "split", "val", "fold", "allow_moves")
"""Options that say how the entries of a source are listed."""
_OF_SHAPES = ("videos", "images", "validation", "seed", "aspect")


def index(
    source: str,
    out: str | None = None,
    layout: SourceLayout = "auto",
    root: str | None = None,
    split: str = "",
    val: float = 0.0,
    fold: int = 1,
    workers: int = 0,
    seconds: float = 60.0,
    max_pixels: int = MAX_PIXELS,
    allow_moves: bool = False,
    report: bool = False,
    config: str | None = None,
    videos: int = 2000,
    images: int = 1000,
    validation: int = 300,
    seed: int = 0,
    aspect: float = 1.0,
    *,
    overrides: Sequence[str] = (),
) -> None:
    """List a data set in an index, examine its files, and report on them. Typed again, it adds new files and resumes where it stopped.

    Args:
        source: folder, .csv, .jsonl, tar shards ("train-{000..099}.tar"), an index (.parquet) alone, or shapes, the embedded set.
        out: path of the index; data/NAME.parquet when not given. For shapes the folder of the set; the index is index.parquet in it.
        layout: layout of the source (docs/DATA.md); auto detects it.
        root: folder that the paths of a table are relative to; the folder of the table when not given.
        split: split of entries for which the source names none; train when empty.
        val: share of the training split that is held out as val, from 0 to 1.
        fold: number of UCF-101's official split, 1 to 3.
        workers: number of processes that decode; the number of processors when 0.
        seconds: processor time without a new frame after which a file hangs; more than before examines what hung or crashed again.
        max_pixels: largest rows x columns of an image or of a frame; larger ones are not decoded (data.max_pixels is that of training).
        allow_moves: let clips that the index has go to another split, as another val, split or fold asks.
        report: run the doctor: decode every file again, and list files that are broken, copied, short, of variable rate or without words.
        config: experiments/EXP/STAGE.yaml: also list the clips that it uses, their buckets, and why the others are not used. Keys are
            changed as for fit: --data.image_stacks_per_batch 0.
        videos: number of training videos of shapes.
        images: number of training images of shapes.
        validation: number of validation videos of shapes.
        seed: seed of the pictures of shapes.
        aspect: columns per row of shapes' pictures, 1 or more; 1.75 paints 128 x 224 pixels. Name a folder of its own with --out.
        overrides: options and values of keys of the config.
    """
    _check_options(source, out, locals())
    # Imported here: the help of this command must not import torch.
    from walt_pl.indexing import doctor, summary
    from walt_pl.indexing.build_index import IndexOptions, build_index
    from walt_pl.indexing.dataset_layouts import list_source
    from walt_pl.shapes.dataset import write_set

    _check_overrides(overrides, config)
    options = IndexOptions(report, split, val, workers or os.cpu_count() or 1, seconds, max_pixels, allow_moves)
    if source == "shapes":
        path = write_set(Path(out or "data/shapes"), videos, images, validation, seed, aspect)
        if not report and config is None:
            print(path)
            return
        listing = None
    elif source.endswith(".parquet"):
        path, listing = Path(source), None
        if not path.is_file():
            raise ValueError(f"{path}: no such index; name a source to make it of, and --out {path}")
    else:
        name = re.split(r"[.{*?]", Path(source).resolve().name)[0].rstrip("-_")
        path = Path(out or f"data/{name or 'index'}.parquet")
        listing = list_source(source, layout, root, fold, options.workers)
    report_use = None
    if config is not None:
        # It imports Lightning, which an index without a config does not need.
        from walt_pl.cli.index_report import prepare_report

        # Errors of a config are raised before the long work.
        report_use = prepare_report(path, Path(config), overrides)
    built = build_index(listing, path, options)
    print_table(doctor.render_build(built, listing, path))
    print_table(summary.render_summary(path))
    if report:
        findings = doctor.diagnose(path, options, built.changed)
        print_table(doctor.render_findings(findings, path))
        if conversion := doctor.render_conversion(findings, path):
            print_table(conversion)
        print(f"every finding: {doctor.write_report(findings, path)}")
    if report_use is not None:
        report_use()


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt index`."""
    own, overrides = _split_overrides(words)
    call(index, own, overrides=overrides)


def _split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of this command, and those that change keys of the config: options with a dot, such as --data.fps 8."""
    own: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for word in words:
        is_option = word.startswith("--")
        is_key = is_option and "." in word.partition("=")[0]
        (overrides if is_key or (takes_value and not is_option) else own).append(word)
        takes_value = is_key and "=" not in word
    return own, overrides


def _check_options(source: str, out: str | None, given: Mapping[str, object]) -> None:
    """Check that every option has an effect on this source. A value that equals the default counts as not given.

    Raises:
        ValueError: one has none.
    """
    defaults = inspect.signature(index).parameters
    changed = {name: f"--{name.replace('_', '-')}" for name in (*_OF_A_SOURCE, *_OF_SHAPES) if given[name] != defaults[name].default}
    wrong = ", ".join(changed[name] for name in changed if name in _OF_SHAPES)
    if wrong and source != "shapes":
        raise ValueError(f"index: {wrong}: only for shapes, the embedded set; leave it out, or type: walt index shapes {wrong} ...")
    is_index = source.endswith(".parquet")
    wrong = ", ".join(changed[name] for name in changed if name in _OF_A_SOURCE)
    if wrong and (is_index or source == "shapes"):
        found = f"{source} is an index, whose rows stay as they are" if is_index else "shapes has its own splits"
        wanted = f"walt index SOURCE --out {source if is_index else 'data/NAME.parquet'} {wrong} ..."
        raise ValueError(f"index: {wrong}: only with a source of files ({found}); leave it out, or type: {wanted}")
    if is_index and out is not None and Path(out) != Path(source):
        raise ValueError(f"index: {source} is an index, which stays where it is: leave out --out {out}, or name a source in its place")


def _check_overrides(overrides: Sequence[str], config: str | None) -> None:
    """Check that keys are changed of a config, and not that of the index itself.

    Raises:
        ValueError: there is no config, or data.index is changed.
    """
    keys = [word.partition("=")[0] for word in overrides if word.startswith("--")]
    if keys and config is None:
        raise ValueError(f"index: {keys[0]} changes a key of an experiment: give --config experiments/EXP/STAGE.yaml as well")
    if "--data.index" in keys:
        raise ValueError("index: --data.index is the index that this command reads or writes: leave it out, and name that one")
