"""The floors of the house: imports point down only, and stages and data modules never meet."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "walt_pl.files": 0,
    "walt_pl.blocks": 0,
    "walt_pl.diffusion": 0,
    "walt_pl.media": 0,
    "walt_pl.runs": 1,
    "walt_pl.data": 1,
    "walt_pl.indexing": 2,
    "walt_pl.models": 2,
    "walt_pl.text": 2,
    "walt_pl.metrics": 2,
    "walt_pl.training": 3,
    "walt_pl.sampling": 3,
    "walt_pl.strategies": 4,
    "walt_pl.shapes": 4,
    "stages": 4,
    "datamodules": 4,
    "walt_pl.cli": 5,
    "walt_pl.__main__": 6,
}
FILES = sorted(path for folder in ("walt_pl", "stages", "datamodules") for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int | None:
    """The floor of one of our modules; None for other people's, and for `walt_pl` itself, which may be imported anywhere."""
    names = [name for name in FLOORS if module == name or module.startswith(name + ".")]
    return FLOORS[max(names, key=len)] if names else None


def imports_of(path: Path) -> set[str]:
    """Every module a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down_only(path: Path) -> None:
    module = module_of(path)
    if module == "walt_pl":
        return
    own = floor_of(module)
    assert own is not None, f"{module} has no floor: give it one in this test and in the README's map"
    up = {name for name in imports_of(path) if (floor_of(name) or 0) > own}
    assert not up, f"{module} (floor {own}) imports from above: {sorted(up)}"


@pytest.mark.parametrize("folder, forbidden", [("stages", "datamodules"), ("datamodules", "stages")])
def test_stages_and_data_modules_never_import_each_other(folder: str, forbidden: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert not {name for name in imports_of(path) if name.split(".")[0] == forbidden}, path


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if module_of(path).startswith(("walt_pl.models", "walt_pl.blocks", "walt_pl.diffusion"))],
    ids=module_of,
)
def test_models_know_no_lightning(path: Path) -> None:
    assert not {name for name in imports_of(path) if name.split(".")[0] in ("lightning", "deepspeed")}


@pytest.mark.parametrize("path", [path for path in FILES if not module_of(path).startswith("walt_pl.media")], ids=module_of)
def test_only_media_imports_decoders_and_encoders(path: Path) -> None:
    assert not {name for name in imports_of(path) if name.split(".")[0] in ("av", "decord", "PIL")}
