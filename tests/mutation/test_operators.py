"""Mutants of small sources: what each operator changes, what none of them touches, and that an identity survives moving."""

import ast
from pathlib import Path

import pytest

from tests.mutation.operators import generate
from tests.mutation.targets import GROUPS, mutants_of, sample

ROOT = Path(__file__).parents[2]


def changes(code: str, operator: str) -> list[str]:
    """Return the mutated code of every mutant of one operator."""
    return [mutant.mutated for mutant in generate(code, "file.py") if mutant.operator == operator]


@pytest.mark.parametrize(
    "operator, code, mutated",
    [
        ("sign", "y = a + b", ["a - b"]),
        ("sign", "y = -a * ~b", ["a", "b"]),
        ("sign", "y -= a", ["y += a"]),
        ("arithmetic", "y = a * b // c", ["a * b * c", "a / b"]),
        ("arithmetic", "y = a & b", ["a | b"]),
        ("constant", "y = f(3, 0.25, 0.0, True)", ["4", "0.5", "1.0", "False"]),
        ("comparison", "y = a < b == c", ["a >= b == c", "a < b != c"]),
        ("comparison", "y = a and not b", ["a or not b", "b"]),
        ("off_by_one", "y = a <= b", ["a < b"]),
        ("off_by_one", "y = range(n)", ["range(n - 1)"]),
        ("off_by_one", "y = x[a:b, :c]", ["a + 1:b", "a:b - 1", ":c - 1"]),
        ("dropped_term", "y = a + b - c", ["a + b", "a", "b"]),
        ("dropped_term", "y = a and b and c", ["b and c", "a and c", "a and b"]),
        ("dropped_term", "y = x.sqrt() + math.sqrt(x)", ["x.sqrt()", "math.sqrt(x)", "x"]),
        ("dropped_term", "x.zero_()\nx += 1", ["pass", "pass"]),
        ("dropped_term", "y = [a for a in x if a]", ["[a for a in x]"]),
        ("swapped_arguments", "y = f(a, b, c, d=d)", ["f(b, a, c, d=d)", "f(a, c, b, d=d)"]),
        ("swapped_branches", "y = a if c else b", ["b if c else a"]),
        ("swapped_branches", "y = 'cuda' if c else 'cpu'", ["'cpu' if c else 'cuda'"]),
        ("swapped_branches", "if c:\n    y = 1\nelse:\n    y = 2", ["not c"]),
    ],
)
def test_operator_gives_the_changed_code(operator: str, code: str, mutated: list[str]) -> None:
    assert changes(code, operator) == mutated


@pytest.mark.parametrize(
    "code",
    [
        '"""Text of 3 - 2."""',
        "y = 'a' + 'b'",
        "raise ValueError(f'{n + 1} of {len(x)}', 2)",
        "assert n + 1 == 2",
        "self.log('loss', 1 - x, on_step=True)",
        "warnings.warn('text', stacklevel=2)",
        "print(1 + 1)",
        "def f(x: Literal[1, 2], y: tuple[int, 3]) -> Literal[4]: ...",
        "x: Annotated[int, 5]",
        "def __repr__(self):\n    return self.name[1:]",
        "if TYPE_CHECKING:\n    y = 1",
        "if __name__ == '__main__':\n    y = 1",
        "@lru_cache(maxsize=2)\ndef f(): ...",
        "y = isinstance(a, b)",
        "y = max(a, b)",
        "y = 1e-8",
        "y = zip(a, strict=True)",
        "y = [a] + [b]",
        "y = 'by one rank' if a else f'by {b}'",
    ],
)
def test_operators_never_change_text_types_and_errors(code: str) -> None:
    assert [mutant.mutated for mutant in generate(code, "file.py")] == []


def test_mutant_changes_its_code_and_no_other_byte() -> None:
    source = '# π is not 3\ndef f(a, b):\n    """Öffnet."""\n    return (a - b) * 2  # reason\n'
    mutants = {mutant.mutated: mutant.apply(source.encode()).decode() for mutant in generate(source, "file.py")}
    assert mutants["a + b"] == source.replace("a - b", "(a + b)")
    assert mutants["3"] == source.replace("* 2", "* 3")


def test_mutants_of_the_tree_are_valid_and_differ_from_it() -> None:
    for mutants in sample(mutants_of(ROOT, GROUPS), 160, seed=1).values():
        for mutant in mutants:
            source = (ROOT / mutant.path).read_bytes()
            assert ast.dump(ast.parse(mutant.apply(source))) != ast.dump(ast.parse(source)), mutant


def test_mutant_identity_survives_moving_lines_formatting_and_files() -> None:
    source = "class A:\n    def f(self, a):\n        return a[1:] + a[:1]\n\n    def g(self):\n        return 1\n"
    moved = (
        "import os\n\nB = 7\n\n\nclass A:\n    def g(self):\n        return 1\n\n    def f(self, a):\n"
        "        # why\n        return (\n            a[1:]\n            + a[:1]\n        )\n"
    )
    before = {mutant.identity for mutant in generate(source, "a.py")}
    after = {mutant.identity for mutant in generate(moved, "folder/b.py")}
    assert after - before == {("<module>", "constant", "7", "8", 1)} and before <= after
    assert {identity for identity in before if identity[2] == "1"} == {
        ("A.f", "constant", "1", "2", 1),
        ("A.f", "constant", "1", "2", 2),
        ("A.g", "constant", "1", "2", 1),
    }
