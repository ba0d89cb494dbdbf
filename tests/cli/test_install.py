"""The wheel of `pip install .`, used outside of the checkout, with and without the packages of training."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import walt_pl
from tests.helpers.environment import ROOT, Ended, refuse_imports
from tests.helpers.house_rules import imports_of, modules
from tests.helpers.tiny_stages import CAPTIONS, write_stages
from walt_pl.cli.chosen_logger import PACKAGES
from walt_pl.cli.main import COMMANDS, EXTRAS, TRACEBACK, main
from walt_pl.media.reading import read_video
from walt_pl.runs.manifest import Manifest

SOURCES = ("walt_pl", "stages", "datamodules", "experiments", "pyproject.toml", "setup.py", "README.md", "LICENSE")
OPTIONAL = tuple(module for names in EXTRAS.values() for module in names)
ABSENT = (*OPTIONAL, "lightning_fabric", "pytorch_lightning", "torchmetrics")
REFUSE = refuse_imports(ABSENT)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools puts modules that were deleted since into a wheel if the checkout has an old build/."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, "--wheel-dir", str(out), "."], cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment with the wheel. It sees the packages of this test run, too."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "of_the_tests.pth").write_text("\n".join(path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")))
    executable = folder / "bin" / "python"
    # Without --ignore-installed pip would uninstall a walt-pl of this test run.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(executable), "install", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, "--ignore-installed", str(wheel)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return executable


@pytest.fixture
def installed(python: Path, tmp_path: Path) -> Run:
    """Runs a program of the environment in an empty folder, `tmp_path / "here"`; with absent=True none of the extras can be imported."""
    (tmp_path / "here").mkdir()
    (tmp_path / "refuse").mkdir()
    (tmp_path / "refuse" / "sitecustomize.py").write_text(REFUSE)

    def run(*words: str, program: str = "walt", absent: bool = False) -> Ended:
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", TRACEBACK)}
        environment = {**kept, "COLUMNS": "200", **({"PYTHONPATH": str(tmp_path / "refuse")} if absent else {})}
        command = [str(python.parent / program), *words]
        done = subprocess.run(command, cwd=tmp_path / "here", env=environment, capture_output=True, text=True, timeout=300)
        return Ended(done.returncode, done.stdout + done.stderr)

    return run


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of tiny stages."""
    root = tmp_path_factory.mktemp("runs") / "tiny"
    manifest = Manifest.open(root)
    for stage, folder in write_stages(root).items():
        manifest.finish(stage, folder)
    return root


# ---- The wheel --------------------------------------------------------------------------------------------------------


