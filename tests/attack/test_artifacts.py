"""The attack on artifacts notices a hostile value that is taken."""

from pathlib import Path

from tests.attack.artifacts import IGNORED, MAY_BE_READ, judge


def test_judge_calls_a_value_that_is_read_without_a_word_wrong(tmp_path: Path) -> None:
    assert judge("model.safetensors: nan", lambda: "", tmp_path).verdict == "wrong"
    assert judge(min(MAY_BE_READ), lambda: "", tmp_path).verdict == "unharmed"
    assert judge("progress.json: nothing", lambda: IGNORED, tmp_path).verdict == "unharmed"
    assert judge("model.safetensors: nan", lambda: "nan", tmp_path).verdict == "named"
