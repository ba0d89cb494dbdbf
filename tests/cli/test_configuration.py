"""Keys of a configuration: the help of `fit` explains each one, and docs/CONFIGURATION.md has them all."""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from jsonargparse import Namespace

from tests.helpers.environment import ROOT
from walt_pl.cli.configuration import first_sentence, render_type, sentence
from walt_pl.cli.configuration_page import PAGE, STAGES, render_page
from walt_pl.cli.fit import WaltCLI
from walt_pl.cli.main import main

Help = Callable[..., str]
CONFIGS = ["vae_gan", "base", "sr1"]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Help:
    """Runs a command line that ends with its help, on a wide terminal, and returns the help."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert not ended.value.code
        return capsys.readouterr().out

    return run


def parse(config: Path | str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the values of `fit --config`, as `--print_config` prints them."""
    monkeypatch.setattr(WaltCLI, "before_instantiate_classes", lambda self: None)
    monkeypatch.setattr(WaltCLI, "instantiate_classes", lambda self: None)
    cli = WaltCLI(["--config", str(config), "--stage", "base"], run=False)
    return yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))


def leaves(plain: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of values, as they are typed."""
    if not isinstance(plain, dict) or not plain:
        yield prefix
        return
    for name, value in plain.items():
        if name == "class_path":
            yield prefix
        else:
            yield from leaves(value, prefix if name == "init_args" else f"{prefix}.{name}".removeprefix("."))


@pytest.mark.parametrize("stage", CONFIGS)
def test_fit_help_explains_every_key_of_the_configuration(stage: str, shown: Help, monkeypatch: pytest.MonkeyPatch) -> None:
    config = f"experiments/shapes/{stage}.yaml"
    lines = shown("fit", "--config", config, "--help").splitlines()
    texts = {line.split()[0][2:]: after.strip() for line, after in pairwise(lines) if line.startswith("  --")}
    wanted = set(leaves(parse(config, monkeypatch)))
    assert {"model", "model.optimizer.lr", "data.fps", "ema.decay", "trainer.max_steps", "run"} < wanted
    assert wanted - set(texts) == set()
    assert [key for key, text in texts.items() if len(text) < 10 or text[-1:] not in ".)"] == []


def test_fit_help_says_values_and_their_origin(shown: Help) -> None:
    typed = ["--model.denoiser.depth=4", "--model.init_args.diffusion.guidance.scale", "3", "--trainer.max_steps", "7"]
    lines = shown("fit", "--config", "experiments/shapes/base.yaml", "--help", *typed).splitlines()
    for line in (
        "--model stages.base.BaseStage  (class; experiments/shapes/base.yaml)",
        "--model.denoiser.width 192  (int; experiments/shapes/base.yaml; default 1024)",
        "--model.denoiser.depth 4  (int; command line; default 24)",
        "--model.denoiser.size '[5, 8, 8]'  ([int, int, int]; experiments/shapes/base.yaml; default [5, 16, 16])",
        "--model.denoiser.lora_rank 2  (int | null; default)",
        "--model.optimizer timm.optim.Muon  (class; experiments/shapes/base.yaml)",
        "--model.optimizer.lr 0.012  (float; experiments/shapes/base.yaml; default 0.02)",
        "--model.text.max_length 12  (int; experiments/shapes/base.yaml; default 16)",
        "--model.diffusion.guidance.scale 3.0  (float; command line; default 1.0)",
        "--trainer.max_steps 7  (int; command line; default -1)",
        "--data.index data/shapes/index.parquet  (str; experiments/shapes/base.yaml)",
    ):
        assert f"  {line}" in lines
    assert not [line for line in lines if "PretrainedTextConfig)" in line], "the other kind of text encoder was not chosen"


def test_fit_help_names_the_extended_file_that_sets_a_value(shown: Help) -> None:
    text = shown("fit", "--config", "experiments/ucf101/base_l_separate.yaml", "--config", "experiments/ucf101/rank_4.yaml", "-h")
    assert "--model.denoiser.lora_rank 4  (int | null; experiments/ucf101/rank_4.yaml; default 2)" in text
    assert "--model.denoiser.num_classes 101  (int | null; experiments/ucf101/base_l.yaml; default null)" in text
    assert re.search(r"--trainer.precision bf16-mixed  \(.*; experiments/ucf101/\.\./common/gpu.yaml; default null\)", text)
    assert "(PretrainedTextConfig)" in text and "(SmallTextConfig)" in text, "none is chosen"


@pytest.mark.parametrize("command", ["fit", "validate", "plan", "cache"])
def test_help_without_a_config_says_how_to_see_the_keys_of_a_model(command: str, shown: Help) -> None:
    text = shown(command, "--help")
    assert text.startswith(f"usage: walt {command} --config experiments/EXP/STAGE.yaml [--KEY VALUE ...]\n")
    assert f"walt {command} --config experiments/EXP/STAGE.yaml --help explains every key of the stage's model" in text
    assert "--data.index ...  (str; required)" in text and "--model" not in text
    assert ("--gpus" in text) == (command == "plan") and ("--verbose" in text) == (command == "validate")


def test_help_of_a_wrong_key_is_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="widht"):
        main(["plan", "--config", "experiments/shapes/base.yaml", "--model.denoiser.widht", "8", "--help"])


@pytest.mark.parametrize(
    "typed",
    ["--trainer.max_step", "--model.denoiser.widt", "--model.optimizer.l", "--model.text.dept", "--data.siz", "--ema.deca", "--stag"],
)
@pytest.mark.parametrize("command", ["fit", "plan"])
def test_fit_and_plan_refuse_abbreviations(command: str, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=rf"{typed.rpartition('.')[2].removeprefix('--')}\b"):
        main([command, "--config", "experiments/shapes/base.yaml", typed, "96"])


# ---- The page ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / PAGE).read_text(encoding="utf-8")


def test_configuration_page_is_that_of_the_docstrings(page: str) -> None:
    assert page == render_page(), "docs/CONFIGURATION.md is old: make configuration"


@pytest.mark.parametrize("stage", STAGES)
def test_configuration_page_has_every_key_of_a_stage_with_its_default(
    stage: str, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [block.partition("```")[0] for block in page.split("```yaml\n")[1:]]
    others = [block for block in blocks if not block.startswith("model:")]
    (model,) = (block for block in blocks if f"class_path: {STAGES[stage].__module__}." in block)
    shown = yaml.safe_load("\n".join([*others, model]))
    del shown["ckpt_path"]  # of fit alone
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(shown))
    needed = {"class_path": shown["model"]["class_path"], "init_args": {"optimizer": shown["model"]["init_args"]["optimizer"]}}
    (tmp_path / "least.yaml").write_text(
        yaml.safe_dump({"model": needed, "data": {name: shown["data"][name] for name in ("index", "size")}})
    )
    whole, least = (parse(tmp_path / f"{name}.yaml", monkeypatch) for name in ("whole", "least"))
    assert whole == least, "a default of the page is not that of the program"
    trainer, shown_trainer = least.pop("trainer"), shown.pop("trainer")
    shown["stage"] = least["stage"]
    shown["model"]["init_args"]["optimizer"] = least["model"]["init_args"]["optimizer"]  # the page has some arguments of its example
    assert shown == least and shown_trainer.items() <= trainer.items()


def test_configuration_page_explains_every_key(page: str) -> None:
    lines = [line for block in page.split("```yaml\n")[1:] for line in block.partition("```")[0].splitlines()]
    bare = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if not line.lstrip().startswith("#") and not line.endswith(":") and not before.lstrip().startswith("#")
    ]
    assert bare == [line for line in lines if "class_path: stages." in line]


# ---- Texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int | None, "int | null"),
        (Literal["a", 1] | Literal["a"] | None, "a | 1 | null"),
        (tuple[int, ...], "[int, ...]"),
        (list[str], "[str, ...]"),
        (tuple[tuple[int, int], ...], "[[int, int], ...]"),
        (dict[Literal["video", "image"], str] | None, "{video | image: str} | null"),
        (Callable[[int], Namespace], "class"),
        (None, "text"),
    ],
)
def test_render_type_is_the_notation_of_values(hint: Any, text: str) -> None:
    assert render_type(hint) == text


def test_first_sentence_ends_before_details_and_defaults() -> None:
    assert first_sentence("The devices to use. Can be set to more. Default: ``auto``.") == "The devices to use."
    assert first_sentence("learning rate (default: 1e-3). A tensor LR") == "learning rate."
    assert first_sentence("Uses :class:`torch.x.Sampler`") == "Uses `torch.x.Sampler`." and first_sentence("") == ""
    assert sentence("torch.compile it") == "torch.compile it" and sentence("number of") == "Number of"
