"""What there is to index: folders, tables, the layouts of known data sets, and tar shards. docs/DATA.md describes each with its tree.

A source is listed without decoding anything; `walt_pl.indexing.build_index` examines what is listed.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from walt_pl.indexing.isolated_pool import Lost, run_apart

Layout = Literal["auto", "folder", "table", "ucf101", "kinetics", "classes", "webdataset"]

VIDEOS = frozenset(["mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "m2v", "ts", "m2ts", "wmv", "flv", "ogv", "3gp"])
IMAGES = frozenset(["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"])
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SHARD_SECONDS = 3600.0  # to list one shard: a large one on a slow network disk


@dataclass(frozen=True, slots=True)
class Item:
    """One row to be: where a clip or image is, and what its source says of it."""

    file: str
    """Path of the file, or of the tar shard that holds it."""
    kind: str
    """"video" or "image"."""
    caption: str = ""
    """What it shows, "" where the source does not say."""
    label: int | str = -1
    """Class, by number or by name; -1 where the source does not say."""
    split: str = ""
    """Part of the data set, "" where the source does not say."""
    offset: int = -1
    """Where the member's bytes begin in the shard; -1: `file` is the file itself."""
    bytes: int = -1
    """Size of the member; -1: `file` is the file itself."""
    begin: float = 0.0
    """Second of the file at which the clip begins."""
    end: float = 0.0
    """Second before which it ends; 0: with the file."""
    family: str = ""
    """Clips of one family (cut from one film) are held out together; "": of its own."""


@dataclass
class Listing:
    """Everything that a source lists."""

    layout: Layout
    items: list[Item]
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""
    classes: list[str] = field(default_factory=list)
    """Names of classes in the order of their official numbers, where the source has one."""


def list_source(source: str, layout: Layout = "auto", root: str | None = None, fold: int = 1, workers: int = 1) -> Listing:
    """List what a source holds.

    Args:
        source: A folder, a CSV or JSONL file, a tar shard, or a pattern of shards ("train-{000..099}.tar", "train-*.tar").
        layout: How the source is laid out; "auto" looks, see `layout_of`.
        root: Folder that paths in a table are relative to; the table's own where not given.
        fold: Which of UCF-101's three official splits.
        workers: Processes that read shards.

    Raises:
        ValueError: The source is not there, is not of this layout, has a wrong row (says which), or holds nothing.
    """
    if layout == "auto":
        layout = layout_of(source)
    readers: dict[str, Callable[[], Listing]] = {
        "folder": lambda: _folder(Path(source)),
        "table": lambda: _table(Path(source), Path(root or Path(source).parent)),
        "ucf101": lambda: _ucf101(Path(source), fold),
        "kinetics": lambda: _kinetics(Path(source), root),
        "classes": lambda: _classes(Path(source)),
        "webdataset": lambda: _shards(source, workers),
    }
    if layout not in readers:
        raise ValueError(f"layout must be one of {', '.join(get_args(Layout))}, got {layout}")
    listing = readers[layout]()
    if not listing.items:
        raise ValueError("\n  ".join([f"{source}: no video or image in it, read as layout {layout}", *listing.notes]))
    return listing


def layout_of(source: str) -> Layout:
    """What a source looks like. Raises ValueError where there is nothing."""
    path = Path(source)
    if path.suffix == ".tar" or _is_pattern(source):
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


def kind_of(name: str) -> str | None:
    """ "video" or "image" by the ending of a file's name, None for others."""
    ending = name.rpartition(".")[2].lower()
    return "video" if ending in VIDEOS else "image" if ending in IMAGES else None


def _folder(source: Path) -> Listing:
    """Every video and image below a folder; a text file of the same name beside it holds the caption."""
    if not source.is_dir():
        raise ValueError(f"{source}: layout folder wants a folder")
    files, others = _media(source)
    items = []
    for file in files:
        text = file.with_suffix(".txt")
        caption = _text(text) if text in others else ""
        items.append(Item(str(file), _kind(file), caption, split=_split_of(file.relative_to(source).parts[:-1])))
    captions = {file.with_suffix(".txt") for file in files}
    return Listing("folder", items, _left_out(path for path in others if path not in captions))


def _classes(source: Path) -> Listing:
    """[split/]CLASS/files: the folder that a file lies in is its class."""
    names = _synset_names(source)
    files, others = _media(source)
    items, loose = [], []
    for file in files:
        folders = file.relative_to(source).parts[:-1]
        split = _split_of(folders[:1])
        inner = folders[1:] if split else folders
        if not inner:
            loose.append(file)
            continue
        name = inner[0]
        items.append(Item(str(file), _kind(file), names.get(name, "" if names else _words(name)), name, split))
    notes = _left_out(others)
    if loose:
        notes.append(f"{len(loose)} files lie in no class folder and are left out, the first: {loose[0]}")
    return Listing("classes", items, notes)


