"""Read imports and lengths out of a source tree, for tests of its layout. Nothing of the tree is imported.

Every function takes the root of the tree, so that tests can give one with a planted fault.
"""

import ast
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

FOLDERS = ("walt_pl", "stages", "datamodules")


def modules(root: Path, folders: Sequence[str] = FOLDERS) -> dict[str, Path]:
    """Return the files of a tree by module name.

    Raises:
        ValueError: there are none, so that no rule would be checked.
    """
    found = {module_of(path, root): path for folder in folders for path in sorted((root / folder).rglob("*.py"))}
    if not found:
        raise ValueError(f"{root}: no Python file in {', '.join(folders)}")
    return found


def module_of(path: Path, root: Path) -> str:
    """Return the name under which a file is imported; that of a package for its `__init__.py`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def parse(text: str) -> ast.Module:
    """Return the syntax tree of a file's text. It is shared: forty tests read every file."""
    return ast.parse(text)


def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path, root: Path, typing: bool = True) -> set[str]:
    """Return every name that a file imports, also inside functions: modules, and what is taken from them.

    Args:
        path: the file.
        root: of its tree.
        typing: also imports under `if TYPE_CHECKING`, which never run.
    """
    package = module_of(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    return set(_imports(path.read_text(encoding="utf-8"), tuple(package), typing))


@functools.cache
def _imports(text: str, package: tuple[str, ...], typing: bool) -> frozenset[str]:
    """Return the names that a text of a package imports, see `imports_of`."""
    found: set[str] = set()
    for node in _nodes(parse(text), typing):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            words = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "name")]
            found |= {word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)}
    return frozenset(found)


def _nodes(node: ast.AST, typing: bool) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not typing and isinstance(child, ast.If) and ast.unparse(child.test).split(".")[-1] == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _nodes(other, typing)
        else:
            yield from _nodes(child, typing)


def is_within(module: str, names: Iterable[str]) -> bool:
    """Return whether a module is one of the named modules or packages, or inside one."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def floor_of(module: str, floors: Mapping[str, int]) -> int | None:
    """Return the floor of one of our modules; None for other people's, and for `walt_pl` itself, which may be imported anywhere."""
    names = [name for name in floors if is_within(module, [name])]
    return floors[max(names, key=len)] if names else None


def upward_imports(path: Path, root: Path, floors: Mapping[str, int]) -> list[str]:
    """Return what a file imports from above its own floor.

    Raises:
        ValueError: its module has no floor.
    """
    module = module_of(path, root)
    own = floor_of(module, floors)
    if own is None:
        raise ValueError(f"{module} has no floor: give it one in this test and in the README's map")
    return sorted(name for name in imports_of(path, root) if (floor_of(name, floors) or 0) > own)


def find_circle(root: Path, folders: Sequence[str] = FOLDERS) -> list[str]:
    """Return the modules of one circle of imports, the first one again at the end; none where there is no circle."""
    files = modules(root, folders)
    graph = {module: (imports_of(path, root, typing=False) & files.keys()) - {module} for module, path in files.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def importers(root: Path, names: Sequence[str], allowed: Sequence[str], folders: Sequence[str] = FOLDERS) -> list[str]:
    """Return the modules that import one of `names`, or from inside one, and are not within `allowed`."""
    return [
        module
        for module, path in modules(root, folders).items()
        if not is_within(module, allowed) and any(is_within(name, names) for name in imports_of(path, root))
    ]


def long_files(root: Path, limit: int, folders: Sequence[str] = FOLDERS) -> dict[str, int]:
    """Return the files of more than `limit` lines, and how many they have."""
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules(root, folders).items()}
    return {module: count for module, count in lines.items() if count > limit}


def long_functions(root: Path, limit: int, folders: Sequence[str] = FOLDERS) -> dict[str, int]:
    """Return the functions whose body, without signature and docstring, has more than `limit` lines."""
    found = {}
    for module, path in modules(root, folders).items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[ast.get_docstring(node, clean=False) is not None :]
                count = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                if count > limit:
                    found[f"{module}.{node.name}"] = count
    return found


def unclear_docstrings(root: Path, folders: Sequence[str] = FOLDERS) -> list[str]:
    """Return the docstrings, and the strings under fields, that begin with What, Which, Who, How or The same."""
    opening = re.compile(r"\s*(What|Which|Who|Whose|How|The same)\b")
    return [
        f"{module}:{node.lineno}"
        for module, path in modules(root, folders).items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and opening.match(str(node.value.value))
    ]


def callers(
    root: Path, functions: Sequence[str], allowed: Sequence[str], folders: Sequence[str] = FOLDERS, exact: bool = False
) -> list[str]:
    """Return the modules that call one of `functions`, such as `os.fsync` or `.rename`, and are not within `allowed`.

    With `exact`, only calls of these names and of names imported from their modules count: `from json import loads` hides nothing.
    """
    found = []
    for module, path in modules(root, folders).items():
        calls = _calls(path.read_text(encoding="utf-8"))
        if exact:
            found += [module] if not is_within(module, allowed) and _uses(path, root, functions, calls) else []
        elif not is_within(module, allowed) and any(call == name or call.endswith(name) for call in calls for name in functions):
            found.append(module)
    return found


@functools.cache
def _calls(text: str) -> tuple[str, ...]:
    """Return the called expressions of a text, such as `os.fsync`."""
    return tuple(ast.unparse(node.func) for node in ast.walk(parse(text)) if isinstance(node, ast.Call))


def _uses(path: Path, root: Path, functions: Sequence[str], calls: Iterable[str]) -> bool:
    """Return whether a file calls one of `functions` by its whole name, or imports it by its last name."""
    return any(call in functions for call in calls) or any(name in functions for name in imports_of(path, root))
