"""Labels as sources write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from walt_pl.data.labels import NO_LABEL, read_label
from walt_pl.untrusted import UntrustedError


@pytest.mark.parametrize("value", [3, 3.0, "3", "3.0", "3.", "03", "+3", "3e0", "30e-1", " 3 ", "\uff13", json.loads("3.0")])
def test_read_label_whole_number_is_a_number_in_any_spelling(value: Any) -> None:
    assert read_label(value) == 3 and type(read_label(value)) is int


@pytest.mark.parametrize(
    "value", [None, float("nan"), "", " ", "nan", "NaN", "None", "null", "NULL", "NA", "N/A", "<NA>", -1, "-1", "-1.0"]
)
def test_read_label_missing_words_of_pandas_and_minus_one_are_no_label(value: Any) -> None:
    assert read_label(value) == NO_LABEL


@pytest.mark.parametrize("text", ["cat", "none", "True", "2012_05", "1.2.3", "0x1f", "class 3.5", "a b", "3 dogs", "e3"])
def test_read_label_text_that_is_no_number_is_a_name(text: str) -> None:
    assert read_label(text) == text


@pytest.mark.parametrize("value", ["3.5", 3.5, ".5", "1e-400", "1,000", "3,0", "inf", float("-inf"), [3], {"a": 3}, True, False])
def test_read_label_refuses_what_is_neither_number_nor_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"label .* (whole number|wanted)") as refused:
        read_label(value)
    assert not isinstance(refused.value, UntrustedError), "a person's mistake"


@pytest.mark.parametrize("value", [-5, "-5.0", 2**31, "1e10", "1e400", "1e" + "9" * 30, "9" * 9000, "1000000000000.5"])
def test_read_label_a_number_that_no_class_has_is_a_finding(value: Any) -> None:
    with pytest.raises(UntrustedError, match=r"32 bits|negative"):
        read_label(value)


def test_read_label_holds_the_largest_number_of_the_index() -> None:
    assert read_label(f"{2**31 - 1}.0") == 2**31 - 1