def _synset_names(source: Path) -> dict[str, str]:
    """ImageNet's names of its folders, first synonym, from LOC_synset_mapping.txt ("n01440764 tench, Tinca tinca")."""
    mapping = source / "LOC_synset_mapping.txt"
    if not mapping.is_file():
        return {}
    lines = (line.split(" ", 1) for line in _text(mapping).splitlines() if " " in line)
    return {synset: names.split(",")[0].strip() for synset, names in lines}


def _media(source: Path) -> tuple[list[Path], set[Path]]:
    """Videos and images below a folder, sorted, and the other files."""
    media, others = [], set[Path]()
    for path in _walk(source, set()):
        if kind_of(path.name):
            media.append(path)
        else:
            others.add(path)
    return sorted(media), others


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Files below a folder, without hidden ones; links are followed, each folder once."""
    state = folder.stat()
    if (state.st_dev, state.st_ino) in seen:
        return
    seen.add((state.st_dev, state.st_ino))
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), seen)
            else:
                yield Path(entry.path)


def _folders(path: Path) -> list[Path]:
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _left_out(paths: Iterable[Path]) -> list[str]:
    endings = Counter(path.suffix.lower() or "without an ending" for path in paths)
    return (
        [f"left out, neither video nor image: {', '.join(f'{count} {name}' for name, count in endings.most_common(8))}"] if endings else []
    )


def _kind(file: Path) -> str:
    kind = kind_of(file.name)
    assert kind is not None
    return kind


def _split_of(folders: Iterable[str]) -> str:
    """The split that the first folder of such a name says."""
    return next((_SPLITS[name.lower()] for name in folders if name.lower() in _SPLITS), "")


def _words(name: str) -> str:
    """ "ApplyEyeMakeup" and "apply_eye_makeup" as "apply eye makeup"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower().strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); save it as UTF-8") from error


# ---- Tables ----------------------------------------------------------------------------------------------------------


def _table(source: Path, root: Path) -> Listing:
    """A CSV or JSONL file with a row for each clip: path (or file_name), and if wanted caption (or text), label, split, kind.

    A row with `begin`, and if wanted `end` or `duration`, is a piece of a video.
    """
    items, ignored = [], set[str]()
    for number, row in _rows(source):
        where = f"{source}:{number}"
        path = row.pop("path", None) or row.pop("file_name", None)
        if not path:
            raise ValueError(f'{where}: no "path" (found: {", ".join(row) or "nothing"})')
        kind = row.pop("kind", None) or kind_of(path)
        if kind not in ("video", "image"):
            raise ValueError(f'{where}: {path} is neither video nor image by its ending; a column "kind" may say so, found "{kind}"')
        caption = " ".join((row.pop("caption", None) or row.pop("text", None) or "").split())
        label = row.pop("label", "")
        begin, end = _piece(row, kind, where)
        items.append(Item(str(root / path), kind, caption, label if label else -1, row.pop("split", ""), begin=begin, end=end))
        ignored |= set(row) - {"path", "file_name", "caption", "text"}
    # Numbers are numbers only where all are: a class may be called "2012".
    if all(item.label == -1 or re.fullmatch(r"-?\d+", str(item.label)) for item in items):
        items = [replace(item, label=int(item.label)) for item in items]
    return Listing("table", items, [f"columns not used: {', '.join(sorted(ignored))}"] if ignored else [])


def _piece(row: dict[str, str], kind: str, where: str) -> tuple[float, float]:
    """Begin and end of a row's piece in seconds, taken out of it. Without `begin` a `duration` is the file's, as it may be with `end`."""
    if "begin" not in row:
        return 0.0, 0.0
    if kind != "video":
        raise ValueError(f"{where}: begin names a piece of a video, and this is an image")
    begin = _seconds(row.pop("begin"), where)
    if "end" in row:
        end = _seconds(row.pop("end"), where)
    elif "duration" in row:
        end = round(begin + _seconds(row.pop("duration"), where), 6)
    else:
        return begin, 0.0
    if end <= begin:
        raise ValueError(f"{where}: a piece ends behind its beginning, found {begin:g} to {end:g} s")
    return begin, end


def _seconds(text: str, where: str) -> float:
    """Seconds ("62.5") or hours, minutes and seconds ("0:01:02.5", "01:02.5") as seconds."""
    found = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?(?:[eE]-?\d+)?)", text.strip())
    if found is None:
        raise ValueError(f'{where}: wanted seconds like 62.5, or 0:01:02.5, found "{text}"')
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return round(3600 * hours + 60 * minutes + seconds, 6)


