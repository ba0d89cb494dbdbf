"""README.md of an artifact: it describes each kind of stage, its code runs, and the text of a person stays."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.helpers.tiny_artifact import rewrite_card, save
from tests.helpers.tiny_stages import write_stages
from walt_pl.runs import model_card
from walt_pl.runs.artifact import load
from walt_pl.runs.card import ArtifactError, check_replaceable, read_card, verify_artifact
from walt_pl.runs.evaluations import add_evaluations
from walt_pl.runs.model_card import BEGIN, END, MAX_MODEL_CARD_BYTES, escape, write_model_card
from walt_pl.text.features import encoder_section
from walt_pl.text.small_encoder import PretrainedTextConfig

COMMAND = "python -m walt_pl fit --config experiments/shapes/base.yaml --trainer.max_steps 7"
TRAIN = "data:\n  index: /home/someone/sets/shapes/index.parquet\n  size: 16\n  frames: 9\n"


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifacts of each kind of stage."""
    return write_stages(tmp_path_factory.mktemp("run"))


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8", errors="replace")


def front_matter(text: str) -> dict[str, Any]:
    begin, matter, _ = text.split("---\n", 2)
    assert begin == ""
    return dict(yaml.safe_load(matter))


def describe(folder: Path, **changes: Any) -> str:
    """Return the model card of an artifact of a training whose facts are known."""
    card = {
        "parents": {},
        "index": {"sha256": "ab" * 32, "counts": {"train_videos": 2000, "val_images": 16}},
        "latents": {"mean": [0.1], "std": [1.0]},
        "steps": 7,
        "samples": 56,
        "epochs": 2,
        "training": {"command": COMMAND, "machine": "one CPU, 1 process", "seconds": 12.0, "from_step": 3},
        "metrics": {"protocol": "view 0, averaged weights", "values": {"val/psnr_video": 29.399065}},
    }
    source = load(folder)
    save(folder, source.models["vae"], card={**card, **changes}, files={}, sampling_config={}, train_config=TRAIN)
    return text_of(folder)


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    return write_stages(tmp_path / "run", upscalers=0)["vae"]


