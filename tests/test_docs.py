"""README.md, CONTRIBUTING.md and docs/*.md: their commands parse, their files, links and messages exist."""

import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.environment import ROOT
from tests.helpers.pages import (
    PAGES,
    broken_links,
    docstrings_of,
    keys_of,
    known_keys,
    launches_of,
    made,
    makes_of,
    messages_of,
    missing_paths,
    parse,
    programs_of,
    read,
    stands_in_the_program,
    unclear_openings,
)

SOURCES = [path for room in ("walt_pl", "stages", "datamodules", "benchmarks") for path in sorted((ROOT / room).rglob("*.py"))]


def unique(commands: list[list[str]]) -> list[list[str]]:
    return [list(words) for words in sorted({tuple(words) for words in commands})]


PROGRAMS = unique([words for page in PAGES for words in programs_of(read(page))])
MAKES = unique([words for page in PAGES for words in makes_of(read(page))])


@pytest.mark.parametrize("words", PROGRAMS, ids=shlex.join)
def test_page_command_of_walt_parses(words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize("words", MAKES, ids=shlex.join)
def test_page_command_of_make_exists_and_its_arguments_parse(words: list[str]) -> None:
    for line in re.split(r"\n|&&", made(words)):
        if match := re.search(r"-m walt_pl (.*)", line):
            parse(shlex.split(match[1]))


def test_page_commands_of_launch_name_files_that_exist() -> None:
    found = [variables for page in PAGES for variables in launches_of(read(page))]
    assert len(found) > 2
    for variables in found:
        config = variables.get("CONFIG", variables.get("STAGE", "base"))
        assert (ROOT / "experiments" / variables["EXP"] / f"{config}.yaml").is_file(), variables
        assert "STRATEGY" not in variables or (ROOT / "experiments" / "strategy" / f"{variables['STRATEGY']}.yaml").is_file(), variables


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_every_named_key_exists(page: Path) -> None:
    assert sorted(keys_of(read(page)) - known_keys()) == []


def test_keys_of_a_page_are_found_with_and_without_dashes() -> None:
    text = "Set `data.fps`, `--model.init_args.text.depth 3`, not `model.yaml` or `stages/data.x`.\n```\n--data.size 3\n```\n"
    assert keys_of(text) == {"data.fps", "model.text.depth"}
    assert {"data.fps", "model.text.depth"} <= known_keys() and "model.text.layers" not in known_keys()


def test_page_commands_are_found() -> None:
    assert len(PROGRAMS) > 30 and len(MAKES) > 30
    assert {words[0] for words in PROGRAMS} >= {"index", "fit", "plan", "cache", "sample", "export"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_every_named_file_and_link_exists(page: Path) -> None:
    assert not broken_links(page)
    if page.name != "FIDELITY.md":  # it names files from walt_pl/ and tests/ on; tests/test_fidelity.py finds them
        assert not missing_paths(read(page))


def test_docstring_every_named_file_exists() -> None:
    missing = {path.relative_to(ROOT).as_posix(): missing_paths(docstrings_of(path)) for path in SOURCES}
    assert not {path: names for path, names in missing.items() if names}


def test_page_index_lists_every_page() -> None:
    index = read(ROOT / "docs" / "README.md")
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md" and f"({page.name})" not in index]


def test_readme_is_short() -> None:
    assert len(read(ROOT / "README.md").splitlines()) < 220


def test_troubleshooting_messages_stand_in_the_program() -> None:
    messages = messages_of(read(ROOT / "docs" / "TROUBLESHOOTING.md"))
    assert len(messages) >= 20
    assert not [message for message in messages if not stands_in_the_program(message)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_sentences_begin_with_their_subject(page: Path) -> None:
    assert not unclear_openings(read(page))


# ---- The rules see a planted fault -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("walt fit --config experiments/shapes/base.yaml --trainer.max_step 3", "max_step"),
        ("walt fit --config experiments/shapes/base.yaml --model.denoiser.layers 3", "layers"),
        ("walt fit --config experiments/shapes/nothing.yaml", "nothing.yaml"),
        ("python -m walt_pl plan --config FILE --gpu 3", "gpu"),
        ("walt sample --prompts a.txt --guidance_scale 3", "guidance_scale"),
        ("walt smaple", "smaple"),
    ],
)
def test_parse_refuses_a_wrong_key_file_or_command(line: str, told: str) -> None:
    (words,) = programs_of(f"```\n{line}\n```\n")
    with pytest.raises(ValueError, match=told):
        parse(words)


@pytest.mark.parametrize("line", ["make train-vea", "make train-vae EXP=nothing", "make train-base STAGE=base_typo"])
def test_made_refuses_a_wrong_target_experiment_or_stage(line: str) -> None:
    (words,) = makes_of(f"Type `{line}` now.")
    with pytest.raises(ValueError, match=line):
        made(words)


def test_parse_gives_the_arguments_of_a_function() -> None:
    (words,) = programs_of("`walt sample --run runs/EXP --text-encoder DIR --continue a.mp4 --seconds 3`")
    found = parse(words)
    assert found is not None
    assert (found["run"], found["text_encoder"], found["continue_"], found["seconds"]) == ("runs/shapes", "DIR", "a.mp4", 3.0)


def test_missing_paths_are_found_and_placeholders_are_not(tmp_path: Path) -> None:
    text = "See walt_pl/runs/lock.py, `docs/GONE.md`, experiments/EXP/STAGE.yaml, tests/{a,b}.py and experiments/*.yaml. See docs/DATA.md."
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "DATA.md").touch()
    assert missing_paths(text, tmp_path) == ["docs/GONE.md", "experiments/*.yaml", "tests/a.py", "tests/b.py", "walt_pl/runs/lock.py"]


def test_broken_links_name_a_file_or_heading_that_is_not_there(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Two words\n[a](#two-words) [b](#three) [c](gone.md) [d](page.md#two-words) [e](https://x.org/#y)\n")
    assert broken_links(page) == ["#three", "gone.md"]


def test_messages_of_another_wording_are_not_found() -> None:
    page = "| message | cause | cure |\n|---|---|---|\n| `... has another title now: ...` | a | b |\n"
    (message,) = messages_of(page)
    assert not stands_in_the_program(message)
    assert stands_in_the_program(message.replace("title", "name"))


def test_unclear_openings_are_found_in_sentences_and_headings() -> None:
    text = "# How it works\nIt runs. Which one runs? `What` is code, and so is\n```\nWho\n```\n| What | that |\n"
    assert unclear_openings(text) == ["How it works", "Which one runs", "What | that |"]