def _rows(source: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV or JSONL file with their lines; nulls are left out, all else is text."""
    # Not str.splitlines: it also breaks at characters that captions may hold.
    lines = io.StringIO(_text(source), newline="")
    if source.suffix.lower() == ".jsonl":
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _json_row(line, f"{source}:{number}")
        return
    rows = csv.DictReader(lines, strict=True)
    try:
        for row in rows:
            if None in row:
                raise ValueError(f'{source}:{rows.line_num}: more fields than columns; put "..." around text with commas')
            yield rows.line_num, {name.strip().lower(): value.strip() for name, value in row.items() if value}
    except csv.Error as error:
        raise ValueError(f"{source}:{rows.line_num}: not CSV: {error}") from error


def _json_row(line: str, where: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f'{where}: wanted an object like {{"path": "a.mp4", "caption": "..."}}, found {line.strip()[:60]}')
    return {str(name).lower(): str(value) for name, value in row.items() if value is not None}


# ---- Known data sets -------------------------------------------------------------------------------------------------


def _ucf101_lists(source: Path) -> Path | None:
    """The folder of UCF-101's official split files."""
    places = (source, source / "ucfTrainTestlist", source / "UCF101TrainTestSplits-RecognitionTask" / "ucfTrainTestlist")
    return next((place for place in places if (place / "trainlist01.txt").is_file()), None)


def _ucf101(source: Path, fold: int) -> Listing:
    """v_CLASS_gGG_cCC.avi below the source, with the official lists of one fold."""
    lists = _ucf101_lists(source)
    if lists is None:
        raise ValueError(f"{source}: no ucfTrainTestlist/trainlist01.txt in it; unpack UCF101TrainTestSplits-RecognitionTask.zip there")
    if not 1 <= fold <= 3:
        raise ValueError(f"fold must be 1, 2 or 3, got {fold}")
    files = {file.name: file for file in _media(source)[0]}
    folder = next((file.parent.parent for file in files.values()), source)
    items, missing = [], 0
    for split in ("train", "test"):
        for line in _text(lists / f"{split}list{fold:02d}.txt").splitlines():
            listed = line.split()[0] if line.strip() else ""  # the train lists have a class number behind it
            if not listed:
                continue
            action, _, name = listed.rpartition("/")
            missing += name not in files
            file = files.pop(name, folder / listed)
            items.append(Item(str(file), "video", _words(action), action, split, family=name.rpartition("_")[0]))
    notes = [f"{missing} of {len(items)} clips of fold {fold} are not there"] if missing else []
    if files:
        notes.append(f"{len(files)} files are in neither list of fold {fold} and are left out, the first: {min(files)}")
    numbers = lists / "classInd.txt"
    classes = [line.split()[1] for line in _text(numbers).splitlines() if line.strip()] if numbers.is_file() else []
    return Listing("ucf101", items, notes, classes or sorted({str(item.label) for item in items}))


def _tables(source: Path) -> list[Path]:
    return sorted([*source.glob("*.csv"), *source.glob("annotations/*.csv")])


def _is_kinetics(path: Path) -> bool:
    if path.suffix.lower() != ".csv":
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return {"youtube_id", "time_start", "time_end"} <= {name.strip() for name in file.readline().strip().split(",")}


def _kinetics(source: Path, root: str | None) -> Listing:
    """Clips named ID_000010_000020.mp4 anywhere below the source (or `root`), with the CSVs of the data set."""
    tables = [source] if source.is_file() else [table for table in _tables(source) if _is_kinetics(table)]
    if not tables:
        raise ValueError(f"{source}: no CSV with the columns label, youtube_id, time_start, time_end in it or in its annotations/")
    folder = Path(root) if root else source.parent if source.is_file() else source
    files = {file.stem: file for file in _media(folder)[0]}
    items, names, seen, dead = [], set[str](), set[str](), 0
    for table in tables:
        for number, row in _rows(table):
            stem = _kinetics_stem(row, f"{table}:{number}")
            if stem in seen:  # a table of all splits may lie beside theirs
                continue
            seen.add(stem)
            name = row.get("label", "")
            names |= {name} if name else set()
            file = files.pop(stem, None)
            if file is None:
                dead += 1
                continue
            split = _SPLITS.get(row.get("split", "").lower(), "") or _split_of([table.stem])
            items.append(Item(str(file), "video", _words(name), name or -1, split, family=row["youtube_id"]))
    notes = [f"{dead} of {len(seen)} clips of {', '.join(table.name for table in tables)} are not there"] if dead else []
    if files:
        notes.append(f"{len(files)} files are in no CSV and are left out, the first: {min(files.values())}")
    return Listing("kinetics", items, notes, sorted(names))


def _kinetics_stem(row: Mapping[str, str], where: str) -> str:
    try:
        return f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
    except (KeyError, ValueError) as error:
        raise ValueError(f"{where}: wanted youtube_id, time_start and time_end (seconds), found {dict(row)}") from error


# ---- Tar shards ------------------------------------------------------------------------------------------------------


def _is_pattern(source: str) -> bool:
    return not Path(source).exists() and (bool(re.search(r"\{\d+\.\.\d+\}", source)) or any(letter in source for letter in "*?["))


def expand(pattern: str) -> list[str]:
    """Names that a pattern of shards stands for: "a-{08..11}.tar" is a-08.tar to a-11.tar; and "*", "?" as in a shell."""
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    ranges = [[f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)] for low, high in zip(parts[1::3], parts[2::3], strict=True)]
    names = []
    for numbers in product(*ranges):
        names.append(parts[0] + "".join(number + rest for number, rest in zip(numbers, parts[3::3], strict=True)))
    return [found for name in names for found in (sorted(glob.glob(name)) if any(letter in name for letter in "*?[") else [name])]


