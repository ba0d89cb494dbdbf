"""The catalogue finds each metric that is defined, and explains a name that it does not know."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import walt_pl.metrics
from walt_pl.metrics.catalog import choose_metrics, find_metrics
from walt_pl.metrics.metric import Metric

PLANTED = '''
"""A metric of the longest row."""
from walt_pl.metrics.mean import MeanOfClips

class Base(MeanOfClips):
    """A base without a name is no metric."""

class Planted(Base):
    """Mean of rows named planted."""
    name = "planted"
    needs = "planted"
'''


@pytest.fixture(autouse=True)
def forget_planted_classes() -> Iterator[None]:
    """Forget the classes of a test: `__subclasses__` knows a class until it is collected."""
    yield
    sys.modules.pop("walt_pl.metrics.planted_metric", None)
    vars(walt_pl.metrics).pop("planted_metric", None)
    gc.collect()


def test_catalog_has_the_metrics_of_the_folder() -> None:
    found = find_metrics()
    assert {"clip", "fid", "fvd", "is", "kid", "kvd", "lpips", "psnr", "ssim"} <= set(found)
    assert list(found) == sorted(found)
    assert {name: (metric.needs, metric.real_side, metric.better) for name, metric in found.items() if name != "shapes"}.items() >= {
        "fvd": ("video_features", True, "min"),
        "fid": ("image_features", True, "min"),
        "kvd": ("video_features", True, "min"),
        "kid": ("image_features", True, "min"),
        "is": ("class_logits", False, "max"),
        "psnr": ("psnr", False, "max"),
        "ssim": ("ssim", False, "max"),
        "lpips": ("lpips", False, "min"),
        "clip": ("clip_similarity", False, "max"),
    }.items()


def test_catalog_finds_a_module_that_is_put_into_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_metric.py").write_text(PLANTED)
    monkeypatch.setattr(walt_pl.metrics, "__path__", [*walt_pl.metrics.__path__, str(tmp_path)])
    assert find_metrics()["planted"].needs == "planted"
    assert [metric.name for metric in choose_metrics("fvd,planted")] == ["fvd", "planted"]


def test_catalog_forgets_a_module_that_is_gone() -> None:
    assert "planted" not in find_metrics()


def test_catalog_finds_a_metric_of_a_module_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_metric.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("walt_pl.metrics.catalog.ELSEWHERE", ("planted_metric", "walt_pl.no_such_module"))
    assert "planted" in find_metrics()
    sys.modules.pop("planted_metric")


def test_catalog_refuses_two_metrics_of_one_name() -> None:
    from walt_pl.metrics.frechet import FVD

    class Twin(FVD):
        """Take the name of its parent."""

        __module__ = "walt_pl.metrics.twin"

    with pytest.raises(ValueError, match=r'^two metrics have the name "fvd": walt_pl.metrics.frechet.FVD and .*Twin; give one'):
        find_metrics()
    del Twin
    gc.collect()  # classes are parts of cycles: the tests after this one would find it
    gc.collect()  # a class is part of a cycle, and would be found by the tests after this one


def test_choose_metrics_keeps_the_order_and_drops_repeats() -> None:
    assert [metric.name for metric in choose_metrics(" kvd, fvd,kvd,")] == ["kvd", "fvd"]
    assert all(issubclass(metric, Metric) for metric in choose_metrics("psnr"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fvd,fdv", 'there is no metric "fdv"; did you mean fvd.*There are: clip, fid, fvd, is, kid, kvd, lpips, '),
        ("FVD", 'there is no metric "FVD"; did you mean fvd'),
        ("fvd psnr", 'there is no metric "fvd psnr"; '),
        ("walrus", 'there is no metric "walrus"; Names stand between commas. There are: clip'),
        (" , ", "no metric is named; there are: clip, fid"),
    ],
)
def test_choose_metrics_tells_the_nearest_names(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        choose_metrics(text)


def test_catalog_imports_no_library_of_metrics() -> None:
    """A typo in a name is told at once: torchmetrics alone takes seconds to import."""
    told = "import sys; from walt_pl.metrics.catalog import find_metrics; find_metrics(); print('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.strip() == "False"
