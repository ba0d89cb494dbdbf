"""The extractors of chosen metrics: each name of rows from exactly one, and a clear word for every other choice."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.scripted_extractors import TinyC3D, TinyI3D, write_torchscript
from walt_pl.metrics.extractor import ClipBatch, Extractor
from walt_pl.metrics.extractors.choice import ExtractorOptions, choose_extractors, find_extractors
from walt_pl.metrics.extractors.known_files import KNOWN_FILES
from walt_pl.metrics.metric import Metric
from walt_pl.metrics.protocol import EvaluationProtocol


class _Mean(Metric):
    real_side = False
    better = "max"

    def update(self, rows: Tensor, *, real: bool) -> None: ...

    def compute(self) -> float:
        return 0.0


def needing(*rows: str) -> list[type[Metric]]:
    """Metrics that read these rows."""
    return [type(f"Of{row}", (_Mean,), {"name": f"of_{row}", "needs": row}) for row in rows]


def choose(metrics: list[type[Metric]], of_images: bool = False, **options: Any) -> list[Extractor]:
    return choose_extractors(metrics, ExtractorOptions(**options), EvaluationProtocol(frames=1 if of_images else 16), of_images)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, tuple[str, str]]:
    """A torchscript of each kind, and its hash."""
    modules = {"i3d": TinyI3D(), "c3d": TinyC3D()}
    return {kind: (str(tmp_path / f"{kind}.pt"), write_torchscript(module, tmp_path / f"{kind}.pt")) for kind, module in modules.items()}


def test_find_extractors_finds_every_file_of_the_folder() -> None:
    assert sorted(find_extractors()) == ["c3d", "clip", "i3d", "inception", "lpips", "pixels", "videomae"]
    assert set(KNOWN_FILES) == {kind for kind, one in find_extractors().items() if one.takes_file}


def test_choose_extractors_takes_one_for_all_rows_of_a_kind(files: dict[str, tuple[str, str]]) -> None:
    chosen = choose(needing("psnr", "ssim", "video_features", "psnr"), files=files["i3d"][0], sha256=files["i3d"][1])
    assert [one.kind for one in chosen] == ["pixels", "i3d"]


def test_choose_extractors_takes_files_and_hashes_by_kind(files: dict[str, tuple[str, str]]) -> None:
    paths, hashes = ({kind: two[i] for kind, two in files.items()} for i in (0, 1))
    chosen = choose(needing("class_logits", "video_features"), files=paths, sha256=hashes)
    assert [(one.kind, one.identity()["file"]) for one in chosen] == [("c3d", "c3d.pt"), ("i3d", "i3d.pt")]
    assert [one.kind for one in choose(needing("video_features"), files=paths, sha256=hashes)] == ["i3d"]


@pytest.mark.parametrize(
    ("rows", "of_images", "options", "kind"),
    [
        ("video_features", False, {}, "i3d"),
        ("video_features", False, {"kind": "videomae"}, "videomae"),
        ("video_features", False, {"files": {"videomae": "absent"}}, "videomae"),
        ("video_features", False, {"files": {"videomae": "absent", "i3d": "absent"}, "kind": "i3d"}, "i3d"),
        ("video_features class_logits", False, {"files": "absent", "kind": "i3d"}, "i3d"),
        ("class_logits", False, {}, "c3d"),
        ("class_logits", True, {}, "inception"),
        ("image_features", True, {"files": "absent"}, "inception"),
        ("lpips", False, {"files": "absent"}, "lpips"),
        ("clip_similarity", True, {"files": "ViT-B-32@absent"}, "clip"),
    ],
)
def test_choose_extractors_asks_for_the_file_of_the_kind_that_gives_the_rows(
    rows: str, of_images: bool, options: dict[str, Any], kind: str
) -> None:
    with pytest.raises(ValueError, match=rf'--extractor \'{{"{kind}": "') as raised:
        choose(needing(*rows.split()), of_images, **options)
    assert KNOWN_FILES[kind].describe() in str(raised.value)


@pytest.mark.parametrize(
    ("rows", "of_images", "options", "told"),
    [
        (
            ("video_features", "class_logits"),
            False,
            {"files": "FILE"},
            r"""2 extractors need one \(i3d, c3d\); name each: --extractor '\{"i3d": "FILE", "c3d": "FILE"\}'""",
        ),
        (
            ("video_features", "class_logits"),
            False,
            {"sha256": "0"},
            r"""name each: --extractor-sha256 '\{"i3d": "HEX", "c3d": "HEX"\}'""",
        ),
        (("psnr",), False, {"files": "FILE"}, "--extractor FILE: no chosen metric needs a file; leave --extractor out"),
        (("psnr",), False, {"files": {"i4d": "FILE"}}, "there is no extractor i4d; there are: c3d, clip, i3d,"),
        (("psnr",), False, {"sha256": {"i4d": "0"}}, "there is no extractor i4d"),
        (("psnr",), False, {"kind": "i4d"}, "there is no extractor i4d"),
        (("psnr",), False, {"kind": "videomae"}, "--extractor-kind videomae: it gives no rows of of_psnr"),
        (("video_features",), False, {"files": {"videomae": "a", "i3d": "b"}}, "i3d and videomae both give video_features; choose one: "),
        (("video_features",), True, {}, "computed by i3d and videomae, which is for videos, and these clips are images"),
        (("image_features",), False, {}, r"computed by inception, which is for images.* set --frames \(1\)"),
    ],
    ids=str,
)
def test_choose_extractors_refuses_other_choices(rows: tuple[str, ...], of_images: bool, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        choose(needing(*rows), of_images, **options)


def test_choose_extractors_finds_that_of_a_higher_floor_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("walt_pl.shapes.scorer_metric")

    class Scorer(Extractor):
        kind = "shapes"
        gives = ("shapes",)
        __module__ = module.__name__

        def identity(self) -> dict[str, Any]:
            return {"kind": self.kind}

        def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
            return {"shapes": torch.zeros(len(batch), 1)}

    vars(module).update(Scorer=Scorer, Extractor=Extractor)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert [one.kind for one in choose(needing("shapes"))] == ["shapes"]
    with pytest.raises(ValueError, match="no extractor gives the rows smells"):
        choose(needing("smells"))
