"""`walt metrics` from folders to a card, with a tiny scripted network in place of I3D."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from walt_pl.cli.main import main
from walt_pl.files import file_sha256
from walt_pl.metrics.protocol import PRESETS

CLIPS, FRAMES = 12, 10


class TinyI3D(torch.nn.Module):
    """Has the call of the published torchscript: clips [b 3 t h w] in 0..255 if `rescale`, else -1..1."""

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True) -> torch.Tensor:
        if rescale:
            x = x / 127.5 - 1
        means = x.mean(dim=(3, 4))
        return torch.cat([means.mean(dim=2), means.std(dim=2)], dim=1)


def write_arrays(folder: Path, seed: int, clips: int = CLIPS) -> Path:
    """Write clips of different brightness as an array, and return its path."""
    draw = np.random.RandomState(seed)
    levels = draw.uniform(40, 200, (clips, FRAMES, 1, 1, 3)) + draw.uniform(-30, 30, (clips, FRAMES, 16, 16, 3))
    path = folder / f"{seed}.npy"
    np.save(path, levels.clip(0, 255).astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("metrics")
    network = folder / "tiny.pt"
    torch.jit.script(TinyI3D()).save(network)
    sides = {"real": str(write_arrays(folder, 1)), "generated": str(write_arrays(folder, 2))}
    return {**sides, "extractor": str(network), "extractor_sha256": file_sha256(network), "cache": str(folder / "cache")}


def measure(material: dict[str, str], **options: Any) -> None:
    typed = {"metric": "fvd", "clips": CLIPS, "frames": FRAMES, "resize": "inside", "batch": 5, "device": "cpu", **material, **options}
    main(["metrics", *(word for name, value in typed.items() for word in (f"--{name.replace('_', '-')}", str(value)))])


def rows(path: str) -> np.ndarray:
    """Features of the clips of an array, by numpy alone."""
    clips = np.load(path).astype(np.float64) / 127.5 - 1
    means = clips.mean(axis=(2, 3))
    return np.concatenate([means.mean(axis=1), means.std(axis=1, ddof=1)], axis=1)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root.real))


def test_metrics_command_gives_the_distance_of_numpy_and_scipy(
    material: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "card.json"
    measure(material, out=out)
    card = json.loads(out.read_text())
    assert card["value"] == pytest.approx(frechet(rows(material["real"]), rows(material["generated"])), rel=1e-6)
    assert card["metric"] == "fvd" and card["preset"] is None and card["generated"]["clips"] == card["real"]["clips"] == CLIPS
    assert card["extractor"]["sha256"] == material["extractor_sha256"] and card["protocol"]["frames"] == FRAMES
    assert "fvd" in capsys.readouterr().out
    measure(material, out=out, metric="fvd,kvd")
    both = json.loads(out.read_text())
    assert [one["metric"] for one in both] == ["fvd", "kvd"] and both[0]["value"] == card["value"]


def test_metrics_command_goes_on_with_its_rows(material: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from walt_pl.evaluation.array_source import ArraySource

    measure(material, out=tmp_path / "a.json")
    read: list[int] = []
    original = ArraySource.read
    monkeypatch.setattr(ArraySource, "read", lambda self, draws, *rest: read.append(len(draws)) or original(self, draws, *rest))
    measure(material, out=tmp_path / "b.json")
    assert not read
    measure(material, out=tmp_path / "c.json", cache=tmp_path / "cache")
    assert sum(read) == 2 * CLIPS
    a, b, c = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "abc")
    assert a["value"] == b["value"] == c["value"] and a["error"] == b["error"] == c["error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extractor_sha256": "0" * 64}, "sha256"),
        ({"metric": "fdv"}, "did you mean fvd"),
        ({"preset": "magvit"}, "did you mean magvit_ucf"),
        ({"clips": 2048}, "2,048"),
        ({"size": "[1, 2, 3]"}, "wanted one number, or rows and columns"),
        ({"batch": 0}, "--batch must be at least 1"),
        ({"generated": "nowhere"}, "nowhere"),
    ],
)
def test_metrics_command_refuses_in_one_sentence(material: dict[str, str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        measure(material, **options)


def test_metrics_command_replaces_no_file_but_cards(material: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "notes.json"
    out.write_text('{"mine": 1}')
    with pytest.raises(SystemExit, match="is no file of cards"):
        measure(material, out=out)
    assert json.loads(out.read_text()) == {"mine": 1}


def test_metrics_command_wants_the_sides_of_its_metrics(material: dict[str, str]) -> None:
    with pytest.raises(SystemExit, match="fvd compares with real clips: name them with --real"):
        main(["metrics", "--generated", material["generated"], "--metric", "fvd"])
    with pytest.raises(SystemExit, match="--generated FOLDER"):
        main(["metrics", "--real", material["real"]])


def test_metrics_compare_prints_a_difference_or_refuses(
    material: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = (tmp_path / f"{name}.json" for name in "abc")
    measure(material, out=a)
    measure(material, out=b)
    measure(material, out=c, clips=CLIPS - 2)
    capsys.readouterr()
    main(["metrics", "compare", str(a), str(b)])
    assert "fvd" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="must not be compared"):
        main(["metrics", "compare", str(a), str(c)])
    main(["metrics", "compare", str(a), str(c), "--force"])
    assert "fvd" in capsys.readouterr().out


def test_metrics_pairs_take_the_clip_of_the_same_place(material: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "card.json"
    options = {name: value for name, value in material.items() if not name.startswith("extractor")}
    measure({**options, "generated": material["real"]}, metric="psnr", out=out)
    same = json.loads(out.read_text())
    measure(options, metric="psnr", out=out)
    other = json.loads(out.read_text())
    assert same["value"] > 50 > other["value"] and other["protocol"]["paired"] and other["real"]["clips"] == CLIPS


def test_metrics_command_strides_over_real_clips_alone(tmp_path: Path) -> None:
    real = np.random.RandomState(3).randint(0, 256, (3, 20, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "real.npy", real)
    np.save(tmp_path / "generated.npy", real[:, ::2])
    sides = {side: str(tmp_path / f"{side}.npy") for side in ("real", "generated")}
    measure({**sides, "cache": str(tmp_path)}, metric="psnr", frames=5, stride=2, clips=3, out=tmp_path / "card.json")
    assert json.loads((tmp_path / "card.json").read_text())["value"] >= 100


@pytest.mark.parametrize("options", [{"preset": "common_metrics"}, {"preset": "videogpt", "folds": 2, "clips": 6}, {}])
def test_metrics_pairs_of_files_have_the_protocol_by_which_they_are_drawn(
    material: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    smaller = {name: replace(preset, frames=FRAMES) for name, preset in PRESETS.items()}
    smaller["common_metrics"] = replace(smaller["common_metrics"], clips=CLIPS, real_clips=CLIPS)
    monkeypatch.setattr("walt_pl.metrics.protocol.PRESETS", smaller)
    typed = {"clips": CLIPS, "frames": FRAMES, "batch": 5, "device": "cpu", "metric": "psnr", "out": tmp_path / "card.json", **options}
    if options.get("preset") == "common_metrics":
        del typed["clips"], typed["frames"]
    sides = {name: material[name] for name in ("real", "generated", "cache")}
    main(["metrics", *(word for name, value in (typed | sides).items() for word in (f"--{name}", str(value)))])
    card = json.loads((tmp_path / "card.json").read_text())
    expected = {"start": "first", "order": "names", "clips_per_video": 1, "repeat": False, "paired": True}
    assert card["preset"] == ("common_metrics" if options.get("preset") == "common_metrics" else None), "the one that pairs files"
    assert {name: card["protocol"][name] for name in expected} == expected
    assert card["protocol"]["real_clips"] == card["protocol"]["clips"]


@pytest.fixture
def one_broken_of_each_side(tmp_path: Path) -> dict[str, str]:
    """Folders of eight images, of which the second real one and the fifth generated one are no images."""
    draw = np.random.RandomState(4)
    for side, broken in (("real", 1), ("generated", 4)):
        (tmp_path / side).mkdir()
        for number in range(8):
            path = tmp_path / side / f"{number}.png"
            Image.fromarray(draw.randint(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
            if number == broken:
                path.write_bytes(path.read_bytes()[:200])
    return {side: str(tmp_path / side) for side in ("real", "generated")}


def test_metrics_pairs_with_a_broken_file_are_counted_once(
    one_broken_of_each_side: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure({**one_broken_of_each_side, "cache": str(tmp_path)}, metric="psnr", frames=1, clips=8, out=tmp_path / "card.json")
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["real"]["clips"] == card["generated"]["clips"] == 6 and not card["real"]["left_out"]
    assert card["generated"]["left_out"] == {"pairs of which a clip is unreadable": 2}
    assert ["/real/1.png" in card["generated"]["unreadable"][0], "/generated/4.png" in card["generated"]["unreadable"][1]] == [True, True]
    said = capsys.readouterr().out
    assert "left out of the generated side: 2 pairs" in said and "left out of the real side" not in said


def test_metrics_pairs_with_other_originals_are_computed_again(material: dict[str, str], tmp_path: Path) -> None:
    """One generated side against two real ones, with one cache."""
    values = []
    for side in ("real", "generated", "real"):
        measure(
            {"real": material[side], "generated": material["generated"], "cache": str(tmp_path)}, metric="psnr", out=tmp_path / "card.json"
        )
        values.append(json.loads((tmp_path / "card.json").read_text())["value"])
    assert values[0] == values[2] < 50 < values[1]