def _shards(source: str, workers: int) -> Listing:
    """Samples of webdataset shards: members that share their name up to the first dot of the last part."""
    path = Path(source)
    names = [str(shard) for shard in sorted(path.rglob("*.tar"))] if path.is_dir() else expand(source)
    if packed := [str(shard) for ending in ("*.tar.gz", "*.tgz", "*.tar.zst") for shard in path.glob(ending)] if path.is_dir() else []:
        raise ValueError(f"{packed[0]}: packed shards cannot be read at random places; unpack them first: gunzip {packed[0]}")
    if missing := [name for name in names if not Path(name).is_file()]:
        raise ValueError(f"{source}: {len(missing)} of {len(names)} shards are not there, the first: {missing[0]}")
    found: dict[str, list[Item]] = {}
    notes: list[str] = []
    for name, shard in run_apart(list_shard, names, min(workers, max(1, len(names))), lambda name: _SHARD_SECONDS):
        if isinstance(shard, Lost):
            notes.append(f"{name}: {shard.finding}: {shard.reason}")
            continue
        found[name], broken = shard
        notes += [f"{name}: {broken}"] if broken else []
    return Listing("webdataset", [item for name in names for item in found.get(name, [])], sorted(notes))


def list_shard(name: str) -> tuple[list[Item], str]:
    """The clips and images in a tar shard, each with the place of its bytes; and why the rest of the shard could not be read, if so.

    Of a sample, `.txt` (or "caption" or "text" of its `.json`) is the caption, `.cls` (or "label" of its `.json`) the class. The shard's
    name or folder may say the split: "train-0001.tar", "val/0001.tar".
    """
    split = _split_of([*Path(name).parts[-2:-1], *re.split(r"[^A-Za-z]+", Path(name).stem)])
    media: list[tuple[str, tarfile.TarInfo]] = []
    said: dict[str, dict[str, Any]] = {}
    broken = ""
    try:
        with tarfile.open(name, "r:") as shard:
            for member in shard:
                key, ending = _sample(member.name)
                if not member.isreg() or member.issparse() or key.endswith("/"):
                    continue
                if kind_of(ending):
                    media.append((key, member))
                elif ending in ("txt", "cls", "json"):
                    new, known = _said(shard, member, ending), said.get(key, {})
                    said[key] = {**new, **known} if ending == "json" else {**known, **new}
    except (tarfile.TarError, OSError, EOFError) as error:
        broken = f"can be read as far as {len(media)} clips and images: {error}"
    items = []
    for key, member in media:
        words = said.get(key, {})
        item = Item(name, kind_of(member.name) or "", words.get("caption", ""), words.get("label", -1), words.get("split", "") or split)
        items.append(replace(item, offset=member.offset_data, bytes=member.size, family=f"{Path(name).name}/{key}"))
    return items, broken


def _sample(member: str) -> tuple[str, str]:
    """Key and ending of a member, as webdataset cuts them: "a/b.c.jpg" is ("a/b", "c.jpg")."""
    folder, _, name = member.rpartition("/")
    stem, _, ending = name.partition(".")
    return f"{folder}/{stem}", ending.lower()


def _said(shard: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> dict[str, Any]:
    """What a small member says of its sample."""
    file = shard.extractfile(member)
    assert file is not None
    text = file.read().decode("utf-8", errors="replace").strip()
    if ending == "txt":
        return {"caption": " ".join(text.split())}
    if ending == "cls":
        return {"label": _label(text)}
    try:
        row = json.loads(text)
    except ValueError:
        return {}
    row = row if isinstance(row, dict) else {}
    caption = " ".join(str(row.get("caption") or row.get("text") or "").split())
    label, split = row.get("label"), str(row.get("split") or "")
    return (
        ({"caption": caption} if caption else {})
        | ({} if label is None else {"label": _label(str(label))})
        | ({"split": split} if split else {})
    )


def _label(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d+", text) else text or -1
