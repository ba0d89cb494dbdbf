"""The floors of the house: imports point down only, nothing goes in a circle, and each room keeps to its own libraries."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers.house_rules import (
    FOLDERS,
    callers,
    find_circle,
    floor_of,
    importers,
    imports_of,
    is_within,
    long_files,
    long_functions,
    module_of,
    modules,
    unclear_docstrings,
    upward_imports,
)

ROOT = Path(__file__).parents[1]
FLOORS = {
    "walt_pl.files": 0,
    "walt_pl.lock": 0,
    "walt_pl.processes": 0,
    "walt_pl.removal": 0,
    "walt_pl.untrusted": 0,
    "walt_pl.plain_records": 0,
    "walt_pl.terminal_text": 0,
    "walt_pl.plain_text": 0,
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
    "walt_pl.evaluation": 3,
    "walt_pl.strategies": 4,
    "walt_pl.shapes": 4,
    "walt_pl.paper": 4,
    "walt_pl.report": 4,
    "stages": 4,
    "datamodules": 4,
    "walt_pl.cli": 5,
    "walt_pl.__main__": 6,
}
CLI_WITH_LIGHTNING = ("walt_pl.cli.fit", "walt_pl.cli.fit_checks", "walt_pl.cli.plan", "walt_pl.cli.cache")
"""Modules of the program that import Lightning."""
LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")
WITH_LIGHTNING = ("walt_pl.training", "walt_pl.strategies", "stages", "datamodules")
MEDIA = ("av", "decord", "PIL", "cv2", "imageio", "moviepy", "torchcodec", "torchvision.io")
"""Libraries that read and write videos and images."""
OPENERS = {
    "Image.open": ["walt_pl.media.animation", "walt_pl.media.pillow_reader"],
    "av.open": ["walt_pl.media.pyav", "walt_pl.media.writing"],
    "VideoReader": ["walt_pl.media.decord_reader"],
}
"""Calls that open media, with the modules that give them a list of formats first."""
RENAMES = ("os.rename", "os.replace", "os.fsync", ".rename", "shutil.move", "shutil.copytree")
"""Calls that make a file or folder appear under its name."""
PARSERS = ("json.load", "json.loads", "yaml.load", "yaml.safe_load", "yaml.unsafe_load", "yaml.full_load", "yaml.SafeLoader", "yaml.Loader")
"""Calls that parse JSON or YAML, which a stranger may have written."""
MAY_PARSE = (
    "walt_pl.untrusted",  # with limits
    "walt_pl.cli.config_syntax",  # configs that the person typed, with their lines; limits by `check_nodes`
    "walt_pl.runs.artifact_writing",  # a round trip in memory, of a card that it writes
    "walt_pl.data.cache_meta",  # a round trip in memory, of a cache's description that it writes
    "walt_pl.indexing.tables",  # tells a mistake in a line from a hostile line, after `parse_json` has refused it
)
"""Modules that parse by themselves."""
MAY_SPLIT = (
    "walt_pl.cli.config_syntax",  # YAML counts the same characters as ends of lines
    "walt_pl.cli.configuration_page",
    "walt_pl.cli.parse_errors",
    "walt_pl.data.stream_watch",
    "walt_pl.indexing.sample_videos",
    "walt_pl.runs.checkpoint",
    "walt_pl.runs.stored_config",
    "walt_pl.text.pretrained_encoder",
    "walt_pl.text.small_encoder",
)
"""Modules that split messages of programs and texts of this program with str.splitlines. It breaks at U+2028, U+0085 and others."""
FILE_LINES, FUNCTION_LINES = 450, 60

FILES = sorted(modules(ROOT).values())


def name_of(path: Path) -> str:
    return module_of(path, ROOT)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down_only(path: Path) -> None:
    if name_of(path) == "walt_pl":
        return
    assert not upward_imports(path, ROOT, FLOORS), f"{name_of(path)} imports from above"


def test_floors_name_only_modules_that_exist() -> None:
    assert not [name for name in FLOORS if not any(is_within(module, [name]) for module in modules(ROOT))]


@pytest.mark.parametrize("folder, forbidden", [("stages", "datamodules"), ("datamodules", "stages")])
def test_stages_and_datamodules_never_import_each_other(folder: str, forbidden: str) -> None:
    assert not importers(ROOT, [forbidden], [], [folder])


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if is_within(name_of(path), ("walt_pl.models", "walt_pl.blocks", "walt_pl.diffusion"))],
    ids=name_of,
)
def test_models_never_import_lightning(path: Path) -> None:
    assert not [name for name in imports_of(path, ROOT) if is_within(name, (*LIGHTNING, "deepspeed"))]


def test_imports_have_no_circle() -> None:
    assert not find_circle(ROOT)


@pytest.mark.parametrize("room", ["stages", "datamodules"])
def test_stages_and_datamodules_are_imported_by_the_cli_alone(room: str) -> None:
    assert not importers(ROOT, [room], ["walt_pl.cli", room])


def test_lightning_is_imported_by_training_stages_and_few_commands() -> None:
    assert not importers(ROOT, LIGHTNING, [*WITH_LIGHTNING, *CLI_WITH_LIGHTNING])
    assert set(importers(ROOT, LIGHTNING, WITH_LIGHTNING)) == set(CLI_WITH_LIGHTNING), "a module of the list imports none"


def test_cli_is_imported_by_itself_and_main_alone() -> None:
    assert not importers(ROOT, ["walt_pl.cli"], ["walt_pl.cli", "walt_pl.__main__"], [*FOLDERS, "benchmarks"])


def test_decoders_and_encoders_are_imported_by_media_alone() -> None:
    assert not importers(ROOT, MEDIA, ["walt_pl.media"])


@pytest.mark.parametrize(("call", "modules"), OPENERS.items())
def test_media_are_opened_in_the_modules_that_check_them(call: str, modules: list[str]) -> None:
    assert not callers(ROOT, [call], modules)
    assert all(callers(ROOT, [call], [other for other in modules if other != module]) for module in modules), "a module opens none"


def test_library_never_imports_the_shortcut_of_its_users() -> None:
    """`walt_pl.load` lies in walt_pl/__init__.py, which has no floor."""
    assert not importers(ROOT, ["walt_pl.load"], [])
    assert not callers(ROOT, ["walt_pl.load"], [])


def test_files_are_renamed_and_synced_in_one_module_alone() -> None:
    assert not callers(ROOT, RENAMES, ["walt_pl.files"])


def test_json_and_yaml_are_parsed_with_limits_alone() -> None:
    assert not callers(ROOT, PARSERS, MAY_PARSE, exact=True)
    parsing = callers(ROOT, PARSERS, ["walt_pl.untrusted"], exact=True)
    assert all(any(is_within(module, [name]) for module in parsing) for name in MAY_PARSE[1:]), "a module of the list parses nothing"


def test_lines_of_files_that_people_write_are_split_in_one_module_alone() -> None:
    splitting = set(callers(ROOT, [".splitlines"], []))
    assert not splitting - set(MAY_SPLIT), "use walt_pl.plain_text.split_lines"
    assert splitting == set(MAY_SPLIT), "a module of the list splits nothing"


def test_files_are_short() -> None:
    assert not long_files(ROOT, FILE_LINES, [*FOLDERS, "tests", "benchmarks"])


def test_functions_are_short() -> None:
    assert not long_functions(ROOT, FUNCTION_LINES)


def test_docstrings_say_a_thing_or_an_action_first() -> None:
    assert not unclear_docstrings(ROOT, ["walt_pl", "stages", "datamodules", "tests", "benchmarks"])


# ---- The rules see a planted fault -------------------------------------------------------------------------------------


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write a tree of sources."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_upward_imports_are_found_in_every_form(tmp_path: Path) -> None:
    forms = [
        "import walt_pl.cli.fit",
        "from walt_pl import cli",
        "from ..cli import fit",
        "import importlib\nimportlib.import_module(name='walt_pl.cli.fit')",
        "def f():\n    from walt_pl.cli.fit import x",
    ]
    for form in forms:
        root = plant(tmp_path, {"walt_pl/data/index.py": f"{form}\n", "walt_pl/cli/fit.py": ""})
        assert upward_imports(root / "walt_pl/data/index.py", root, FLOORS), form
    assert not upward_imports(root / "walt_pl/cli/fit.py", root, FLOORS)


def test_upward_imports_require_a_floor_for_every_module(tmp_path: Path) -> None:
    root = plant(tmp_path, {"walt_pl/loft.py": ""})
    with pytest.raises(ValueError, match=r"walt_pl\.loft has no floor"):
        upward_imports(root / "walt_pl/loft.py", root, FLOORS)
    assert floor_of("walt_pl", FLOORS) is None and floor_of("walt_pl.cli_tools", FLOORS) is None


def test_find_circle_counts_imports_inside_functions(tmp_path: Path) -> None:
    files = {"walt_pl/a.py": "import walt_pl.b\n", "walt_pl/b.py": "from walt_pl.c import x\n", "walt_pl/c.py": "x = 1\n"}
    assert find_circle(plant(tmp_path, files)) == []
    circle = find_circle(plant(tmp_path, {"walt_pl/c.py": "def f():\n    from walt_pl import a\n"}))
    assert set(circle) == {"walt_pl.a", "walt_pl.b", "walt_pl.c"} and circle[0] == circle[-1]


@pytest.mark.parametrize("test", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_find_circle_ignores_imports_for_type_checkers_only(test: str, tmp_path: Path) -> None:
    only = f"if {test}:\n    import walt_pl.a\nelse:\n    import {{}}\n"
    root = plant(tmp_path, {"walt_pl/a.py": "import walt_pl.b\n", "walt_pl/b.py": only.format("sys")})
    assert find_circle(root) == [] and "walt_pl.a" in imports_of(root / "walt_pl/b.py", root)
    assert find_circle(plant(root, {"walt_pl/b.py": only.format("walt_pl.a")}))


@pytest.mark.parametrize(
    ("source", "names", "allowed"),
    [
        ("from stages.vae import VAEStage", ["stages"], ["walt_pl.cli", "stages"]),
        ("import datamodules.joint", ["datamodules"], ["walt_pl.cli", "datamodules"]),
        ("from lightning.pytorch import Trainer", LIGHTNING, [*WITH_LIGHTNING, *CLI_WITH_LIGHTNING]),
        ("def f():\n    import lightning as L", LIGHTNING, [*WITH_LIGHTNING, *CLI_WITH_LIGHTNING]),
        ("from walt_pl.cli.fit import Program", ["walt_pl.cli"], ["walt_pl.cli", "walt_pl.__main__"]),
        ("from importlib import import_module\nimport_module('walt_pl.cli.fit')", ["walt_pl.cli"], ["walt_pl.cli"]),
        ("from PIL import Image", MEDIA, ["walt_pl.media"]),
        ("def f():\n    from av.video import frame", MEDIA, ["walt_pl.media"]),
    ],
)
def test_importers_are_found_outside_the_allowed_modules(source: str, names: list[str], allowed: list[str], tmp_path: Path) -> None:
    inside = f"{allowed[0].replace('.', '/')}/x.py"
    root = plant(tmp_path, {"walt_pl/sampling/cascade.py": source, inside: source, "walt_pl/cli/plan_costs.py": "import average"})
    assert importers(root, names, allowed) == ["walt_pl.sampling.cascade"]


def test_importers_match_an_allowed_module_by_its_whole_name(tmp_path: Path) -> None:
    files = {"walt_pl/cli/plan.py": "import lightning", "walt_pl/cli/plan_costs.py": "import lightning"}
    assert importers(plant(tmp_path, files), LIGHTNING, CLI_WITH_LIGHTNING) == ["walt_pl.cli.plan_costs"]


def test_long_files_and_functions_are_counted_without_signature_and_docstring(tmp_path: Path) -> None:
    head = 'def f(\n    a: int,\n) -> int:\n    """Say.\n\n    More.\n    """\n'
    three = f"{head}    a += 1\n    a += 1\n    return a\n"
    root = plant(tmp_path, {"walt_pl/a.py": three, "walt_pl/b.py": 'async def g():\n    """Only words."""\n'})
    assert long_functions(root, 3) == {} and long_functions(root, 2) == {"walt_pl.a.f": 3}
    assert long_files(root, 10) == {} and long_files(root, 9) == {"walt_pl.a": 10}


@pytest.mark.parametrize(
    ("source", "found"), [("import os\nos.fsync(1)", 1), ("p.rename(q)", 1), ("import os\nos.stat(1)", 0), ("rename(p)", 0)]
)
def test_callers_are_found_by_the_names_of_their_calls(source: str, found: int, tmp_path: Path) -> None:
    root = plant(tmp_path, {"walt_pl/a.py": source, "walt_pl/files.py": "import os\nos.rename(1, 2)"})
    assert len(callers(root, RENAMES, ["walt_pl.files"])) == found


def test_unclear_docstrings_are_found_under_fields_and_functions(tmp_path: Path) -> None:
    source = 'class A:\n    x: int = 0\n    """How many."""\n\n    def f(self):\n        """What it does."""\n        return "What"\n'
    assert unclear_docstrings(plant(tmp_path, {"walt_pl/a.py": source})) == ["walt_pl.a:3", "walt_pl.a:6"]


def test_modules_of_an_empty_folder_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no Python file"):
        modules(tmp_path)
