"""Files of prompts: what counts as one, and the limits of those for previews."""

from pathlib import Path

import pytest

from walt_pl.text.prompt_file import (
    MAX_PREVIEW_BYTES,
    MAX_PREVIEW_CHARACTERS,
    MAX_PREVIEW_PROMPTS,
    prompt_lines,
    read_preview_prompts,
)


def test_prompt_lines_leave_out_empty_lines_and_comments() -> None:
    assert prompt_lines(b"# shapes\n\na red circle \n  # more\n   \na bar, no. #2\r\n") == ["a red circle", "a bar, no. #2"]


def test_read_preview_prompts_returns_captions_in_their_order_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffun  cafe\u0301\nb\n".encode())
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    assert read_preview_prompts(str(tmp_path / "link.txt")) == ["un caf\xe9", "b"]


REFUSED = {
    "empty": (b"", r"a\.txt: it has no prompt; write one a line"),
    "comments alone": (b"# a\n\n", "it has no prompt; write one a line"),
    "too many": (b"a\n" * (MAX_PREVIEW_PROMPTS + 1), "found 17 prompts, wanted at most 16"),
    "too long": (b"b" * (MAX_PREVIEW_CHARACTERS + 1), r'the prompt "b{40}\.\.\." has 1,001 characters, wanted at most 1,000'),
    "too large": (b"#" * (MAX_PREVIEW_BYTES + 1), "has more than 262,144 bytes"),
    "latin": ("caf\xe9".encode("latin1"), "not UTF-8 .*iconv -f latin1 -t utf-8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_read_preview_prompts_refuses_a_file_in_one_sentence(name: str, tmp_path: Path) -> None:
    content, said = REFUSED[name]
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"previews\.prompts: .*{said}"):
        read_preview_prompts(str(tmp_path / "a.txt"))


def test_read_preview_prompts_takes_the_largest_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{'b' * MAX_PREVIEW_CHARACTERS}\n" * MAX_PREVIEW_PROMPTS)
    assert len(read_preview_prompts(str(tmp_path / "a.txt"))) == MAX_PREVIEW_PROMPTS


def test_read_preview_prompts_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"previews\.prompts: .*none\.txt: there is no such file; write one with a prompt a line"):
        read_preview_prompts(str(tmp_path / "none.txt"))
