"""Files of prompts: one a line, for `walt sample --prompts` and for the previews of a training."""

from pathlib import Path

from walt_pl.plain_text import clean_caption, decode_text, split_lines
from walt_pl.untrusted import UntrustedError, read_bytes

MAX_PREVIEW_PROMPTS = 16
"""Prompts of the previews of a training. Each one is sampled after every validation that has previews."""
MAX_PREVIEW_CHARACTERS = 1000
"""Characters of a prompt of the previews."""
MAX_PREVIEW_BYTES = 1 << 18
"""Bytes of a file of prompts for previews: comments and the longest prompts have room."""


def prompt_lines(content: bytes) -> list[str]:
    """Return the prompts of a file, without the space around them. Empty lines, and lines that begin with #, are none.

    Raises:
        UntrustedError: the content is no UTF-8, or has no prompt.
    """
    lines = [line.strip() for line in split_lines(decode_text(content))]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UntrustedError("it has no prompt; write one a line")
    return prompts


def read_preview_prompts(path: str) -> list[str]:
    """Return the prompts of a file for previews, in the form that captions have.

    Args:
        path: of the file, as a person typed it; it may be a link.

    Raises:
        ValueError: the file is missing, too large, not UTF-8, or has no prompt, too many of them, or one that is too long.
    """
    where = f"previews.prompts: {path}"
    try:
        prompts = [clean_caption(line) for line in prompt_lines(read_bytes(Path(path).resolve(), MAX_PREVIEW_BYTES))]
    except FileNotFoundError:
        raise ValueError(f"{where}: there is no such file; write one with a prompt a line") from None
    except UntrustedError as error:
        raise ValueError(f"{where}: {error}") from error
    if len(prompts) > MAX_PREVIEW_PROMPTS:
        raise ValueError(f"{where}: found {len(prompts)} prompts, wanted at most {MAX_PREVIEW_PROMPTS}: each preview samples all of them")
    if longest := next((prompt for prompt in prompts if len(prompt) > MAX_PREVIEW_CHARACTERS), None):
        raise ValueError(
            f'{where}: the prompt "{longest[:40]}..." has {len(longest):,} characters, wanted at most {MAX_PREVIEW_CHARACTERS:,}'
        )
    return prompts
