"""Generate mutants: copies of a source file in which one expression or statement is changed.

A mutant is identified by its content: function, operator, original code, mutated code, and a count where these occur more than once.
No identity names a file or a line, so moving a function or adding lines above it changes nothing.
"""

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SPARED_FUNCTIONS = frozenset({"__repr__", "__str__"})
LOGGING = frozenset({"log_dict", "print", "warn", "warning", "info", "debug", "rank_zero_info", "rank_zero_warn"})
"""Calls whose arguments reach people only. ``log`` is one if its first argument is text, and a logarithm otherwise."""
SPARED_KEYWORDS = frozenset({"stacklevel", "maxsize", "prog_bar", "non_blocking", "flush", "indent"})
"""Arguments that change speed or looks, but no value."""
NEVER_SWAPPED = frozenset({"isinstance", "issubclass", "getattr", "hasattr", "setattr", "cast", "TypeVar", "partial", "map", "filter"})
"""Swapped arguments of these raise a TypeError at once: such a mutant says nothing about a test."""
SYMMETRIC = frozenset({"max", "min", "gcd", "lcm", "maximum", "minimum", "equal", "allclose"})
DROPPED_CALLS = frozenset({"sqrt", "square", "abs", "exp", "log", "clamp", "flip", "cumprod", "cumsum", "roll", "neg"})
"""Methods that give a tensor of the same shape, so that the code without the call still runs."""
SMALLEST = 1e-5
"""Smaller constants only guard against a division by zero: twice of them is as good."""

NEGATED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    **{ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
}
SHIFTED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
SIGNS: dict[type[ast.operator], type[ast.operator]] = {ast.Add: ast.Sub, ast.Sub: ast.Add}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    **{ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult},
    **{ast.RShift: ast.LShift, ast.LShift: ast.RShift, ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitOr},
}
SEQUENCES = (ast.List, ast.Tuple, ast.ListComp, ast.JoinedStr, ast.Dict, ast.Set)


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    path: str
    """File, relative to the project. Not part of the identity."""
    function: str
    """Qualified name in the file, e.g. ``Guidance.weight``; the class, or ``<module>``, outside of functions."""
    operator: str
    original: str
    mutated: str
    occurrence: int
    """1, 2, ... where function, operator, original and mutated code are equal."""
    start: int
    """First byte of the original code in the file."""
    end: int
    replacement: str
    """The mutated code as it is written into the file, in parentheses where it needs them."""

    @property
    def identity(self) -> tuple[str, str, str, str, int]:
        return self.function, self.operator, self.original, self.mutated, self.occurrence

    def apply(self, source: bytes) -> bytes:
        """Return the mutated file. All other bytes stay, comments and docstrings included."""
        return source[: self.start] + self.replacement.encode() + source[self.end :]


def generate(source: str, path: str, seen: Counter[tuple[str, str, str, str]] | None = None) -> list[Mutant]:
    """Return every mutant of a source file, in the order of the code.

    Args:
        source: Python code.
        path: its file.
        seen: counts occurrences over several files; in this file alone where it is None.
    """
    seen = Counter() if seen is None else seen
    offsets = [0]
    for line in source.encode().splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    mutants = []
    for function, operator, node, changed in _Sites().find(ast.parse(source)):
        key = (function, operator, ast.unparse(node), ast.unparse(changed))
        seen[key] += 1
        assert isinstance(node, (ast.expr, ast.stmt)) and node.end_lineno is not None and node.end_col_offset is not None
        start, end = offsets[node.lineno - 1] + node.col_offset, offsets[node.end_lineno - 1] + node.end_col_offset
        mutants.append(Mutant(path, *key, seen[key], start, end, _replacement(changed)))
    return mutants


def _replacement(node: ast.AST) -> str:
    """Return code that can stand in the place of the original, whatever is around it."""
    text = ast.unparse(node)
    return text if isinstance(node, (ast.stmt, ast.Slice, ast.Name, ast.Call, ast.Attribute, ast.Subscript, ast.Constant)) else f"({text})"


