"""Build frozen dataclasses of the plain values of a stranger's file: every entry has the type that its field is annotated with.

The records of a card, a manifest, a progress file and a lock are built here, and so are the configurations of models in `model.yaml`. Value
ranges are checked by the `__post_init__` of each dataclass. Nothing of torch is imported: `status` shall start at once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from walt_pl.terminal_text import CONTROL
from walt_pl.untrusted import UntrustedError

MAX_TEXT = 16_384
"""Characters of a text entry. The longest is the command of a training with all its options."""
SHOWN = 60
"""Characters of a wrong value that an error shows."""


T = TypeVar("T")


def build_record(record: type[T], plain: Any, where: str) -> T:
    """Build a dataclass of plain values, with lists as tuples.

    Args:
        record: the dataclass. Fields may be plain values, literals, tuples, dicts, unions and other dataclasses.
        plain: mapping of its fields.
        where: file and section that the values come from, for the error message.

    Raises:
        UntrustedError: an entry is missing, unknown, of another type, or not finite; or the dataclass refuses it.
    """
    if not isinstance(plain, Mapping):
        raise UntrustedError(f"{where} is {shown(plain)}, wanted entries by name")
    fields = {field.name: field for field in dataclasses.fields(record) if field.init}  # type: ignore[arg-type]
    unknown = [name for name in plain if name not in fields]
    if unknown:
        raise UntrustedError(f"{where} has an entry {shown(unknown[0])} that is not known (known: {', '.join(fields)})")
    missing = [name for name, field in fields.items() if name not in plain and _is_required(field)]
    if missing:
        raise UntrustedError(f"{where} has no entry {missing[0]}")
    hints = _hints(record)  # type: ignore[arg-type]  # a class is hashable
    values = {name: _convert(value, hints[name], f"{where}: {name}") for name, value in plain.items()}
    try:
        return record(**values)
    except UntrustedError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:  # division by a size of zero
        raise UntrustedError(f"{where}: {error}") from error


def check_plain(value: Any, where: str) -> None:
    """Check that nested plain values have finite numbers of 64 bits and printable text.

    Raises:
        UntrustedError: a value has not.
    """
    if isinstance(value, Mapping):
        for key, one in value.items():
            _text(str(key) if type(key) in (bool, int, float) or key is None else key, where)
            check_plain(one, f"{where}: {key}")
    elif isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            check_plain(one, f"{where}: {number}")
    elif type(value) is str:
        _text(value, where)
    elif type(value) in (int, float):
        _number(value, where)


def shown(value: Any) -> str:
    """Return a value as short ASCII text without control characters, for an error message."""
    try:
        text = ascii(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a {type(value).__name__} with an integer of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def check_sha256(value: str, name: str) -> None:
    """Check that a text is a SHA-256 in hexadecimal.

    Raises:
        ValueError: it is not.
    """
    if re.fullmatch(r"[0-9a-f]{64}", value) is None:
        raise ValueError(f"{name} is {shown(value)}, wanted 64 hexadecimal digits")


def check_range(value: float | None, name: str, most: float, least: float = 0) -> None:
    """Check that a number lies in a range. None passes.

    Raises:
        ValueError: it does not.
    """
    if value is not None and not least <= value <= most:
        raise ValueError(f"{name} is {shown(value)}, wanted {least:,} .. {most:,}")


def check_time(value: str, name: str) -> None:
    """Check that a text is a time with its zone, ISO 8601.

    Raises:
        ValueError: it is not.
    """
    try:
        if datetime.fromisoformat(value).tzinfo is not None:
            return
    except ValueError:
        pass
    raise ValueError(f"{name} is {shown(value)}, wanted a time such as 2026-01-31T12:00:00+00:00")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@functools.cache
def _hints(record: type[Any]) -> dict[str, Any]:
    return get_type_hints(record)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Return a plain value as the type of its field.

    Raises:
        UntrustedError: it has another type.
    """
    origin = get_origin(hint)
    if hint is Any:
        check_plain(value, where)
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, hint, where)
    if origin is Literal:
        if not any(type(value) is type(one) and value == one for one in get_args(hint)):
            raise UntrustedError(f"{where} is {shown(value)}, wanted {' or '.join(str(one) for one in get_args(hint))}")
        return value
    if origin is tuple:
        return _convert_tuple(value, get_args(hint), where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UntrustedError(f"{where} is {shown(value)}, wanted entries by name")
        key_hint, value_hint = get_args(hint)
        return {_convert(k, key_hint, f"{where}: a key"): _convert(v, value_hint, f"{where}: {shown(k)}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build_record(hint, value, where)
    return _convert_scalar(value, hint, where)


def _convert_union(value: Any, hint: Any, where: str) -> Any:
    options = [one for one in get_args(hint) if one is not types.NoneType]
    if value is None and len(options) < len(get_args(hint)):
        return None
    for number, option in enumerate(options):
        try:
            return _convert(value, option, where)
        except UntrustedError:
            if number == len(options) - 1:
                raise
    raise UntrustedError(f"{where} is {shown(value)}, wanted null")


def _convert_tuple(value: Any, hints: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise UntrustedError(f"{where} is {shown(value)}, wanted a list")
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        raise UntrustedError(f"{where} has {len(value)} values, wanted {len(hints)}")
    return tuple(_convert(one, hint, f"{where}[{number}]") for number, (one, hint) in enumerate(zip(value, hints, strict=True)))


def _convert_scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is str:
        return _text(value, where)
    if hint is bool or hint is int:
        if type(value) is not hint:
            raise UntrustedError(f"{where} is {shown(value)}, wanted {'true or false' if hint is bool else 'an integer'}")
        return value if hint is bool else _number(value, where)
    if hint is float:
        if type(value) not in (int, float):
            raise UntrustedError(f"{where} is {shown(value)}, wanted a number")
        return _number(value, where)
    raise TypeError(f"{where}: a field of type {hint} cannot be read from a file")


def _number(value: float, where: str) -> float:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UntrustedError(f"{where} is {value}, wanted a finite number")
    elif not -(2**63) <= value < 2**63:
        raise UntrustedError(f"{where} is an integer of {value.bit_length()} bits, wanted at most 64")
    return value


def _text(value: Any, where: str) -> str:
    if type(value) is not str:
        raise UntrustedError(f"{where} is {shown(value)}, wanted text")
    if len(value) > MAX_TEXT:
        raise UntrustedError(f"{where} has {len(value):,} characters, wanted at most {MAX_TEXT:,}")
    if CONTROL.search(value):
        raise UntrustedError(f"{where} is {shown(value)}, wanted text without control characters")
    return value
