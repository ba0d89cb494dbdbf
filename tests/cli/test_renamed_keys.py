"""Old names of keys are refused with the new ones."""

from pathlib import Path

import pytest

from tests.helpers.environment import ROOT
from walt_pl.cli.config_files import configs_of
from walt_pl.cli.renamed_keys import RENAMED, RENAMED_VALUES, check_renamed


@pytest.mark.parametrize("key", RENAMED)
def test_check_renamed_refuses_an_old_key_on_the_command_line(key: str) -> None:
    for typed in ([f"--{key}=1"], [f"--{key}", "1"], [f"--{key.replace('model.', 'model.init_args.', 1)}", "1"]):
        with pytest.raises(ValueError, match=rf"--\S+ has another name now: {RENAMED[key].split(' ')[0]}"):
            check_renamed(["fit", *typed], [])


@pytest.mark.parametrize("key", RENAMED)
def test_check_renamed_refuses_an_old_key_in_a_file_and_names_both(key: str, tmp_path: Path) -> None:
    *groups, last = key.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate([*groups, last])]
    if groups[:1] == ["model"]:
        lines = [lines[0], "  init_args:", *(f"  {line}" for line in lines[1:])]
    config = tmp_path / "vae.yaml"
    config.write_text("\n".join([*lines[:-1], f"{lines[-1]} 1"]))
    group = key.partition(".")[0]
    named = group if group in RENAMED else key
    with pytest.raises(ValueError, match=rf"vae\.yaml: {named} has another name now: {RENAMED[named].split(' ')[0]}"):
        check_renamed([], [config])


def test_check_renamed_refuses_an_old_key_in_an_extended_file(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("model: {init_args: {denoiser: {heads: 2}}}")
    (tmp_path / "base.yaml").write_text("extends: [low.yaml]")
    arguments = ["fit", "--config", str(tmp_path / "base.yaml")]
    with pytest.raises(ValueError, match=r"low\.yaml: model\.denoiser\.heads has another name now: model\.denoiser\.num_heads"):
        check_renamed(arguments, configs_of(arguments))


@pytest.mark.parametrize(("key", "old"), RENAMED_VALUES)
def test_check_renamed_refuses_an_old_value_and_names_the_new_one(key: str, old: str, tmp_path: Path) -> None:
    new = RENAMED_VALUES[key, old]
    for typed in ([f"--{key}={old}"], [f"--{key}", old], [f"--{key.replace('model.', 'model.init_args.', 1)}", old]):
        with pytest.raises(ValueError, match=rf"--(\S+) {old} has another name now: --\1 {new}"):
            check_renamed(["fit", *typed], [])
        check_renamed(["fit", *(word.replace(old, new) for word in typed), old], [])
    first, second, last = key.split(".")
    config = tmp_path / "base.yaml"
    config.write_text(f"{first}: {{init_args: {{{second}: {{{last}: {old}}}}}}}")
    with pytest.raises(ValueError, match=rf"base\.yaml: {key} {old} has another name now: {key} {new}"):
        check_renamed([], [config])
    config.write_text(f"{first}: {{init_args: {{{second}: {{{last}: {new}}}}}}}")
    check_renamed([], [config])


def test_check_renamed_finds_no_old_key_in_experiments() -> None:
    configs = sorted((ROOT / "experiments").rglob("*.yaml"))
    check_renamed([], configs)
    assert len(configs) > 30
