"""Start an experiment on one's own data: ``walt new NAME --videos DIR``."""

import contextlib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from walt_pl.cli.console import print_table
from walt_pl.cli.function_command import call
from walt_pl.files import rename_whole, write_whole
from walt_pl.lock import hold_lock, lock_beside
from walt_pl.removal import remove_own
from walt_pl.runs.experiment_files import EXPERIMENTS, find_experiment, is_installed
from walt_pl.terminal_text import printable

if TYPE_CHECKING:
    from walt_pl.cli.new_choices import Choices
    from walt_pl.cli.new_files import Experiment
    from walt_pl.indexing.listing import SourceListing

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
OWN_FILES = (r"(data|vae|base|sr\d+)\.yaml",)
CLASS_LAYOUTS = ("classes", "ucf101", "kinetics")
"""Layouts whose captions are only the names of classes."""


def new(name: str, videos: str = "", captions: str | None = None, val: float | None = None) -> None:
    """Look at a data set, and write an experiment with sizes that fit it: an index, and the configuration of each stage.

    Args:
        name: name of the experiment: the files are data/NAME.parquet and experiments/NAME/.
        videos: folder of videos, images or both. a.txt is the caption of a.mp4, and folders of classes give labels (docs/DATA.md).
        captions: .csv or .jsonl with path and caption of every file, relative to the folder.
        val: share of the training files that is held out for validation, from 0 to 1; chosen by their number when not given.
    """
    experiment, index = EXPERIMENTS / name, Path("data") / f"{name}.parquet"
    _check_options(name, videos, captions)
    with _remove_new_folders(EXPERIMENTS, index.parent):
        EXPERIMENTS.mkdir(exist_ok=True)
        with hold_lock(lock_beside(experiment), wait=0):
            _check_free(name, experiment, index)
            _start(name, videos, captions, val, experiment, index)


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt new`."""
    call(new, words)


def _start(name: str, videos: str, captions: str | None, val: float | None, experiment: Path, index: Path) -> None:
    """Index the files, choose the sizes, and write and check the configurations."""
    # Imported here: the help of this command must not import torch.
    from walt_pl.cli.new_costs import plan_stages, render_costs
    from walt_pl.cli.new_files import Experiment, stage_files

    listing = _list(videos, captions)
    typed = f"--videos {shlex.quote(videos)}" + (f" --captions {shlex.quote(captions)}" if captions else "")
    source = shlex.quote(captions or videos) + (f" --root {shlex.quote(videos)}" if captions else "")
    layout = f" --layout {listing.layout}" if listing.layout == "classes" else ""
    with _remove_on_failure(index, experiment):
        share = _choose_share(listing) if val is None else val
        choices = _index_and_choose(listing, index, share, videos)
        command = f"walt index {source}{layout} --out {index}" + (f" --val {share:g}" if share else "")
        about = Experiment(name, typed, str(index), command, not is_installed())
        files = stage_files(about, choices)
        draft = experiment.with_name(f".{name}.new")
        remove_own(draft, OWN_FILES)
        draft.mkdir()
        try:
            for file, text in files.items():
                write_whole(draft / file, text.encode())
            stages = [file for file in files if file != "data.yaml"]
            plans = plan_stages([draft / file for file in stages], Path("runs") / name)
            lines = _check_data(draft / "base.yaml", index, choices)
            rename_whole(draft, experiment)
        finally:
            remove_own(draft, OWN_FILES)
    print(printable("\n".join([*lines, "", *(f"- {reason}" for reason in choices.reasons), ""])))
    print(f"written: {', '.join(str(experiment / file) for file in files)}\n")
    print_table(render_costs(plans))
    print(_describe_commands(about, choices, stages))


# ---- Checks ----------------------------------------------------------------------------------------------------------


def _check_options(name: str, videos: str, captions: str | None) -> None:
    """Check the options before anything is written.

    Raises:
        ValueError: one is missing or names nothing.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"new: found the name {name[:200]!a}, wanted one of letters, digits, _ and -, such as: walt new mine --videos DIR")
    if not videos:
        raise ValueError(f"new: which files? type: walt new {name} --videos DIR")
    if not Path(videos).is_dir():
        raise ValueError(f"new: --videos {videos}: there is no such folder; name the one that holds the videos or images")
    if captions is not None and Path(captions).suffix.lower() not in (".csv", ".jsonl"):
        raise ValueError(f"new: --captions {captions}: wanted a .csv or .jsonl with path and caption (docs/DATA.md)")
    if captions is not None and not Path(captions).is_file():
        raise ValueError(f"new: --captions {captions}: there is no such file")


def _check_free(name: str, experiment: Path, index: Path) -> None:
    """Check that nothing has the names of the files to write.

    Raises:
        ValueError: something has.
    """
    taken = [path for path in (find_experiment(experiment), index, Path("runs") / name) if os.path.lexists(path)]
    if taken:
        raise ValueError(f"new: {taken[0]} exists already; move it away, or give another name: walt new {name}-2 --videos DIR")


def _check_data(config: Path, index: Path, choices: "Choices") -> list[str]:
    """Check that training finds its clips, and return their counts in words.

    Raises:
        ValueError: a split cannot be used.
    """
    # It imports Lightning, which the help does not need.
    from walt_pl.cli.experiment_data import data_of

    data, splits = data_of(config, index), ["train", *(["val"] if choices.val_videos else [])]
    for split in splits:
        data.selection(split)
    return [line for split in splits for line in data.describe(split)]


# ---- Data ------------------------------------------------------------------------------------------------------------


def _list(videos: str, captions: str | None) -> "SourceListing":
    """List the files, by folders of classes if the folders look like those.

    Raises:
        ValueError: there is none, or the captions and the files differ.
    """
    from walt_pl.indexing.class_folders import hint_class_folders
    from walt_pl.indexing.dataset_layouts import list_source

    folder = list_source(videos, workers=os.cpu_count() or 1)
    if captions is None:
        by_class = folder.layout == "folder" and hint_class_folders(Path(videos), folder.items)
        return list_source(videos, "classes") if by_class else folder
    listing = list_source(captions, "table", root=videos)
    named, there = ({os.path.normpath(item.file): item for item in found.items} for found in (listing, folder))
    absent = [path for path in named if not os.path.exists(path)]
    if absent:
        raise ValueError(
            f"{captions}: {len(absent):,} of {len(named):,} files are not there, the first: {absent[0]}; correct or remove them"
        )
    lacking = [path for path in there if path not in named]
    if lacking:
        raise ValueError(
            f"{captions}: {len(lacking):,} of {len(there):,} files of {videos} have no row, the first: {lacking[0]}; add their rows, or "
            "move these files away"
        )
    if not any(item.caption for item in listing.items):
        raise ValueError(f"{captions}: no row has a caption; name the column caption, or leave out --captions")
    return listing


def _choose_share(listing: "SourceListing") -> float:
    """Return the share to hold out: some dozens of files of a large set, a tenth of a small one, none where the source has a split val."""
    count = len(listing.items)
    if any(item.split == "val" for item in listing.items) or count < 10:
        return 0.0
    return 0.1 if count < 500 else 0.05 if count < 2000 else 0.02


def _index_and_choose(listing: "SourceListing", index: Path, val: float, source: str) -> "Choices":
    """Write the index, print what it holds, and return the sizes that fit it.

    Raises:
        ValueError: nothing of it can be used.
    """
    from walt_pl.cli.new_choices import choose
    from walt_pl.data.index import class_names
    from walt_pl.indexing import doctor, summary
    from walt_pl.indexing.build_index import IndexOptions, build_index
    from walt_pl.indexing.usable_media import read_usable

    built = build_index(listing, index, IndexOptions(val=val, workers=os.cpu_count() or 1))
    print_table(doctor.render_build(built, listing, index))
    print_table(summary.render_summary(index))
    try:
        return choose(read_usable(index), listing.layout in CLASS_LAYOUTS, len(class_names(index)))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


# ---- Output ----------------------------------------------------------------------------------------------------------


def _describe_commands(about: "Experiment", choices: "Choices", stages: Sequence[str]) -> str:
    """Return the commands that train the experiment, and those that try it in minutes."""
    given = {"text": '--prompt "..."', "class": "--label 0", "unconditional": '--prompt ""'}[choices.task]
    short = "--trainer.max_steps 20 --model.warmup_steps 5"
    less = "--data.videos_per_batch 2" if choices.videos else "--data.image_stacks_per_batch 8"
    cached = f"{short} {less} --data.cache_clips 8 --data.views 1"
    name = about.name
    has_sr = choices.scale.doublings > 0
    if about.has_make:
        targets = "train-base train-sr" if has_sr else "train-base"
        trial = [f'make train-vae EXP={name} RUN=runs/{name}-try ARGS="{short} {less}"']
        trial += [f'make {targets} EXP={name} RUN=runs/{name}-try ARGS="{cached}"']
        whole = [f"make train-vae {targets} EXP={name}", f"make sample EXP={name} ARGS='{given}'"]
    else:
        words = {"vae": f"{short} {less}"}
        fits = [f"walt fit --config experiments/{name}/{stage}" for stage in stages]
        trial = [f"{fit} --run runs/{name}-try {words.get(Path(fit).stem, cached)}" for fit in fits]
        whole = [*fits, f"walt sample --run runs/{name} {given}"]
    costs = [about.plan(stage.removesuffix(".yaml")) for stage in stages[:2]]
    parts = {
        "try every stage in minutes, on a laptop, too, in a run of its own": trial,
        "train, one stage after another; the same command goes on after an interruption": whole,
        "know the cost after changing a key": costs,
    }
    return "".join(f"\n{title}:\n" + "".join(f"  {line}\n" for line in lines) for title, lines in parts.items())


# ---- Leaving nothing half-written ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _remove_on_failure(index: Path, experiment: Path) -> Iterator[None]:
    """Remove the files of an index that this command made, if it fails or is interrupted before the experiment has its name.

    After Ctrl-C the hidden journal of decoded files stays: with it, the same command goes on.
    """
    # Imported here: the help of this command must not import torch.
    from walt_pl.indexing.build_index import INDEX_ENDINGS, journal_of

    own = [path for path in (index.with_suffix(ending) for ending in INDEX_ENDINGS) if not os.path.lexists(path)]
    journal = journal_of(index)
    try:
        yield
    except BaseException as error:
        if not experiment.exists():
            for path in [*own, *([] if isinstance(error, KeyboardInterrupt) else [journal])]:
                path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _remove_new_folders(*folders: Path) -> Iterator[None]:
    """Remove the folders at the end that did not exist before and are empty."""
    fresh = [folder for folder in folders if not folder.exists()]
    try:
        yield
    finally:
        for folder in fresh:
            with contextlib.suppress(OSError):  # it holds the experiment or the index
                folder.rmdir()
