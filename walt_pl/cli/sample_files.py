"""Files of one `sample` command: mp4, GIF and contact sheet of one name. Files of an earlier command are never replaced unasked."""

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from walt_pl.lock import LockHeld, hold_lock, lock_beside
from walt_pl.media.contact_sheet import captioned_grid, contact_sheet, to_uint8
from walt_pl.media.writing import write_gif, write_image, write_video

NAME = "clip.mp4"
"""First name that is tried in a folder."""


def check_out(out: str, overwrite: bool) -> None:
    """Check --out before anything is computed.

    Raises:
        ValueError: it is neither a folder nor an mp4, or files of that name exist and `overwrite` is false.
    """
    if _is_folder(out):
        return
    if Path(out).suffix != ".mp4":
        raise ValueError(
            f"sample: --out must end in .mp4, or in / for a folder, got {out}; the GIF and the contact sheet are written beside it"
        )
    found = _files_named(Path(out))
    if found and not overwrite:
        names = ", ".join(path.name for path in found[:3]) + (", ..." if len(found) > 3 else "")
        raise ValueError(
            f"sample: {names} of --out {out} exists; give another name, a folder (--out {Path(out).parent}/) for a free name, "
            "or --overwrite true to replace it"
        )


def write_clips(out: str, batches: Iterable[torch.Tensor], captions: Sequence[str], fps: float, overwrite: bool = True) -> str:
    """Write each clip as soon as it is sampled, then the GIF and the contact sheet of all.

    No file is written and no folder made before the first clip is there. The name in a folder is also chosen then, since another command
    may have written there in the meantime. The name is locked to the end. A second command for one folder takes the next name. A second
    one for one mp4 waits, and then replaces it or takes the next name.

    Args:
        out: path of the mp4, or a folder.
        batches: pixels [b 3 t h w] in -1..1.
        captions: one for each clip.
        fps: frames per second of the files.
        overwrite: replace the mp4 `out` if another command has written it in the meantime.

    Returns:
        Names of the files, for the terminal.
    """
    coming = iter(batches)
    batch: torch.Tensor | None = next(coming)
    with _claim_path(out, overwrite) as first:
        paths = [first] if len(captions) == 1 else [first.with_stem(f"{first.stem}_{i:03d}") for i in range(len(captions))]
        made: list[torch.Tensor] = []
        while batch is not None:
            for path, frames in zip(paths[len(made) :], to_uint8(batch), strict=False):
                write_video(path, frames, fps)
            made.extend(batch)
            batch = next(coming, None)
        clips = torch.stack(made)
        write_gif(first.with_suffix(".gif"), captioned_grid(clips, captions), fps, captions)
        write_image(first.with_suffix(".png"), contact_sheet(clips, captions))
    written = [*paths, first.with_suffix(".gif"), first.with_suffix(".png")]
    left = [path.name for path in _files_named(first) if path not in written]
    range_of_names = f"{paths[0]}{f' .. {paths[-1].name}' if len(paths) > 1 else ''}"
    older = f" ({', '.join(left)} beside them: of an earlier command)" if left else ""
    return f"{range_of_names}, {written[-2]}, {written[-1]}{older}"


@contextlib.contextmanager
def _claim_path(out: str, overwrite: bool) -> Iterator[Path]:
    """Yield the path of the mp4, locked: `out`, or the first free name, in that folder or like that name.

    A name is free if no mp4, GIF or contact sheet of it exists, and no other command is about to write one.
    """
    path = Path(out)
    with contextlib.ExitStack() as held:
        first = path / NAME if _is_folder(out) else path
        first.parent.mkdir(parents=True, exist_ok=True)
        if not _is_folder(out):
            held.enter_context(hold_lock(lock_beside(path), work=f"sample --out {out}"))
            if overwrite or not _files_named(path):
                yield path
                return
        for free in free_paths(first):
            try:
                held.enter_context(hold_lock(lock_beside(free), wait=0))
            except LockHeld:
                continue
            if not _files_named(free):
                yield free
                return


def free_paths(first: Path) -> Iterator[Path]:
    """Yield those of clip.mp4, clip-2.mp4, ... of whose name no mp4, GIF or contact sheet exists; `first` is the path of clip.mp4."""
    paths = itertools.chain([first], (first.with_stem(f"{first.stem}-{number}") for number in itertools.count(2)))
    return (path for path in paths if not _files_named(path))


def _is_folder(out: str) -> bool:
    return out.endswith("/") or Path(out).is_dir()


def _files_named(path: Path) -> list[Path]:
    """Return the existing files that a command with this --out writes for any number of prompts, sorted."""
    pattern = re.compile(rf"{re.escape(path.stem)}(_\d{{3,}})?\.mp4|{re.escape(path.stem)}\.(gif|png)")
    return sorted(found for found in path.parent.glob("*") if pattern.fullmatch(found.name))
