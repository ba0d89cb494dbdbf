"""The attack on media notices a damaged file that is read as another one than the index says."""

import pytest

from tests.attack.media import Size, _judge_flipped


@pytest.mark.parametrize(
    ("finding", "error", "read", "verdict"),
    [
        ("", "", (20, 64, 96), "unharmed"),
        ("", "", (19, 64, 96), "wrong"),
        ("", "", (20, 64, 88), "wrong"),
        ("", "", None, "wrong"),
        ("truncated: 19 of 20 frames", "", (19, 64, 96), "named"),
        ("corrupt: no header", "wrong: the process ended with -11", None, "wrong"),
    ],
    ids=range(6),
)
def test_judge_flipped_wants_the_frames_of_the_index_or_a_finding(finding: str, error: str, read: Size | None, verdict: str) -> None:
    assert _judge_flipped("a", finding, error, (20, 64, 96), read).verdict == verdict
