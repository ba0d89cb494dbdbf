"""Labels as sources write them: numbers in any spelling, names of classes, and words for a missing one."""

import re
from decimal import Decimal, DecimalException
from typing import Any

from walt_pl.untrusted import UntrustedError

NO_LABEL = -1
"""Label of a clip without a class."""
LABELS = range(-(2**31), 2**31)
"""Numbers that the index's column `label` holds."""
MISSING = frozenset(("", "nan", "NaN", "None", "null", "NULL", "NA", "N/A", "<NA>"))
"""Words for a missing label, as pandas writes and reads them. Lower-case "none" is a name, as in pandas."""
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_LIKE_A_NUMBER = re.compile(r"[+-]?(?:[\d.]*,[\d.,]*|inf|infinity)", re.IGNORECASE)
_LONGEST = 40


def read_label(value: Any) -> int | str:
    """Return the class that a source names: a number from 0, a name, or `NO_LABEL`.

    A whole number is a number in any spelling (3, 3.0, 3., 03, +3, 3e0), because programs write whole columns as fractions where a value is
    missing.

    Args:
        value: Text, or a plain value of JSON.

    Raises:
        UntrustedError: The number is negative or does not fit the index. The clip can be used without it.
        ValueError: It is a fraction, a number with commas, a list, a mapping, or true or false of JSON.
    """
    if isinstance(value, list | dict | bool):
        raise ValueError(f"label {str(value)[:40]} is a {type(value).__name__}, wanted a whole number or the name of a class")
    text = "" if value is None else str(value).strip()
    if text in MISSING:
        return NO_LABEL
    if _LIKE_A_NUMBER.fullmatch(text):
        raise ValueError(f"label {text[:40]} is no whole number: write one without commas, such as 3, or a name")
    if not _NUMBER.fullmatch(text):
        return text
    try:
        number = Decimal(text if len(text) <= _LONGEST else "inf")
    except DecimalException:  # an exponent of many digits
        number = Decimal("inf")
    if number.is_infinite() or (number and number.adjusted() > 10):
        raise UntrustedError(f"label {text[:20]} is not a number of 32 bits")
    if number != number.to_integral_value():
        raise ValueError(f'label {text[:40]} is no whole number: write one, or a name such as "class {text[:40]}"')
    if int(number) not in LABELS:
        raise UntrustedError(f"label {text[:20]} is not a number of 32 bits")
    if number < NO_LABEL:
        raise UntrustedError(f"label {text[:20]} is negative: classes are numbered from 0, and {NO_LABEL} stands for none")
    return int(number)