Site = tuple[str, str, ast.AST, ast.AST]


class _Sites(ast.NodeVisitor):
    """Collect (function, operator, node, changed node) of all that decides a value; leave out text, types, asserts and errors."""

    def find(self, tree: ast.Module) -> list[Site]:
        self.names: list[str] = []
        self.sites: list[Site] = []
        self.visit(tree)
        return self.sites

    def visit(self, node: ast.AST) -> None:
        if _spared(node):
            return
        for name, operator in OPERATORS.items():
            for changed in operator(node):
                self._add(name, node, changed)
        super().visit(node)

    def _add(self, operator: str, node: ast.AST, changed: ast.AST) -> None:
        self.sites.append((".".join(self.names) or "<module>", operator, node, changed))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_named(node.name, node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name not in SPARED_FUNCTIONS:
            defaults = [default for default in (*node.args.defaults, *node.args.kw_defaults) if default is not None]
            self._visit_named(node.name, [*defaults, *node.body])

    def visit_If(self, node: ast.If) -> None:
        # Comparisons and "not" have their opposite from the operator ``comparison``.
        if not isinstance(node.test, ast.Compare) and not (isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)):
            self._add("swapped_branches", node.test, ast.UnaryOp(ast.Not(), node.test))
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        name = _called(node)
        self.visit(node.func)
        for argument in node.args[1:] if name == "cast" else node.args:
            self.visit(argument)
        for keyword in node.keywords:
            if keyword.arg not in SPARED_KEYWORDS and name != "zip":
                self.visit(keyword.value)

    def _visit_named(self, name: str, nodes: list[ast.expr | ast.stmt] | list[ast.stmt]) -> None:
        self.names.append(name)
        for node in nodes:
            self.visit(node)
        self.names.pop()


def _spared(node: ast.AST) -> bool:
    """Tell whether a node and all in it reach people or type checkers only."""
    if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, ast.Call):
        text = bool(node.args) and (isinstance(node.args[0], ast.JoinedStr) or _is_string(node.args[0]))
        return _called(node) in LOGGING or (_called(node) == "log" and text)
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in (test := ast.unparse(node.test)) or "__name__" in test
    return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal"


def _called(node: ast.Call) -> str:
    """Return the last name of what is called, e.g. ``sqrt`` of ``math.sqrt(x)``."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))


def _is_prose(node: ast.AST) -> bool:
    """Tell whether a node is text of several words, or none: a part of a message, not a name that decides something."""
    return isinstance(node, ast.JoinedStr) or (_is_string(node) and (" " in str(node.value) or not node.value))  # type: ignore[attr-defined]


def _is_number(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float))


def _numeric(node: ast.AST) -> bool:
    """Tell whether a binary operation may be one of numbers or tensors: text and lists have no other operator."""
    return isinstance(node, ast.BinOp) and not any(isinstance(side, SEQUENCES) or _is_string(side) for side in (node.left, node.right))


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


# ---- Operators: each gives the changed forms of a node ----------------------------------------------------------------


def _sign(node: ast.AST) -> Iterator[ast.AST]:
    """a + b to a - b, a - b to a + b, -a to a, ~a to a; += and -= likewise."""
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in SIGNS and (isinstance(node, ast.AugAssign) or _numeric(node)):
        yield _with(node, op=SIGNS[type(node.op)]())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Invert)):
        yield node.operand


def _arithmetic(node: ast.AST) -> Iterator[ast.AST]:
    """a * b to a / b, a // b to a * b, a % b to a // b, a ** b to a * b, shifts and bits likewise."""
    if _numeric(node) and type(node.op) in ARITHMETIC:  # type: ignore[attr-defined]
        yield _with(node, op=ARITHMETIC[type(node.op)]())  # type: ignore[attr-defined]


