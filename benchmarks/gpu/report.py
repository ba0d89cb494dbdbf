"""A page from the JSON of a measurement."""

import ast
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PARTS = Path(__file__).parent / "parts"
FACTS = ("torch", "cuda", "driver", "triton", "python", "commit")


def describe_parts() -> dict[str, str]:
    """Return the docstring of each part by its name. No part is imported."""
    files = sorted(path for path in PARTS.glob("*.py") if path.stem != "__init__")
    return {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in files}


def render(result: Mapping[str, Any]) -> str:
    """Return the report of a measurement in Markdown."""
    facts = result["facts"]
    lines = [f"# {facts['card']}, {facts['date']}", ""]
    if facts["quick"]:
        lines += ["Tiny sizes on a CPU (`--quick`): these figures only show that the code runs.", ""]
    if facts["note"]:
        lines += [facts["note"], ""]
    memory = f"{facts['memory_gb']} GB, " if facts["memory_gb"] else ""
    lines += [memory + ", ".join(f"{name} {facts[name] or 'unknown'}" for name in FACTS) + ".", ""]
    if result["goals"]:
        lines += ["## Goals", "", *table(["goal", "value", "wanted", ""], map(_goal_cells, result["goals"])), ""]
    for name, part in sorted(result["parts"].items()):
        lines += [f"## {name}", "", part["purpose"], ""]
        lines += [*_rows(part["rows"]), *(f"- {row}: skipped, {_one_line(reason)}" for row, reason in part["skipped"].items())]
        lines += [f"- {row}: failed: {_one_line(reason)}" for row, reason in part["failed"].items()]
        if part["state"] == "timeout" or part["error"]:
            lines += ["", f"Ended by {part['state']} after {_text(part['seconds'])} s:", "", "```", part["error"], "```"]
        lines += [""] if not part["seconds"] else ["", f"{_text(part['seconds'])} s.", ""]
    return "\n".join(lines)


def _goal_cells(goal: Mapping[str, Any]) -> list[str]:
    verdict = {None: "not measured", True: "met", False: "missed"}[goal["met"]]
    return [goal["name"], "" if goal["value"] is None else _text(goal["value"]), f"{goal['sense']} {_text(goal['goal'])}", verdict]


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    figures = list(dict.fromkeys(figure for row in rows for figure in row if figure != "row"))
    cells = ([row["row"], *(_text(row.get(figure, "")) for figure in figures)] for row in rows)
    return [*table(["", *(figure.replace("_", " ") for figure in figures)], cells), ""]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]


def _text(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else _one_line(str(value))


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")
