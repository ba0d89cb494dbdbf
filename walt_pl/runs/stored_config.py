"""Read numbers from the training configuration in a checkpoint or an artifact, which may come from a stranger.

Only the numbers listed here and the path of the index (`stored_index`) are read. No address, command or class path is returned, and nothing
is opened or imported.
"""

from collections.abc import Callable
from typing import Any

from walt_pl.plain_records import shown
from walt_pl.untrusted import parse_yaml

MAX_NUMBER = 2**31 - 1
"""Largest number of clips, batches and views in a stored configuration."""
MAX_SIDE = 16_384
"""Largest side of a frame in pixels."""
MAX_FRAMES = 65_536
"""Most frames of a clip."""
MAX_VALUES = 1000
"""Most values of a list in a stored configuration."""


def _is_integer(value: Any) -> bool:
    return type(value) is int and -1 <= value <= MAX_NUMBER


def _is_seed(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_up_to(most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 0 <= value <= most


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= MAX_SIDE


def _is_optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_sequence(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) <= MAX_VALUES and all(map(check, value))


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_up_to(255), value))


CLIPS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("videos_per_batch", "image_stacks_per_batch", "images_per_stack"), _is_up_to(MAX_FRAMES)),
    **dict.fromkeys(("views", "val_videos", "stride"), _is_integer),
    "size": _is_up_to(MAX_SIDE),
    "frames": _is_up_to(MAX_FRAMES),
    "seed": _is_seed,
    **dict.fromkeys(("low_res_size", "crop"), _is_optional(_is_up_to(MAX_SIDE))),
    "aspect": _is_number,
    "fps": _is_optional(_is_number),
    **dict.fromkeys(("flip", "deinterlace"), lambda value: isinstance(value, bool)),
    "background": _is_colour,
    "sizes": _is_sequence(_is_up_to(MAX_SIDE)),
    "buckets": _is_sequence(lambda bucket: _is_sequence(_is_up_to(MAX_SIDE))(bucket) and len(bucket) == 2),
}
"""Arguments of the data module that define the clips of a batch, with the check of each value."""


def clip_arguments(train_config: str, where: str) -> dict[str, Any]:
    """Return the clip arguments of the data module; arguments that are not in the text keep their defaults.

    Args:
        train_config: text of a training configuration.
        where: file that the text comes from, for the error message.

    Raises:
        ValueError: a value is no number, or the text is no training configuration.
    """
    data = _section(train_config, where, "data")
    return {name: _check_value(data[name], check, where, f"data.{name}") for name, check in CLIPS.items() if name in data}


def stored_index(train_config: str, where: str) -> str:
    """Return the path of the index. A caller that opens it must check that it is a plain local file.

    Raises:
        ValueError: the path is no text, or the text is no training configuration.
    """
    found: str = _check_value(_section(train_config, where, "data").get("index"), lambda value: isinstance(value, str), where, "data.index")
    return found


def stored_background(train_config: str, where: str) -> tuple[int, int, int] | None:
    """Return the background of transparent pictures, None where the text has none.

    Raises:
        ValueError: the value is no red, green and blue.
    """
    try:
        data = _section(train_config, where, "data")
    except ValueError:
        return None
    if "background" not in data:
        return None
    red, green, blue = _check_value(data["background"], _is_colour, where, "data.background")
    return red, green, blue


def statistics_batches(train_config: str, where: str) -> int:
    """Return the number of training batches for the latent statistics of an autoencoder.

    Raises:
        ValueError: the value is no integer, or the text is no training configuration.
    """
    arguments = _section(train_config, where, "model", "init_args")
    found: int = _check_value(arguments.get("statistics_batches"), _is_integer, where, "model.statistics_batches")
    return found


def in_bfloat16(train_config: str, where: str) -> bool:
    """Return whether the training computed in bfloat16.

    Raises:
        ValueError: the text is no training configuration.
    """
    return "bf16" in str(_section(train_config, where, "trainer").get("precision"))


def _section(train_config: str, where: str, *keys: str) -> dict[str, Any]:
    try:
        found = parse_yaml(train_config, where)
        for key in keys:
            found = found[key]
        return dict(found)
    except (KeyError, TypeError, ValueError) as error:
        told = str(error).splitlines()[0]
        raise ValueError(
            f"{where}: its training configuration has no section {'.'.join(keys)} ({told}); take one of this program's"
        ) from None


def _check_value(value: Any, check: Callable[[Any], bool], where: str, name: str) -> Any:
    if not check(value):
        told = f"{name} of its training configuration is {shown(value)}, wanted plain values"
        raise ValueError(f"{where}: {told}; take one of this program's")
    return value
