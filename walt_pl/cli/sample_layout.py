"""The folder that VBench reads: five clips of each prompt, named PROMPT-0.mp4 .. PROMPT-4.mp4 (docs/VBENCH.md).

Nothing but clips may lie in that folder, because VBench takes the ending of all names from the first file that it finds. The lock and the
record of settings and seeds lie beside it. The record is compared before missing clips are made, so that a folder has clips of one model.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from walt_pl.files import remove_left_overs, write_whole
from walt_pl.lock import hold_lock, lock_beside
from walt_pl.media.contact_sheet import to_uint8
from walt_pl.media.writing import write_video
from walt_pl.plain_text import clean_caption
from walt_pl.removal import TEMPORARY, remove_own
from walt_pl.sampling.cascade import VAE_STAGE, Cascade, SamplingConfig
from walt_pl.terminal_text import CONTROL
from walt_pl.untrusted import parse_json, read_json

LayoutName = Literal["plain", "vbench"]
SAMPLES = 5
"""Clips of a prompt, as VBench reads them."""
CUT = 180
"""Characters of a prompt that is too long for a name, as VBench-2.0 cuts it."""
LONGEST = 215
"""Bytes of a prompt in a name. File systems take 255, and a clip that is being written has about 40 more."""
FORMAT = 1


@dataclass(frozen=True)
class PlannedClip:
    """A clip of a layout."""

    path: Path
    prompt: str
    seed: int


def check_layout(out: str, others: Sequence[str]) -> None:
    """Check the options of `--layout vbench` before a model is loaded.

    Args:
        out: folder of the clips.
        others: options that were given and have no place in this layout.

    Raises:
        ValueError: an option does not fit, or the folder holds something else than clips.
    """
    if others:
        raise ValueError(f"sample: --layout vbench takes the prompts of a file (--prompts FILE), got {' and '.join(others)}")
    folder = Path(out)
    if folder.suffix == ".mp4" or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"sample: --out {out}: --layout vbench writes a folder; name one that ends in /")
    if not folder.absolute().name:
        raise ValueError(f"sample: --out {out}: name a folder of its own for the clips of --layout vbench")
    foreign = sorted(path.name for path in folder.glob("*") if path.suffix != ".mp4" and not TEMPORARY.fullmatch(path.name))
    if foreign:
        raise ValueError(f"sample: {folder} holds {foreign[0]}: VBench reads the folder and wants clips alone; name another folder")


def plan_clips(folder: Path, lines: Sequence[str], seed: int) -> list[PlannedClip]:
    """Return the clips of a file of prompts, five of each, with seeds that follow each other. A prompt that comes again counts once.

    Args:
        folder: folder of the clips.
        lines: prompts as they are typed. A name has the prompt as typed, since VBench looks for it; the model gets its clean form.
        seed: seed of the first clip.

    Raises:
        ValueError: two prompts have one name.
    """
    names: dict[str, str] = {}
    for line in dict.fromkeys(lines):
        if (other := names.setdefault(prompt_name(line), line)) != line:
            raise ValueError(f"sample: two prompts have the file name {prompt_name(line)!r}: {other!r} and {line!r}; change one of them")
    return [
        PlannedClip(folder / f"{name}-{index}.mp4", clean_caption(line), seed + number * SAMPLES + index)
        for number, (name, line) in enumerate(names.items())
        for index in range(SAMPLES)
    ]


def prompt_name(prompt: str) -> str:
    """Return a prompt as part of a file name. Slashes and control characters become _, and a name that is too long is cut."""
    name = CONTROL.sub("_", prompt).replace("/", "_")
    if len(name.encode()) > LONGEST:
        name = name[:CUT].encode()[:LONGEST].decode(errors="ignore")
    return name


def layout_settings(cascade: Cascade, sampling: SamplingConfig, negative_prompt: str, frames: int, fps: float) -> dict[str, Any]:
    """Return the settings that determine the clips beside prompt and seed, as plain values."""
    return {
        "artifacts": {stage: cascade.sha256(stage) for stage in (VAE_STAGE, *cascade.stages)},
        "steps": {stage: sampling.steps_of(stage) for stage in cascade.stages},
        "eta": sampling.eta,
        "guidance": {stage: asdict(cascade.guidance(stage, sampling)) for stage in cascade.stages},
        "negative_prompt": negative_prompt,
        "frames": frames,
        "fps": fps,
    }


def write_layout(
    planned: Sequence[PlannedClip],
    settings: dict[str, Any],
    overwrite: bool,
    make: Callable[[Sequence[PlannedClip]], Iterator[torch.Tensor]],
) -> str:
    """Make the clips that do not exist yet, and write each as soon as it is there.

    Args:
        planned: all clips of the layout.
        settings: see `layout_settings`; clips that exist were made with them.
        overwrite: make all clips again.
        make: makes pixels [b 3 t h w] in -1..1 of the clips that are missing, batch by batch.

    Returns:
        Number and place of the clips, for the terminal.

    Raises:
        ValueError: clips exist that were made with other settings or seeds.
    """
    folder = planned[0].path.parent
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(lock_beside(folder), work=f"sample --out {folder}"):
        _prepare(folder, planned, settings, overwrite)
        missing = [clip for clip in planned if not clip.path.exists()]
        places = iter(missing)
        if missing:
            for batch in make(missing):
                for frames, clip in zip(to_uint8(batch), places, strict=False):  # frames first: zip takes no place for a missing one
                    write_video(clip.path, frames, settings["fps"])
    found = len(planned) - len(missing)
    there = f" ({found} were there already)" if found else ""
    return f"{len(planned)} clips in {folder}{there}; settings and seeds: {_record_path(folder)}"


def _prepare(folder: Path, planned: Sequence[PlannedClip], settings: dict[str, Any], overwrite: bool) -> None:
    """Compare the record with what is asked for, remove what is left over, and write the record.

    Raises:
        ValueError: clips exist that were made with other settings or seeds, or without a record.
    """
    record = {"format": FORMAT, "settings": settings, "seeds": {clip.path.name: clip.seed for clip in planned}}
    record = parse_json(json.dumps(record), str(_record_path(folder)))  # tuples become lists, as in the file
    if overwrite:
        # First, so that a command that is stopped never leaves clips of two models.
        remove_own(folder.absolute(), [re.escape(clip.path.name) for clip in planned])
    older = _read_record(folder)
    if any(folder.glob("*.mp4")):
        _check_record(folder, older, record)
        record["seeds"] = {**older["seeds"], **record["seeds"]}
    folder.mkdir(exist_ok=True)
    for path in list(folder.iterdir()):
        if (temporary := TEMPORARY.fullmatch(path.name)) and temporary[1] in record["seeds"]:
            remove_left_overs(folder / temporary[1])
    write_whole(_record_path(folder), (json.dumps(record, indent=2) + "\n").encode())


def _check_record(folder: Path, older: dict[str, Any], record: dict[str, Any]) -> None:
    again = "name another folder, or make all clips again with --overwrite true"
    if not older:
        raise ValueError(f"sample: {folder} has clips, and {_record_path(folder)}, which says how they were made, is missing: {again}")
    for name, wanted in record["settings"].items():
        if older["settings"].get(name) != wanted:
            raise ValueError(f"sample: the clips of {folder} were made with another value of {name} ({_record_path(folder)}): {again}")
    if other := [name for name, seed in record["seeds"].items() if older["seeds"].get(name, seed) != seed]:
        raise ValueError(f"sample: {other[0]!r} of {folder} has another seed: the prompts or --seed changed; {again}")


def _read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a folder; empty if there is none.

    Raises:
        ValueError: there is another file in its place.
    """
    path = _record_path(folder)
    try:
        record = read_json(path)
    except FileNotFoundError:
        return {}
    if (
        not isinstance(record, dict)
        or record.get("format") != FORMAT
        or not all(isinstance(record.get(k), dict) for k in ("settings", "seeds"))
    ):
        raise ValueError(f"sample: {path} is no record of clips, and one would be written there: name another folder with --out")
    return record


def _record_path(folder: Path) -> Path:
    return folder.absolute().with_name(f"{folder.absolute().name}.json")
