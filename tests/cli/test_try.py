"""`walt try`: clips of one prompt or of six, and a sentence where there is no model."""

from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.tiny_stages import write_stages
from walt_pl.cli import try_ as command
from walt_pl.cli.main import main
from walt_pl.cli.try_ import ASSETS, PROMPTS, find_assets
from walt_pl.runs.manifest import Manifest
from walt_pl.shapes.dataset import COLOURS, MOTIONS, SHAPES, TEXTURES, parse_caption


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    for stage, folder in write_stages(root).items():
        Manifest.open(root).finish(stage, folder)
    return root


@pytest.mark.filterwarnings("ignore:.*never seen")
@pytest.mark.parametrize(("words", "clips"), [(["a plain red circle moving left"], [""]), ([], [f"_{i:03d}" for i in range(6)])])
def test_try_writes_moving_pictures_and_prints_their_paths(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], clips: list[str]
) -> None:
    main(["try", *words, "--run", str(run), "--out", str(tmp_path / "out")])
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {*(f"clip{number}.mp4" for number in clips), "clip.gif", "clip.png"}
    assert f"{tmp_path}/out/clip.gif, {tmp_path}/out/clip.png" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "clip.gif") as moving:
        assert getattr(moving, "n_frames", 1) > 1
    main(["try", "a plain red circle moving left", "--run", str(run), "--out", f"{tmp_path}/out/"])
    assert {"clip-2.mp4", "clip-2.gif", "clip-2.png"} < {path.name for path in (tmp_path / "out").iterdir()}


def test_try_prompts_have_all_words_of_the_embedded_set() -> None:
    words = [parse_caption(prompt) for prompt in PROMPTS]
    assert {word.shape for word in words} == set(SHAPES) and {word.colour for word in words} == set(COLOURS)
    assert {word.motion for word in words} == set(MOTIONS) and {word.texture for word in words} == set(TEXTURES)


def test_try_without_a_model_says_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package has no assets."""
    monkeypatch.setattr(command, "PACKAGE", tmp_path / "site-packages" / "walt_pl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"no trained model in assets/shapes; a checkout of the repository \(git clone\) has .*--run DIR"):
        main(["try"])
    with pytest.raises(SystemExit, match="no trained model in runs/none"):
        main(["try", "--run", "runs/none"])


def test_find_assets_takes_those_of_the_checkout_in_any_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PACKAGE", tmp_path / "checkout" / "walt_pl")
    (tmp_path / "checkout" / "assets").mkdir(parents=True)
    (tmp_path / "checkout" / ASSETS).symlink_to(run)
    monkeypatch.chdir(tmp_path)
    assert find_assets(Path(ASSETS)) == tmp_path / "checkout" / ASSETS
    assert find_assets(run) == run


def test_try_help_has_the_typed_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["try", "--help"])
    assert ended.value.code == 0 and "usage: walt try " in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"no such key; did you mean --prompt\? \(all keys: walt try --help\)"):
        main(["try", "--promt", "x"])
