"""Time that the examination of a file may take, and the files that took longer: when they are examined again."""

from __future__ import annotations

import re

from walt_pl.data.quarantine import finding_of
from walt_pl.indexing.isolated_pool import LostJob
from walt_pl.indexing.probe_file import MediaFile

_TOTAL = 1000.0
"""Limits that a whole file may take: 17 hours of processor time. A day of still 4K frames takes 10; an endless file must end."""
_NOTED = re.compile(r"\(--seconds (\d+(?:\.\d+)?(?:e[+-]?\d+)?); more ")


def total_seconds(medium: MediaFile, seconds: float) -> float:
    """Return the processor time that a whole file may take. Large files get as much as `seconds` for every 10 MB."""
    return seconds * max(_TOTAL, medium.bytes / 10e6)


def describe_lost(lost: LostJob, seconds: float) -> str:
    """Return why the examination of a file was lost, with the limit that it had (`--seconds`)."""
    return f"{lost.reason} (--seconds {seconds:g}; more of them, or a change of the file, examine it again)"


def is_examined_again(reason: str, seconds: float) -> bool:
    """Return whether a file that is quarantined for this reason is examined again.

    This holds for a hang and a crash, if the limit is now larger than the one in the reason. Older versions noted none.
    """
    if finding_of(reason) not in ("hang", "crash"):
        return False
    noted = _NOTED.search(reason)
    return noted is None or float(noted[1]) < float(f"{seconds:g}")
