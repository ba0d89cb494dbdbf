"""Find the tests that are near a source file, from imports and from the mirrored layout of tests/.

No table names files: what is moved or renamed together with its tests keeps them.
"""

import ast
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

LEFT_OUT = frozenset({"data", "runs", "weights", "build", "dist"})
"""Folders of the project that hold no source."""
PROCESSES = frozenset({"subprocess", "multiprocessing", "os.fork", "pty"})
"""Modules and functions that start a process."""
MOST_FILES = 6
"""Test files that are run for a mutant, the nearest ones: those behind them are seldom what kills it."""

Name = tuple[Path, str]
"""A function, class or constant of a file."""


@dataclass
class Source:
    """A Python file, and what can be seen in it without running it."""

    path: Path
    content: bytes
    tree: ast.Module
    imports: dict[str, str] = field(default_factory=dict)
    """Dotted name of what each name stands for, also of imports inside functions."""
    modules: set[str] = field(default_factory=set)
    """Dotted names that are imported, each with its last part, which may be a module or a name in it."""

    @classmethod
    def read(cls, path: Path) -> "Source":
        content = path.read_bytes()
        source = cls(path, content, ast.parse(content))
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                for name in node.names:
                    source.modules.add(name.name)
                    source.imports[name.asname or name.name.split(".")[0]] = name.name if name.asname else name.name.split(".")[0]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for name in node.names:
                    source.modules.add(f"{node.module}.{name.name}")
                    source.imports[name.asname or name.name] = f"{node.module}.{name.name}"
        return source

    @cached_property
    def definitions(self) -> dict[str, set[str]]:
        """Names that each function or class of the file uses; a function's arguments are among them, since they may be fixtures."""
        found = {}
        for node in self.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                parts = list(ast.walk(node))
                names = {part.id for part in parts if isinstance(part, ast.Name)} | {
                    part.arg for part in parts if isinstance(part, ast.arg)
                }
                found[node.name] = names | {ast.unparse(part) for part in parts if isinstance(part, ast.Attribute)}
        return found


@dataclass(frozen=True)
class NearTests:
    """A file of tests to run for a source file."""

    path: str
    """Relative to the project."""
    mirrored: bool
    """Say whether it has the source file's name and lies in the mirrored folder."""
    left_out: frozenset[str]
    """Tests of it that are not run."""
    starts_processes: bool
    """Say whether tests that are run do so."""