def test_wheel_has_every_module_and_experiment(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    code = {path.relative_to(ROOT).as_posix() for path in modules(ROOT).values()}
    experiments = {f"walt_pl/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "experiments").rglob("*.yaml")}
    assert names == code | experiments | {"walt_pl/py.typed", "walt_pl/report/page.css", "walt_pl/report/page.html.j2"}


def test_wheel_metadata_has_the_versions_of_the_program_python_and_torch(wheel: Path) -> None:
    (distribution,) = importlib.metadata.distributions(path=[str(wheel)])
    assert (distribution.name, distribution.version) == ("walt-pl", walt_pl.__version__)
    python = Requirement(f"python{distribution.metadata['Requires-Python']}").specifier
    assert [minor for minor in range(8, 17) if python.contains(f"3.{minor}.0")] == [11, 12, 13]
    named = [line.rpartition(" ")[2] for line in distribution.metadata.get_all("Classifier") if "Python :: " in line]
    assert named == ["3.11", "3.12", "3.13"]
    torch = next(Requirement(line) for line in distribution.requires or [] if Requirement(line).name == "torch")
    assert torch.marker is None
    assert [minor for minor in range(8, 18) if torch.specifier.contains(f"2.{minor}.1")] == [11, 12, 13, 14]


# ---- Lists of packages --------------------------------------------------------------------------------------------------


def requirements(lines: list[str]) -> dict[str, Requirement]:
    found = [Requirement(line.partition("#")[0].strip()) for line in lines if line.strip() and line[0] not in "#-"]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def declared() -> dict[str, dict[str, Requirement]]:
    """Packages of the program ("") and of each extra, without those of ours."""
    groups = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return {name: {key: value for key, value in requirements(lines).items() if key != "walt-pl"} for name, lines in groups.items()}


def test_pyproject_ranges_hold_every_pin_of_the_requirements() -> None:
    groups = declared()
    ours = {name: requirement for group in groups.values() for name, requirement in group.items()}
    assert sum(map(len, groups.values())) == len(ours), "a package is in two groups"
    pins = {name: read_pins(name) for name in ("requirements.txt", "requirements-dev.txt")}
    assert set(pins["requirements.txt"]) == set(ours) - set(groups["dev"]) - set(groups["loggers"]), "make setup installs no loggers"
    assert set(pins["requirements-dev.txt"]) == set(groups["dev"])
    for name, pin in {**pins["requirements.txt"], **pins["requirements-dev.txt"]}.items():
        (version,) = (specifier.version for specifier in pin.specifier)
        assert ours[name].specifier.contains(version), f"{name} {version}"
        assert ours[name].extras == pin.extras and str(ours[name].marker) == str(pin.marker), name


def read_pins(name: str) -> dict[str, Requirement]:
    return requirements((ROOT / name).read_text(encoding="utf-8").splitlines())


def test_main_extras_are_those_of_pyproject() -> None:
    packages = importlib.metadata.packages_distributions()
    for extra, names in EXTRAS.items():
        assert {canonicalize_name(packages[module][0]) for module in names} == set(declared()[extra])


def test_chosen_logger_names_the_packages_that_pyproject_pins() -> None:
    assert sorted(PACKAGES.values()) == sorted(PROJECT["optional-dependencies"]["loggers"])
    assert {canonicalize_name(module) for module in PACKAGES} == set(declared()["loggers"])


def test_pyproject_lists_every_package_that_the_code_imports() -> None:
    packages = importlib.metadata.packages_distributions()
    ours = {name for extra, group in declared().items() if extra != "dev" for name in group}
    imported = {name.partition(".")[0] for path in modules(ROOT).values() for name in imports_of(path, ROOT)}
    # Triton comes with torch where it can run, and is imported only there.
    foreign = imported - sys.stdlib_module_names - {"", "walt_pl", "stages", "datamodules", "triton"}
    assert {"torch", "lightning", "yaml"} < foreign
    missing = {module for module in foreign if not ours & {canonicalize_name(name) for name in packages.get(module, [module])}}
    assert not missing


# ---- The installed program -------------------------------------------------------------------------------------------------


def test_installed_program_prints_version_and_help(installed: Run) -> None:
    assert installed("--version") == (0, f"walt {walt_pl.__version__}\n")
    code, said = installed("--help")
    assert code == 0 and all(f"  {command} " in said for command in COMMANDS)


def test_installed_package_is_not_that_of_the_checkout(installed: Run, python: Path) -> None:
    code, said = installed("-c", "import walt_pl, stages, datamodules; print(walt_pl.__file__)", program="python")
    assert code == 0 and Path(said.strip()).is_relative_to(python.parents[1])


def test_installed_status_names_the_command_that_finds_the_packaged_config(installed: Run, tmp_path: Path) -> None:
    code, said = installed("status")
    assert code == 0 and "not started" in said
    assert "python -m walt_pl fit --config experiments/shapes/vae.yaml" in said and "make" not in said
    assert list((tmp_path / "here").iterdir()) == []


def test_installed_plan_finds_a_packaged_config_and_those_it_extends(installed: Run, tmp_path: Path) -> None:
    name = "experiments/ucf101/base_l.yaml"
    code, said = installed("plan", "--config", name, "--json")
    assert code == 0, said
    report = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert report["stage"] == "base_l" and report["steps"] == 60000
    assert f"walt_pl/{name}: installed with the program; there is no {name} here" in said
    assert list((tmp_path / "here").iterdir()) == []


def test_installed_fit_trains_into_runs_of_the_current_folder(installed: Run, painted: Path, tmp_path: Path) -> None:
    shutil.copytree(painted.parent, tmp_path / "here" / "data" / "shapes")
    small = [
        "--model.vae.width=8",
        "--model.vae.channel_multipliers=[1,1,2]",
        "--model.warmup_steps=1",
        "--data.videos_per_batch=2",
        "--data.val_videos=2",
    ]
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--previews.every_n_validations=0", "--trainer.accelerator=cpu"]
    code, said = installed("fit", "--config", "experiments/shapes/vae.yaml", *small, *short, "--trainer.precision=32-true")
    assert code == 0, said
    assert (tmp_path / "here" / "runs" / "shapes" / "vae" / "card.json").is_file()
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"data", "runs"}
    code, said = installed("status")
    assert code == 0 and "python -m walt_pl fit --config experiments/shapes/base.yaml" in said


# ---- Without the extras --------------------------------------------------------------------------------------------------


def test_installed_load_needs_no_extra(installed: Run, tiny_run: Path) -> None:
    code, said = installed(
        "-c",
        "import sys, walt_pl\n"
        "assert 'torch' not in sys.modules, 'import walt_pl alone has to be quick'\n"
        "import torch\n"
        "vae = walt_pl.load(sys.argv[1], verify=True).models['vae']\n"
        "print(tuple(vae.decode(vae.encode(torch.zeros(1, 3, 5, 8, 8)).mean).shape))",
        str(tiny_run / "vae"),
        program="python",
        absent=True,
    )
    assert (code, said) == (0, "(1, 3, 5, 8, 8)\n")


def test_installed_sample_needs_no_extra(installed: Run, tiny_run: Path, tmp_path: Path) -> None:
    words = ["--run", str(tiny_run), "--prompt", CAPTIONS[0], "--steps", "2", "--device", "cpu", "--out", "clip.mp4"]
    code, said = installed("sample", *words, absent=True)
    assert code == 0, said
    assert read_video(tmp_path / "here" / "clip.mp4", 9).shape == (9, 32, 32, 3)


def test_installed_status_verify_and_index_need_no_extra(installed: Run, tiny_run: Path, painted: Path, tmp_path: Path) -> None:
    code, said = installed("status", "--run", str(tiny_run), absent=True)
    assert code == 0 and said.count("done") == 3, said
    code, said = installed("verify", "--run", str(tiny_run), absent=True)
    assert code == 0, said
    videos = sorted(painted.parent.rglob("*.mp4"))[:2]
    (tmp_path / "clips").mkdir()
    for video in videos:
        shutil.copy(video, tmp_path / "clips")
    code, said = installed("index", str(tmp_path / "clips"), "--workers", "1", absent=True)
    assert code == 0 and (tmp_path / "here" / "data" / "clips.parquet").is_file(), said


def test_installed_training_without_its_extra_says_what_to_install(installed: Run) -> None:
    code, said = installed("fit", "--config", "experiments/shapes/vae.yaml", absent=True)
    assert code == 1 and "Traceback" not in said
    assert said.startswith("error: walt fit needs the train extra, and ") and "pip install 'walt-pl[train]'" in said


def raise_from_import(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let every command end with an error of its imports."""

    def run(words: list[str]) -> None:
        raise error

    monkeypatch.setattr("walt_pl.cli.main.importlib", SimpleNamespace(import_module=lambda name: SimpleNamespace(run=run)))


@pytest.mark.parametrize(("extra", "module"), [(extra, module) for extra, names in EXTRAS.items() for module in names])
def test_main_names_the_extra_of_every_optional_package(extra: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRACEBACK, raising=False)
    raise_from_import(monkeypatch, ModuleNotFoundError(f"No module named {module!r}", name=module))
    with pytest.raises(SystemExit) as ended:
        main(["evaluate"])
    assert ended.value.code == (
        f"error: walt evaluate needs the {extra} extra, and {module} is not installed: pip install 'walt-pl[{extra}]' "
        "(in a checkout: make setup)"
    )
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(ModuleNotFoundError):
        main(["evaluate"])


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'nothing'", name="nothing"),
        ModuleNotFoundError("No module named 'lightning.moved'", name="lightning.moved"),
        ImportError("cannot import name 'Moved' from 'lightning'", name="lightning"),
        ImportError("no name"),
    ],
    ids=str,
)
def test_main_shows_other_import_errors_where_they_arose(error: ImportError, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_from_import(monkeypatch, error)
    with pytest.raises(type(error)) as raised:
        main(["fit"])
    assert raised.value is error
