"""Sources that can be indexed: folders, tables, known data sets and tar shards. docs/DATA.md shows each layout as a tree.

A source is listed without decoding. `walt_pl.indexing.build_index` examines the listed files.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from walt_pl.data.caption_values import read_captions
from walt_pl.data.tar_members import MAX_TEXT_BYTES
from walt_pl.indexing.class_folders import hint_class_folders
from walt_pl.indexing.listing import SPLITS, SourceItem, SourceLayout, SourceListing, is_name, note_unread, read_text, sift, split_of
from walt_pl.indexing.matching_names import TextsByName, describe_loose, describe_two, describe_untold
from walt_pl.indexing.shard_names import is_pattern
from walt_pl.indexing.tables import list_table, read_rows
from walt_pl.indexing.tar_shards import list_shards
from walt_pl.media.extensions import NOT_READ, ending_of, kind_of
from walt_pl.plain_text import split_lines


def list_source(source: str, layout: SourceLayout = "auto", root: str | None = None, fold: int = 1, workers: int = 1) -> SourceListing:
    """List the items of a source.

    Args:
        source: A folder, a CSV or JSONL file, a tar shard, or a pattern of shards ("train-{000..099}.tar", "train-*.tar").
        layout: Layout of the source; "auto" detects it, see `layout_of`.
        root: Folder that paths in a table are relative to; the table's own folder if not set.
        fold: Number of one of UCF-101's three official splits.
        workers: Processes that read shards.

    Raises:
        ValueError: The source is missing, is not of this layout, has a wrong row (the message names it), or holds nothing.
    """
    detected = layout == "auto"
    if detected:
        layout = layout_of(source)
    readers: dict[str, Callable[[], SourceListing]] = {
        "folder": lambda: _folder(Path(source)),
        "table": lambda: list_table(Path(source), Path(root or Path(source).parent)),
        "ucf101": lambda: _ucf101(Path(source), fold),
        "kinetics": lambda: _kinetics(Path(source), root),
        "classes": lambda: _classes(Path(source)),
        "webdataset": lambda: list_shards(source, workers),
    }
    if layout not in readers:
        raise ValueError(f"layout must be one of {', '.join(get_args(SourceLayout))}, got {layout}")
    listing = readers[layout]()
    listing.items, findings = sift(listing.items)
    listing.notes += findings
    listing.classes = [name for name in listing.classes if is_name(name)]
    if detected and layout == "folder":
        listing.notes += hint_class_folders(Path(source), listing.items)
    if not listing.items:
        raise ValueError("\n  ".join([f"{source}: no video or image in it, read as layout {layout}", *listing.notes]))
    return listing


def layout_of(source: str) -> SourceLayout:
    """Detect the layout of a source.

    Raises:
        ValueError: There is no such source, or it is a file of another type.
    """
    path = Path(source)
    if path.suffix == ".tar" or is_pattern(source):
        return "webdataset"
    if path.is_file():
        if path.suffix.lower() not in (".csv", ".jsonl"):
            raise ValueError(f"{source}: wanted a folder, a .csv, a .jsonl or a .tar, found a file {path.suffix or 'without an ending'}")
        return "kinetics" if _is_kinetics(path) else "table"
    if not path.is_dir():
        raise ValueError(f"{source}: no such folder or file; name a folder, a .csv, a .jsonl or tar shards (or shapes, the embedded set)")
    if _ucf101_lists(path) is not None:
        return "ucf101"
    if any(path.glob("*.tar")):
        return "webdataset"
    if any(_is_kinetics(table) for table in _tables(path)):
        return "kinetics"
    synsets = [folder for part in (path, *_folders(path)) for folder in _folders(part) if re.fullmatch(r"n\d{8}", folder.name)]
    return "classes" if synsets else "folder"


# ---- Files and folders -----------------------------------------------------------------------------------------------


def _folder(source: Path) -> SourceListing:
    """List every video and image below a folder. A text of equal name beside it holds the caption, see `TextsByName`."""
    if not source.is_dir():
        raise ValueError(f"{source}: layout folder wants a folder")
    files, others = _media(source)
    items = []
    texts = TextsByName[Path]()
    for other in others:
        if other.suffix.lower() == ".txt":
            texts.add(str(other.with_suffix("")), other)
    for file in files:
        caption, findings = _caption(texts.find(str(file.with_suffix(""))), source)
        split = split_of(file.relative_to(source).parts[:-1])
        items.append(SourceItem(str(file), _kind(file), caption, split=split, findings=findings))
    loose = texts.leave(str(file.with_suffix("")) for file in files)
    left_out = _left_out(path for path in others if path.suffix.lower() != ".txt")
    return SourceListing("folder", items, [*left_out, *describe_loose([str(text) for text in loose]), *describe_untold(items)])


def _caption(texts: Sequence[Path], source: Path) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the caption in the text of a file, and the finding that says why it cannot be used."""
    if len(texts) > 1:
        return "", (("caption", describe_two([text.name for text in texts])),)
    try:
        captions = read_captions(read_text(texts[0], source, MAX_TEXT_BYTES)) if texts else ()
        return captions[0] if captions else "", ()
    except (ValueError, OSError) as error:
        return "", (("caption", str(error)),)