def _constant(node: ast.AST) -> Iterator[ast.AST]:
    """A whole number to the next one, a fraction to twice of it (0.0 to 1.0), True to False."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float) and not 0 < node.value <= SMALLEST:
        yield ast.Constant(node.value * 2 or 1.0)


def _comparison(node: ast.AST) -> Iterator[ast.AST]:
    """a < b to a >= b, a == b to a != b, is, in, not; and to or."""
    if isinstance(node, ast.Compare):
        yield from _compared(node, NEGATED)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _off_by_one(node: ast.AST) -> Iterator[ast.AST]:
    """a < b to a <= b; range(n) to range(n - 1); x[a:b] to x[a + 1:b] and x[a:b - 1]. Numbers are changed by ``constant``."""
    if isinstance(node, ast.Compare):
        yield from _compared(node, SHIFTED)
    elif isinstance(node, ast.Call) and _called(node) in ("range", "arange") and node.args:
        last = min(len(node.args), 2) - 1
        if not _is_number(node.args[last]) and not isinstance(node.args[last], ast.Starred):
            yield _with(node, args=[*node.args[:last], _plus(node.args[last], -1), *node.args[last + 1 :]])
    elif isinstance(node, ast.Slice):
        for name, by in (("lower", 1), ("upper", -1)):
            bound = getattr(node, name)
            if bound is not None and not _is_number(bound):
                yield _with(node, **{name: _plus(bound, by)})


def _compared(node: ast.Compare, changes: dict[type[ast.cmpop], type[ast.cmpop]]) -> Iterator[ast.AST]:
    for place, op in enumerate(node.ops):
        if type(op) in changes:
            yield _with(node, ops=[*node.ops[:place], changes[type(op)](), *node.ops[place + 1 :]])


def _plus(node: ast.expr, by: int) -> ast.expr:
    return ast.BinOp(node, ast.Add() if by > 0 else ast.Sub(), ast.Constant(abs(by)))


def _dropped_term(node: ast.AST) -> Iterator[ast.AST]:
    """A term, a factor, a condition, a call such as ``.sqrt()``, an in-place change, a call without a result."""
    if _numeric(node):
        yield node.left  # type: ignore[attr-defined]
        if isinstance(node.op, (ast.Add, ast.Mult, ast.BitAnd)):  # type: ignore[attr-defined]
            yield node.right  # type: ignore[attr-defined]
    elif isinstance(node, ast.BoolOp):
        for place in range(len(node.values)):
            rest = [*node.values[:place], *node.values[place + 1 :]]
            yield rest[0] if len(rest) == 1 else _with(node, values=rest)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED_CALLS:
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id in ("math", "torch", "np", "F")):
            yield node.func.value
    elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not _spared(node.value)):
        yield ast.Pass()
    elif isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        for place, loop in enumerate(node.generators):
            if loop.ifs:
                yield _with(node, generators=[*node.generators[:place], _with(loop, ifs=[]), *node.generators[place + 1 :]])


def _swapped_arguments(node: ast.AST) -> Iterator[ast.AST]:
    """f(a, b) to f(b, a), each two neighbours."""
    if not isinstance(node, ast.Call) or _called(node) in NEVER_SWAPPED | SYMMETRIC:
        return
    for place, pair in enumerate(zip(node.args, node.args[1:], strict=False)):
        if not any(isinstance(argument, ast.Starred) or _is_string(argument) for argument in pair) and ast.unparse(pair[0]) != ast.unparse(
            pair[1]
        ):
            yield _with(node, args=[*node.args[:place], pair[1], pair[0], *node.args[place + 2 :]])


def _swapped_branches(node: ast.AST) -> Iterator[ast.AST]:
    """``a if c else b`` to ``b if c else a``; ``visit_If`` does so to statements."""
    if isinstance(node, ast.IfExp) and not (_is_prose(node.body) and _is_prose(node.orelse)):
        yield _with(node, body=node.orelse, orelse=node.body)


OPERATORS: dict[str, Callable[[ast.AST], Iterator[ast.AST]]] = {
    "sign": _sign,
    "arithmetic": _arithmetic,
    "constant": _constant,
    "comparison": _comparison,
    "off_by_one": _off_by_one,
    "dropped_term": _dropped_term,
    "swapped_arguments": _swapped_arguments,
    "swapped_branches": _swapped_branches,
}
