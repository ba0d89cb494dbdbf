"""docs/SECURITY.md lists every place where a value reaches a file, an import, a process or an address, and the list is complete."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.house_rules import modules
from tests.helpers.sinks import sinks

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "SECURITY.md"
KINDS = {"open", "remove", "import", "subprocess", "URL"}


def rows() -> list[tuple[str, list[str], list[str], str, str, str]]:
    """Return the rows of the table of places: module, functions, kinds, origin of the value, check, test."""
    text = PAGE.read_text(encoding="utf-8").partition("## Every place")[2].partition("\n## ")[0]
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `"):
            module, functions, kinds, origin, check, test = cells
            found.append((module.strip("`"), re.findall(r"`([^`]+)`", functions), kinds.split(", "), origin, check, test))
    return found


@cache
def names_of(path: Path) -> set[str]:
    """Return the qualified names of functions and classes of a file."""
    found: set[str] = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(f"{prefix}{child.name}")
                visit(child, f"{prefix}{child.name}.")
            elif not isinstance(child, ast.expr):
                visit(child, prefix)

    visit(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


def test_security_page_lists_every_place_that_reaches_out() -> None:
    listed = {(f"{module}.{function}", kind) for module, functions, kinds, *_ in rows() for function in functions for kind in kinds}
    found = sinks(ROOT)
    assert {kind for _, kind in listed} <= KINDS
    assert found - listed == set(), "not in docs/SECURITY.md: add a row with the check before it"
    assert listed - found == set(), "no longer in the code: remove it from docs/SECURITY.md"


def test_security_page_names_checks_that_exist() -> None:
    files = modules(ROOT)
    for module, functions, _, origin, check, _ in rows():
        named = re.findall(r"`(walt_pl[\w.]+|datamodules[\w.]+|stages[\w.]+)`", check)
        assert named or "stranger" not in origin, f"{module} {functions}: a value of a stranger needs a check"
        for name in named:
            owner = max((known for known in files if name.startswith(f"{known}.")), key=len, default="")
            assert owner and name.removeprefix(f"{owner}.") in names_of(files[owner]), f"{module} {functions}: there is no {name}"


def test_security_page_names_tests_that_exist() -> None:
    for module, functions, _, origin, _, test in rows():
        named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", test)
        assert named or "stranger" not in origin, f"{module} {functions}: a value of a stranger needs a test"
        for file, function in named:
            assert (ROOT / file).is_file() and function in names_of(ROOT / file), f"{module} {functions}: there is no {file}::{function}"


def value_of(text: str) -> float:
    """Return the number of a cell, such as "64 MiB", "2^31-1" or "50,000"."""
    number, _, unit = text.replace(",", "").partition(" ")
    if found := re.fullmatch(r"2\^(\d+)(-1)?", number):
        return 2 ** int(found[1]) - bool(found[2])
    return float(number) * {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}[unit]


def test_security_page_has_every_limit_with_its_value() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## Limits")[2].partition("\n## ")[0]
    listed = {name: value_of(value) for value, name in re.findall(r"\| ([^|]+) \| `(walt_pl[\w.]+)` \|", text)}
    for name, value in listed.items():
        module, _, constant = name.rpartition(".")
        assert getattr(importlib.import_module(module), constant) == value, name
    found = {
        f"{module}.{target.id}"
        for module, path in modules(ROOT).items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.startswith("MAX_")
    }
    assert found <= listed.keys(), "a limit that docs/SECURITY.md does not list"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(x):\n    return torch.load(x)", {("walt_pl.a.f", "open")}),
        ("class C:\n    def f(self, p):\n        with p.open() as g:\n            pass", {("walt_pl.a.C.f", "open")}),
        ("import_module(x)", {("walt_pl.a", "import")}),
        ("def f(c):\n    subprocess.run(c)", {("walt_pl.a.f", "subprocess")}),
        ("def f(u):\n    return list(tarfile_samples(u))", {("walt_pl.a.f", "URL")}),
        ("def f(p):\n    shutil.rmtree(p)", {("walt_pl.a.f", "remove")}),
        ("def f(m):\n    m.eval()\n    Manifest.open(m)\n    self.run(m)\n    yaml.load(m)", set()),
    ],
    ids=range(7),
)
def test_sinks_finds_a_planted_call(tmp_path: Path, source: str, expected: set[tuple[str, str]]) -> None:
    (tmp_path / "walt_pl").mkdir()
    (tmp_path / "walt_pl" / "a.py").write_text(source)
    assert sinks(tmp_path, ["walt_pl"]) == expected