@pytest.mark.parametrize("stage", ["vae", "base", "sr1"])
def test_model_card_code_loads_the_artifact(stages: dict[str, Path], monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", text_of(stages[stage]), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(stages[stage])
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["artifact"].sha256 == load(stages[stage]).sha256
    expected = load(stages[stage]).models
    assert names["artifact"].models.keys() == expected.keys()
    if stage == "vae":
        assert names["clips"].shape == (1, 3, 17, 64, 64)
    else:
        assert sum(p.numel() for p in names["denoiser"].parameters()) == sum(p.numel() for p in expected["denoiser"].parameters())


@pytest.mark.parametrize(
    ("stage", "task", "title"),
    [
        ("vae", None, "# Autoencoder of W.A.L.T"),
        ("base", "text-to-video", "# Base model of W.A.L.T"),
        ("sr1", "video-to-video", "# Super-resolution model of W.A.L.T"),
    ],
)
def test_model_card_begins_with_the_entries_of_model_hubs(stages: dict[str, Path], stage: str, task: str | None, title: str) -> None:
    text = text_of(stages[stage])
    matter = front_matter(text)
    assert (matter["license"], matter["library_name"], matter.get("pipeline_tag")) == ("unknown", "walt-pl", task)
    assert "arxiv:2312.06662" in matter["tags"] and f"\n{title}\n" in text


@pytest.mark.parametrize("stage", ["vae", "base", "sr1"])
def test_model_card_counts_the_parameters_of_each_model(stages: dict[str, Path], stage: str) -> None:
    for name, model in load(stages[stage]).models.items():
        floating = sum(value.numel() for value in model.state_dict().values() if value.is_floating_point())
        assert f"| `{name}` | {floating:,} | width " in text_of(stages[stage])


def test_model_card_of_a_class_model_names_its_classes(tmp_path: Path) -> None:
    base = write_stages(tmp_path, upscalers=0, classes=3)["base"]
    assert "| condition | 3 classes |" in text_of(base) and "--label 0" in text_of(base)
    assert "pipeline_tag" not in front_matter(text_of(base))
    source = load(base)
    config = {**{k: v for k, v in source.config.items() if k != "denoiser"}, "classes": {0: "dog|cat", 1: "", 2: "owl"}}
    save(base, kind="base", models={"denoiser": source.models["denoiser"]}, sampling_config=config, card={}, files={}, train_config="")
    assert r"3 classes: dog\|cat, , owl" in text_of(base)


@pytest.mark.parametrize(
    ("stage", "condition"),
    [
        ("base", "captions, read by a text encoder that was trained with the model"),
        ("sr1", "captions, read by the text encoder of the base"),
    ],
)
def test_model_card_names_the_text_encoder_of_each_stage(stages: dict[str, Path], stage: str, condition: str) -> None:
    assert f"| condition | {condition} |" in text_of(stages[stage])


@pytest.mark.parametrize(
    ("sections", "condition"),
    [
        (
            encoder_section(PretrainedTextConfig(kind="t5", path="t5-small", width=16), "ab" * 32),
            "a pretrained text encoder, which is not in this",
        ),
        ({}, "a text encoder that is not recorded"),
    ],
)
def test_model_card_knows_a_frozen_text_encoder_by_its_section(tmp_path: Path, sections: dict[str, Any], condition: str) -> None:
    source = load(write_stages(tmp_path, upscalers=0)["base"])
    models = {"denoiser": source.models["denoiser"]}
    save(source.path, kind="base", models=models, sampling_config=sections, card={}, files={}, train_config="")
    assert f"| condition | captions, read by {condition}" in text_of(source.path)


def test_model_card_of_super_resolution_leaves_the_option_of_sample_to_the_base(tmp_path: Path) -> None:
    """Its own configuration knows neither the text nor the context frames of the base."""
    stages = write_stages(tmp_path, frame_prediction=1.0, context_frames=(1, 2))
    assert "walt sample --run RUN --image PICTURE" in text_of(stages["base"])
    assert "walt sample" not in text_of(stages["sr1"])
    assert "with the command that the model card of the base names" in text_of(stages["sr1"])


def test_model_card_has_data_training_and_figures_with_their_protocol(vae: Path) -> None:
    text = describe(vae)
    for row in (
        "| index | shapes/index.parquet |",
        f"| sha256 of the index | `{'ab' * 32}` |",
        r"| train\_videos | 2,000 |",
        "| optimiser steps | 7 |",
        "| samples seen | 56 (8 a step) |",
        "| epochs | 2 |",
        "| machine | one CPU, 1 process |",
        "| wall time | 12 s, from step 3 on |",
        f"| commit of the code | `{read_card(vae)['code']}` |",
        "Last validation. Protocol: view 0, averaged weights.",
        "| `val/psnr_video` | 29.3991 |",
        f"```sh\n{COMMAND}\n```",
        f"sha256 `{load(vae).sha256}`",
    ):
        assert row in text, row
    assert "/home/someone" not in text
    assert "torch.zeros(1, 3, 9, 16, 16)" in text


def test_model_card_gets_the_figures_of_evaluations_and_replaces_old_ones(vae: Path) -> None:
    describe(vae)
    entry = {
        "metric": "fvd",
        "value": 46.5,
        "preset": "tats",
        "error": 1.5,
        "extractor": "i3d",
        "steps": {"base": 50},
        "file": "metrics/a.json",
    }
    add_evaluations(vae, load(vae).sha256, [entry])
    assert r"| `fvd` | 46.5 | 1.5 | preset tats, extractor i3d, steps \{\"base\"\: 50\} | metrics/a.json |".replace('\\"', '"') in text_of(
        vae
    )
    add_evaluations(vae, load(vae).sha256, [{**entry, "value": 40.25}])
    assert "| `fvd` | 40.25 |" in text_of(vae) and "46.5" not in text_of(vae)
    assert "| `val/psnr_video` | 29.3991 |" in text_of(vae) and verify_artifact(vae) == []


def test_model_card_keeps_the_text_of_a_person_and_the_licence(vae: Path) -> None:
    """Through an evaluation, and through an artifact that replaces this one."""
    own = text_of(vae).replace("license: unknown", "license: mit").replace(BEGIN, f"# Mine\n\nabove\n\n{BEGIN}") + "below, é\n"
    (vae / "README.md").write_text(own, encoding="utf-8")
    add_evaluations(vae, load(vae).sha256, [{"metric": "fvd", "value": 46.5}])
    evaluated = text_of(vae)
    replaced = describe(vae)
    assert "46.5" in evaluated and "46.5" not in replaced and "| optimiser steps | 7 |" in replaced
    for text in (evaluated, replaced):
        assert front_matter(text)["license"] == "mit"
        assert "# Mine\n\nabove\n\n" + BEGIN in text and text.endswith(f"{END}\nbelow, é\n")
        assert text.count(BEGIN) == text.count(END) == 1


@pytest.mark.parametrize(
    "own",
    [b"my own page\n", f"{END}\n{BEGIN}\n".encode(), f"{BEGIN}\n{BEGIN}\n{END}".encode(), b"\xff\xfe", b"x" * (MAX_MODEL_CARD_BYTES + 1)],
    ids=["no comments", "swapped", "twice", "not UTF-8", "too long"],
)
def test_model_card_without_the_two_comments_is_left_as_it_is(vae: Path, own: bytes) -> None:
    (vae / "README.md").write_bytes(own)
    add_evaluations(vae, load(vae).sha256, [{"metric": "fvd", "value": 46.5}])
    assert (vae / "README.md").read_bytes() == own
    describe(vae)
    assert (vae / "README.md").read_bytes() == own and read_card(vae)["steps"] == 7


HOSTILE = {
    "HTML": "<script>alert(1)</script>",
    "image": "![x](https://tracker.example/x.png)",
    "link": "[click](javascript:alert(1)) https://evil.example <https://evil.example>",
    "end of the part": f"{END}{BEGIN}",
    "cell and line": "a | b\n# heading\n\n- item",
    "code": "`x` ```\n~~~\nx",
    "control": "\x1b[2J \u202e gnp.exe \u2028",
}


def count_columns(text: str, tokens: list[Token]) -> list[set[int]]:
    """Return the numbers of cells of the rows of each table. The tokens cannot tell: a reader drops what is beyond the head."""
    lines, columns = text.split("\n"), []
    for token in tokens:
        if token.type == "table_open":
            columns.append(set[int]())
        elif token.type == "tr_open":
            assert token.map is not None
            columns[-1].add(len(re.findall(r"(?<!\\)\|", lines[token.map[0]])) - 1)
    return columns


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_model_card_shows_hostile_text_as_text(vae: Path, text: str) -> None:
    """Names of columns, protocols and classes come from data, and cards may be a stranger's."""
    plain = " ".join(re.sub(r"[\x00-\x1f\u2028\u202e]", "?", text).split())
    metrics = {"protocol": plain, "values": {plain: 1.0}, "in_training": {"values": {"fvd": 1.0}, "protocol": {plain: plain}}}
    facts = {"training": {"command": plain, "machine": plain}, "conversion": {"command": plain, "code": plain}}
    described = describe(vae, metrics=metrics, index={"counts": {plain: 1}}, **facts)
    rewrite_card(vae, packages={"torch": plain})
    write_model_card(vae)
    assert described.count(BEGIN) == described.count(END) == 1
    part = described.partition(BEGIN)[2].rpartition(END)[0]
    tokens = MarkdownIt("gfm-like", {"linkify": False}).enable("table").parse(part)
    inline = [child.type for token in tokens for child in token.children or ()]
    assert not [token.type for token in tokens if token.type == "html_block"]
    assert not {"html_inline", "image", "link_open", "em_open", "strong_open"} & set(inline)
    headings = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == ["Autoencoder of W.A.L.T", "Data", "Training", "Conversion", "Figures", "Load", "Licence"]
    columns = count_columns(part, tokens)
    assert len(columns) >= 5 and [len(counts) for counts in columns] == [1] * len(columns), "a row has more cells than the head"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_escape_is_undone_by_a_markdown_reader(text: str) -> None:
    escaped = escape(text)
    assert not re.search(r"[\x00-\x1f\u2028\u202e]", escaped)
    (token,) = [token for token in MarkdownIt().parse(f"x {escaped}") if token.type == "inline"]
    assert {child.type for child in token.children or ()} <= {"text", "text_special"}
    shown = re.sub(r"[\x00-\x1f\u2028\u202e]", lambda found: ascii(found[0])[1:-1], text)
    assert "".join(child.content for child in token.children or ()) == f"x {shown}"


def test_model_card_that_cannot_be_written_warns_and_costs_nothing(vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (vae / "README.md").unlink()
    model = load(vae).models["vae"]

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(28, "no space left", str(path))

    monkeypatch.setattr(model_card, "write_whole", refuse)
    with pytest.warns(UserWarning, match=r"README.md is not written .*no space left.*complete without it"):
        sha256 = save(vae, model, files={}, sampling_config={})
    assert load(vae).sha256 == sha256 and not (vae / "README.md").exists()
    with pytest.warns(UserWarning, match="is not written"):
        add_evaluations(vae, sha256, [{"metric": "fvd", "value": 1.0}])
    monkeypatch.setattr(model_card, "render_model_card", lambda folder: 1 / 0)
    with pytest.warns(UserWarning, match="division by zero"):
        save(vae, model, files={}, sampling_config={})


def test_model_card_belongs_to_no_hash_and_is_replaced_with_its_artifact(vae: Path) -> None:
    (vae / "README.md").write_text("a stranger's words")
    assert verify_artifact(vae) == [] and "README.md" not in read_card(vae)["files"]
    check_replaceable(vae)
    (vae / "README.md").unlink()
    assert verify_artifact(vae) == [] and load(vae).kind == "vae"
    os.symlink("/etc/hostname", vae / "README.md")
    with pytest.raises(ArtifactError, match=r"README.md is a symbolic link"):
        load(vae)
    with pytest.raises(ArtifactError, match=r"README.md"):
        check_replaceable(vae)


def test_model_card_alone_makes_no_artifact(tmp_path: Path) -> None:
    """A folder with somebody's README.md is not replaced."""
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(ArtifactError, match="no artifact that could be replaced"):
        save(tmp_path, torch.nn.Identity(), models={})