class Project:
    """The Python files below a folder.

    Args:
        root: folder of the project; tests are in its folder ``tests``, which mirrors the rest.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        folders = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != "." and path.name not in LEFT_OUT]
        files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
        self.sources = {path: Source.read(path) for path in files}
        self._files = {_module(path.relative_to(root)): path for path in files}
        self.tests = [path for path in files if path.relative_to(root).parts[0] == "tests" and path.name.startswith("test_")]
        self.imported = lru_cache(maxsize=None)(self._find_imported)
        self._starts = lru_cache(maxsize=None)(self._find_starts)
        self._near: dict[Path, list[NearTests]] = {}

    # ---- Imports ------------------------------------------------------------------------------------------------------

    def origin(self, name: str) -> Path | None:
        """Return the file of a dotted name: a module, or a name in a module, followed through files that only pass it on."""
        if name in self._files:
            return self._files[name]
        module, _, last = name.rpartition(".")
        path = self._files.get(module)
        passed = self.sources[path].imports.get(last) if path is not None else None
        return (self.origin(passed) if passed is not None and passed != name else None) or path

    def _find_imported(self, path: Path) -> frozenset[Path]:
        """Return the project's files whose names a file imports, itself or, if it is a test, through helpers of tests."""
        found = {file for name in self.sources[path].modules if (file := self.origin(name)) is not None}
        helpers = {file for file in found if self._is_helper(file)} - {path}
        return frozenset(found.union(*(self.imported(helper) for helper in helpers)))

    def _is_helper(self, path: Path) -> bool:
        return self.root / "tests" in path.parents and not path.name.startswith("test_") and path.name != "conftest.py"

    # ---- Near tests ---------------------------------------------------------------------------------------------------

    def near(self, source: Path, starting: bool = False) -> list[NearTests]:
        """Return the tests to run for a source file, the nearest file first.

        1. The file of its name in the mirrored folder, then those of that folder that import it.
        2. Others that import it; the fewer files a test imports, the earlier.
        3. Those of the mirrored folder that import a file that imports it; of any folder, where there is nothing else.

        Tests that start a process cost seconds or minutes each and are left out, but not where all tests of the file of its name, or of
        those in the mirrored folder, or of all, do so. Such a file comes last.

        Args:
            source: file of code.
            starting: keep the tests of the mirrored folder that start processes, for code that shows its faults in several processes only.
        """
        if source not in self._near:
            ranks = self._ranks(source)
            left_out = {test: frozenset(name for name in self._tests_of(test) if self._starts((test, name))) for test in ranks}
            files = sorted(ranks, key=lambda test: (left_out[test] == self._tests_of(test), ranks[test], len(self.imported(test)), test))
            quick = {test for test in files if left_out[test] != self._tests_of(test)}
            whole = set(files) if not quick else set()
            for rank in (0, 1):
                nearest = {test for test in files if ranks[test] <= rank}
                whole |= nearest if starting or not nearest & quick else set()
            chosen = [test for test in files if test in quick | whole]
            self._near[source] = [self._chosen(test, ranks[test] == 0, left_out[test], test in whole) for test in chosen[:MOST_FILES]]
        return self._near[source]

    def _chosen(self, test: Path, mirrored: bool, starting: frozenset[str], whole: bool) -> NearTests:
        return NearTests(self._name(test), mirrored, frozenset() if whole else starting, starts_processes=whole and bool(starting))

    def _ranks(self, source: Path) -> dict[Path, int]:
        name = source.parent.name if source.name == "__init__.py" else source.stem
        mirror = self._mirror(source)
        ranks = {}
        for test in self.tests:
            if source in self.imported(test):
                named = test.stem == f"test_{name}" or test.stem.startswith(f"test_{name}_")
                ranks[test] = 2 if test.parent != mirror else 0 if named else 1
            elif any(source in self.imported(file) for file in self.imported(test)):
                ranks[test] = 3 if test.parent == mirror != self.root / "tests" else 4
        far = 4 if any(rank < 3 for rank in ranks.values()) else 5
        return {test: rank for test, rank in ranks.items() if rank < far}

    def _mirror(self, source: Path) -> Path:
        """Return the folder of a source file's tests: tests/stages for stages/, tests/blocks for walt_pl/blocks/."""
        parts = source.parent.relative_to(self.root).parts
        whole = self.root.joinpath("tests", *parts)
        return whole if whole.is_dir() else self.root.joinpath("tests", *parts[1:])

    # ---- Tests that start processes -----------------------------------------------------------------------------------

    def _tests_of(self, test: Path) -> set[str]:
        return {name for name in self.sources[test].definitions if name.startswith("test_")}

    def _find_starts(self, name: Name) -> bool:
        """Tell whether a function starts a process, itself or through functions, fixtures and helpers of tests."""
        seen: set[Name] = set()
        open_names = [name]
        while open_names:
            path, used = current = open_names.pop()
            if current in seen:
                continue
            seen.add(current)
            for inner in self.sources[path].definitions.get(used, set()):
                head, *rest = inner.split(".")
                dotted = ".".join([self.sources[path].imports.get(head, head), *rest])
                if any(dotted == start or dotted.startswith(start + ".") for start in PROCESSES):
                    return True
                open_names += self._defined(path, inner, dotted)
        return False

    def _defined(self, path: Path, name: str, dotted: str) -> list[Name]:
        """Return where in tests/ a name of a test file is defined: there, in a helper, or as a fixture of a conftest.py."""
        if name in self.sources[path].definitions:
            return [(path, name)]
        module, _, last = dotted.rpartition(".")
        helper = self._files.get(module)
        if helper is not None and self.root / "tests" in helper.parents:
            return [(helper, last)]
        conftests = [folder / "conftest.py" for folder in path.parents if folder.is_relative_to(self.root)]
        return [(file, name) for file in conftests if name in getattr(self.sources.get(file), "definitions", {})]

    # ---- Contents -----------------------------------------------------------------------------------------------------

    def digest(self, files: Iterable[str] | None = None) -> str:
        """Return a hash of files and of the test helpers that they import; of all files but this tool's, where none are named."""
        own = self.root / "tests" / "mutation"
        named = [path for path in self.sources if path.parent != own] if files is None else [self.root / file for file in files]
        helpers = {file for path in named for file in self.imported(path) if self._is_helper(file)}
        digest = hashlib.sha256()
        for path in [*named, *sorted(helpers)]:
            digest.update(f"{self._name(path)}\0".encode() + self.sources[path].content + b"\0")
        return digest.hexdigest()

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _dotted(node: ast.AST) -> str:
    """Return a name such as ``os.fork``, or that of an argument; nothing for other nodes."""
    if isinstance(node, ast.Attribute):
        head = _dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else ""


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
