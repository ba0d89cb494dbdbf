"""Types of the fields of a JSONL table."""

import pytest

from walt_pl.indexing.table_fields import read_fields


def test_read_fields_gives_text_except_captions_and_leaves_nulls_out() -> None:
    row = {"Path": "a.mp4", "caption": ["a", 3], "TEXT": None, "label": 3, "begin": 0.5, "likes": [1]}
    assert read_fields(row, "a.jsonl:1") == {"path": "a.mp4", "caption": ["a", 3], "label": 3, "begin": "0.5", "likes": "[1]"}


@pytest.mark.parametrize("name", ["path", "file_name", "kind", "split"])
@pytest.mark.parametrize("value", [1, True, ["a.mp4"], {"a": "b"}])
def test_read_fields_refuses_names_that_are_no_text(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf'a\.jsonl:7: "{name}" must be text, found '):
        read_fields({name: value}, "a.jsonl:7")