def _classes(source: Path) -> SourceListing:
    """List [split/]CLASS/files: the folder that holds a file is its class."""
    names = _synset_names(source)
    files, others = _media(source)
    items, loose = [], []
    for file in files:
        folders = file.relative_to(source).parts[:-1]
        split = split_of(folders[:1])
        inner = folders[1:] if split else folders
        if not inner:
            loose.append(file)
            continue
        name = inner[0]
        items.append(SourceItem(str(file), _kind(file), names.get(name, "" if names else _words(name)), name, split))
    notes = _left_out(others)
    if loose:
        notes.append(f"{len(loose)} files lie in no class folder and are left out, the first: {loose[0]}")
    return SourceListing("classes", items, notes)


def _synset_names(source: Path) -> dict[str, str]:
    """Return ImageNet's names of its folders, first synonym, from LOC_synset_mapping.txt ("n01440764 tench, Tinca tinca")."""
    mapping = source / "LOC_synset_mapping.txt"
    if not mapping.is_file():
        return {}
    lines = (line.split(" ", 1) for line in split_lines(read_text(mapping, source)) if " " in line)
    return {synset: names.split(",")[0].strip() for synset, names in lines}


def _media(source: Path) -> tuple[list[Path], set[Path]]:
    """Return videos and images below a folder, sorted, and the other files."""
    media, others = [], set[Path]()
    for path in _walk(source):
        if kind_of(path.name):
            media.append(path)
        else:
            others.add(path)
    return sorted(media), others


def _walk(source: Path) -> Iterator[Path]:
    """Yield files below a folder, without hidden ones. Links are followed, each folder once.

    All other entries come as files, also a pipe or a link to itself. A folder that cannot be read is empty.
    """
    seen: set[tuple[int, int]] = set()
    folders = [source]
    while folders:
        folder = folders.pop()
        try:
            state = folder.stat()
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            found = list(os.scandir(folder))
        except OSError as error:
            warnings.warn(f"{str(folder)[:200]} is left out: {error}", stacklevel=2)
            continue
        for entry in found:
            if not entry.name.startswith("."):
                path = Path(entry.path)
                if os.path.isdir(path):  # others raise at a link to itself, and at a path that is too long
                    folders.append(path)
                else:
                    yield path


def _folders(path: Path) -> list[Path]:
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _left_out(paths: Iterable[Path]) -> list[str]:
    unread, others = Counter[str](), Counter[str]()
    for path in paths:
        if (ending := ending_of(path.name)) in NOT_READ:
            unread[ending] += 1
        else:
            others[path.suffix.lower() or "without an ending"] += 1
    shown = ", ".join(f"{count} {name}" for name, count in others.most_common(8))
    return [*([f"left out, neither video nor image: {shown}"] if shown else []), *note_unread(unread)]


def _kind(file: Path) -> str:
    kind = kind_of(file.name)
    assert kind is not None
    return kind


def _words(name: str) -> str:
    """Return a class name in words: "ApplyEyeMakeup" and "apply_eye_makeup" become "apply eye makeup"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower().strip()


# ---- Known data sets -------------------------------------------------------------------------------------------------


def _ucf101_lists(source: Path) -> Path | None:
    """Return the folder of UCF-101's official split files, or None."""
    places = (source, source / "ucfTrainTestlist", source / "UCF101TrainTestSplits-RecognitionTask" / "ucfTrainTestlist")
    return next((place for place in places if (place / "trainlist01.txt").is_file()), None)


