"""The sample is even and depends on content and seed alone; patterns that match nothing and excuses of code that is gone are told."""

import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from tests.mutation.operators import OPERATORS, Mutant, generate
from tests.mutation.report import Tried, render
from tests.mutation.targets import GROUPS, Excuse, TargetError, mutants_of, read_excuses, sample, stale_excuses

ROOT = Path(__file__).parents[2]
FUNCTION = "def f{0}(a, b):\n    c = a + b * 2 if a < b else -a\n    return g(c, a)[a:b]\n\n\n"


def source(*names: int) -> str:
    return "".join(FUNCTION.format(name) for name in names)


def tree(folder: Path) -> Path:
    for group, functions in {"large": range(40), "small": range(2)}.items():
        (folder / group).mkdir(parents=True)
        (folder / group / "file.py").write_text(source(*functions))
    return folder


def test_sample_takes_equally_from_groups_and_operators() -> None:
    pools = {
        "large": generate(source(*range(40)), "a.py"),
        "other": generate(source(*range(50, 90)), "c.py"),
        "small": generate(source(99), "b.py"),
    }
    chosen = sample(pools, 100, seed=0)
    few = len(pools["small"])
    assert {group: len(mutants) for group, mutants in chosen.items()} == {
        "large": (100 - few) // 2,
        "other": -(-(100 - few) // 2),
        "small": few,
    }
    operators = Counter(mutant.operator for mutant in chosen["large"])
    assert set(operators) == set(OPERATORS) and max(operators.values()) - min(operators.values()) <= 1


def test_sample_depends_on_seed_and_content_only() -> None:
    def choose(code: str, path: str, seed: int = 0) -> set[tuple[str, str, str, str, int]]:
        return {mutant.identity for mutant in sample({"group": generate(code, path)}, 80, seed)["group"]}

    functions = list(range(40))
    assert choose(source(*functions), "a.py") == choose(source(*reversed(functions)), "moved/b.py")
    assert choose(source(*functions), "a.py") != choose(source(*functions), "a.py", seed=1)
    # One function more displaces no more than it brings.
    more = choose(source(*functions, 40), "a.py")
    kept = more & choose(source(*functions), "a.py")
    assert len(kept) == sum(identity[0] != "f40" for identity in more) >= 70


def test_mutants_of_groups_match_files_and_give_enough_mutants() -> None:
    pools = mutants_of(ROOT)
    assert set(pools) == set(GROUPS) and min(map(len, pools.values())) >= 20


def test_mutants_of_names_a_pattern_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"no file matches gone/\*\.py of group old; correct the pattern in GROUPS"):
        mutants_of(tree(tmp_path), {"new": ["large/*.py"], "old": ["gone/*.py"]})
    with pytest.raises(TargetError, match="found 28 in all groups, wanted at least 150"):
        mutants_of(tmp_path, {"new": ["small/*.py"]})


def tried(mutant: Mutant, verdict: str) -> Tried:
    return Tried("group", mutant, ("tests/test_a.py",), source(0).encode(), verdict)


def excuse(mutant: Mutant, reason: str = "no value depends on it") -> Excuse:
    return Excuse(mutant.function, mutant.operator, mutant.original, mutant.mutated, reason, mutant.occurrence)


def test_stale_excuses_finds_the_excuse_of_removed_code() -> None:
    mutants = generate(source(0, 1), "a.py")
    renamed = generate(source(0, 2), "a.py")
    excuses = [excuse(mutants[0]), excuse(mutants[-1])]
    assert stale_excuses(excuses, {"group": mutants}) == []
    assert stale_excuses(excuses, {"group": renamed}) == [excuses[1]]
    text, _ = render([tried(mutants[0], "killed")], [], stale_excuses(excuses, {"group": renamed}))
    assert "stale excuse, no such mutant; remove or correct the entry: f1" in text


def test_report_shows_survivors_and_does_not_count_excused_ones() -> None:
    mutants = generate(source(0), "a.py")[:11]
    verdicts = ["killed"] * 8 + ["timeout", "survived", "survived"]
    all_tried = [tried(mutant, verdict) for mutant, verdict in zip(mutants, verdicts, strict=True)]
    text, met = render(all_tried, [], [])
    assert not met and "9 of 11 killed, 81.8%" in text and text.count("survived: a.py, f0") == 2
    text, met = render(all_tried, [excuse(mutants[-1]), excuse(mutants[0])], [])
    assert met and "9 of 10 killed, 90.0%" in text and text.count("survived: a.py, f0") == 1
    assert "no value depends on it" in text and "counted as well, they make it 81.8%" in text
    assert f"excused, but killed; remove the entry: a.py, f0, {mutants[0].operator}" in text
    text, met = render([*all_tried[:9], tried(mutants[9], "not run")], [], [])
    assert not met and "1 have no result: type the same command again" in text
    assert re.search(r"^group +9 +9 +0 +1$", text, re.MULTILINE)


def test_report_gives_the_entry_that_excuses_a_survivor(tmp_path: Path) -> None:
    mutant = generate('def f(a, b):\n    return {"it\'s": a + 1, 2: a + 1}[b]\n', "a.py")[-1]
    text, _ = render([Tried("group", mutant, (), b'def f(a, b):\n    return {"it\'s": a + 1, 2: a + 1}[b]\n', "survived")], [], [])
    entry = next(line for line in text.splitlines() if "to excuse it: " in line).split("to excuse it: ")[1]
    (tmp_path / "survivors.yaml").write_text(f"- {entry.replace('...', 'it is never read')}\n")
    assert [one.identity for one in read_excuses(tmp_path / "survivors.yaml")] == [mutant.identity]
    assert "-     return" in text and "+     return" in text


def test_read_excuses_checks_the_list(tmp_path: Path) -> None:
    good = asdict(excuse(generate(source(0), "a.py")[0]))
    list_of = tmp_path / "survivors.yaml"
    for entries, wanted in (
        ([{**good, "line": 3}], "entry 1: .*'line'"),
        ([{**good, "reason": " "}], "entry 1 .*no reason"),
        ([good, good], "more than once"),
    ):
        list_of.write_text(yaml.safe_dump(entries))
        with pytest.raises(TargetError, match=wanted):
            read_excuses(list_of)
    assert all(excuse.reason for excuse in read_excuses())