def _ucf101(source: Path, fold: int) -> SourceListing:
    """List v_CLASS_gGG_cCC.avi below the source, with the official lists of one fold."""
    lists = _ucf101_lists(source)
    if lists is None:
        raise ValueError(f"{source}: no ucfTrainTestlist/trainlist01.txt in it; unpack UCF101TrainTestSplits-RecognitionTask.zip there")
    if not 1 <= fold <= 3:
        raise ValueError(f"fold must be 1, 2 or 3, got {fold}")
    files = {file.name: file for file in _media(source)[0]}
    folder = next((file.parent.parent for file in files.values()), source)
    items, missing, strange = [], 0, list[str]()
    for split in ("train", "test"):
        for line in split_lines(read_text(lists / f"{split}list{fold:02d}.txt", source)):
            listed = line.split()[0] if line.strip() else ""  # the train lists have a class number after the name
            if not listed:
                continue
            if kind_of(listed) != "video" or listed.startswith("/") or ".." in listed.split("/"):
                strange.append(listed)
                continue
            action, _, name = listed.rpartition("/")
            missing += name not in files
            file = files.pop(name, folder / listed)
            items.append(SourceItem(str(file), "video", _words(action), action, split, family=name.rpartition("_")[0]))
    notes = [f"{missing} of {len(items)} clips of fold {fold} are not there"] if missing else []
    if strange:
        notes.append(f"{len(strange)} lines of the lists name no clip below the folder and are left out, the first: {strange[0][:200]!a}")
    if files:
        notes.append(f"{len(files)} files are in neither list of fold {fold} and are left out, the first: {min(files)}")
    numbers = lists / "classInd.txt"
    classes = [line.split()[1] for line in split_lines(read_text(numbers, source)) if len(line.split()) > 1] if numbers.is_file() else []
    return SourceListing("ucf101", items, notes, classes or sorted({str(item.label) for item in items}))


def _tables(source: Path) -> list[Path]:
    return sorted([*source.glob("*.csv"), *source.glob("annotations/*.csv")])


def _is_kinetics(path: Path) -> bool:
    if path.suffix.lower() != ".csv":
        return False
    if not path.is_file():  # a pipe would wait for ever
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return {"youtube_id", "time_start", "time_end"} <= {name.strip() for name in file.readline(MAX_TEXT_BYTES).strip().split(",")}


def _kinetics(source: Path, root: str | None) -> SourceListing:
    """List clips named ID_000010_000020.mp4 anywhere below the source (or `root`), with the CSVs of the data set."""
    tables = [source] if source.is_file() else [table for table in _tables(source) if _is_kinetics(table)]
    if not tables:
        raise ValueError(f"{source}: no CSV with the columns label, youtube_id, time_start, time_end in it or in its annotations/")
    folder = Path(root) if root else source.parent if source.is_file() else source
    files = {file.stem: file for file in _media(folder)[0]}
    items, names, seen, dead = [], set[str](), set[str](), 0
    left_out: list[str] = []
    for table in tables:
        for number, row in read_rows(table, left_out):
            stem = _kinetics_stem(row, f"{table}:{number}")
            if stem in seen:  # a table of all splits may lie beside the tables of each split
                continue
            seen.add(stem)
            name = row.get("label", "")
            names |= {name} if name else set()
            file = files.pop(stem, None)
            if file is None:
                dead += 1
                continue
            split = SPLITS.get(row.get("split", "").lower(), "") or split_of([table.stem])
            items.append(SourceItem(str(file), "video", _words(name), name or -1, split, family=row["youtube_id"]))
    notes = [f"{dead} of {len(seen)} clips of {', '.join(table.name for table in tables)} are not there"] if dead else []
    if left_out:
        notes.append(f"{len(left_out):,} rows are left out, the first: {left_out[0][:400]}")
    if files:
        notes.append(f"{len(files)} files are in no CSV and are left out, the first: {min(files.values())}")
    return SourceListing("kinetics", items, notes, sorted(names))


def _kinetics_stem(row: Mapping[str, str], where: str) -> str:
    try:
        return f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
    except (KeyError, ValueError, OverflowError) as error:
        found = str(dict(row))[:400]
        raise ValueError(f"{where}: wanted youtube_id, time_start and time_end (seconds), found {found}") from error
