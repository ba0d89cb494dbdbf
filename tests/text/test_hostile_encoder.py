"""Text encoders of strangers: nothing beside the hashed files is read, no code runs, nobody is asked, and damage ends in a ValueError."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.helpers.environment import Bomb
from walt_pl.runs.artifact import Artifact
from walt_pl.runs.card import PRETRAINED_TEXT
from walt_pl.text.features import FeatureCache, recorded_encoder
from walt_pl.text.pretrained_encoder import PretrainedTextEncoder, files_of
from walt_pl.text.small_encoder import MAX_VOCABULARY_BYTES, PretrainedTextConfig, SmallTextConfig, SmallTextEncoder, train_vocabulary


@pytest.fixture
def config(tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainedTextConfig:
    """The tiny T5 in a folder that a test may change. A question on standard input fails the test."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    folder = shutil.copytree(tiny_t5, tmp_path / "t5")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return PretrainedTextConfig("t5", str(folder), width=16, max_length=24, dtype="float32")


def change(config: PretrainedTextConfig, name: str, **values: Any) -> None:
    """Set keys of a JSON file in the encoder's folder."""
    path = Path(config.path) / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def test_pretrained_text_encoder_shows_its_library_the_hashed_files_alone(
    config: PretrainedTextConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(config.path)
    for name in ("modeling_evil.py", "adapter_config.json", "generation_config.json", "chat_template.jinja", "processor_config.json"):
        (folder / name).write_text("{}")
    shown: list[set[str]] = []
    read = transformers.AutoTokenizer.from_pretrained

    def reading(place: Path, **options: Any) -> Any:
        assert huggingface_hub.constants.HF_HUB_OFFLINE and options == {"local_files_only": True, "trust_remote_code": False}
        shown.append({path.name for path in place.iterdir()})
        return read(place, **options)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", reading)
    load = transformers.T5EncoderModel.from_pretrained

    def loading(place: Path, *, trust_remote_code: bool, weights_only: bool, use_safetensors: bool, **options: Any) -> Any:
        assert (trust_remote_code, weights_only, use_safetensors) == (False, True, True)
        shown.append({path.name for path in place.iterdir()})
        return load(place, **options)

    monkeypatch.setattr(transformers.T5EncoderModel, "from_pretrained", loading)
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    PretrainedTextEncoder(config)
    assert shown == [set(files_of(config))] * 2 and "modeling_evil.py" not in shown[0]
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("kind", ["t5", "auto"])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}, "model_type": "evil"}),
        ("config.json", {"auto_map": {"AutoModel": "stranger/repo--evil.Evil"}, "model_type": "evil"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}),
        ("config.json", {"quantization_config": {"quant_method": "evil", "load_in_4bit": True}}),
        ("config.json", {"dtype": "os.system", "torch_dtype": "evil"}),
        (
            "adapter_config.json",
            {"peft_type": "LORA", "base_model_name_or_path": "stranger/repo", "auto_mapping": {"a": "evil"}},
        ),
        ("tokenizer_config.json", {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd", "tokenizer_file": "/etc/passwd", "name_or_path": "stranger/repo"}),
        ("config.json", {"_name_or_path": "stranger/repo", "custom_generate": "stranger/repo"}),
    ],
)
def test_pretrained_text_encoder_runs_no_code_and_opens_no_connection(
    kind: Any, name: str, values: dict[str, Any], config: PretrainedTextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder may be refused, or read as if these keys were not there."""
    (Path(config.path) / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import T5EncoderModel as Evil\n")
    change(config, name, **values)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    monkeypatch.chdir(config.path)  # where `import evil` would find it
    try:
        assert PretrainedTextEncoder(replace(config, kind=kind)).encode(["a red circle"])[0].isfinite().all()
    except ValueError as error:
        assert str(error).startswith("text.path: ") and "walt-encoder" not in str(error)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"transformers_weights": "../other.safetensors"},
        {"_attn_implementation": "kernels-community/evil"},
        {"attn_implementation": {"a": 1}, "text_config": {"attn_implementation": "stranger/kernel@main:f"}},
        {"use_timm_backbone": True, "backbone": "resnet50"},
    ],
)
def test_pretrained_text_encoder_refuses_keys_that_select_other_files(values: dict[str, Any], config: PretrainedTextConfig) -> None:
    change(config, "config.json", **values)
    with pytest.raises(ValueError, match=r"^text\.path: .*config\.json refers to .*, which is no part of the folder; remove this key$"):
        PretrainedTextEncoder(config)


def test_pretrained_text_encoder_refuses_weights_outside_of_its_folder(config: PretrainedTextConfig) -> None:
    folder = Path(config.path)
    weights = load_file(folder / "model.safetensors")
    for name in ("part.safetensors", "../part.safetensors"):
        save_file(weights, folder / name, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    change(config, "model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(weights, "part.safetensors"))
    PretrainedTextEncoder(config)
    change(config, "model.safetensors.index.json", weight_map=dict.fromkeys(weights, "../part.safetensors"))
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json names .*part\.safetensors., which is no file of this folder"):
        PretrainedTextEncoder(config)


def test_pretrained_text_encoder_reads_snapshots_of_links(config: PretrainedTextConfig, tmp_path: Path) -> None:
    blobs = Path(shutil.move(config.path, tmp_path / "blobs"))
    (tmp_path / "snapshots" / "1").mkdir(parents=True)
    for path in blobs.iterdir():
        (tmp_path / "snapshots" / "1" / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    PretrainedTextEncoder(replace(config, path=str(tmp_path / "snapshots" / "1")))


def test_pretrained_text_encoder_reads_tensors_of_bin_files_and_prefers_safetensors(config: PretrainedTextConfig, bomb: Bomb) -> None:
    folder = Path(config.path)
    same = PretrainedTextEncoder(config).encode(["a red circle"])[0]
    torch.save({"shared.weight": bomb}, folder / "pytorch_model.bin")
    assert torch.equal(PretrainedTextEncoder(config).encode(["a red circle"])[0], same)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(PretrainedTextEncoder(config).encode(["a red circle"])[0], same)
    assert not bomb.mark.exists()


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' * 1000, "[]", "\ud800", "nan"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_pretrained_text_encoder_refuses_descriptions_that_are_no_objects(name: str, content: str, config: PretrainedTextConfig) -> None:
    (Path(config.path) / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=rf"^text\.path: .*{name}"):
        PretrainedTextEncoder(config)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors", "spiece.model"])
def test_pretrained_text_encoder_of_flipped_files_loads_or_raises_value_error(name: str, config: PretrainedTextConfig) -> None:
    path = Path(config.path) / name
    if name == "spiece.model":
        (path.parent / "tokenizer.json").unlink()
    whole, random = path.read_bytes(), Random(0)
    for _ in range(4):
        content = bytearray(whole)
        content[random.randrange(min(300, len(content)))] ^= 1 << random.randrange(8)
        path.write_bytes(content)
        try:
            PretrainedTextEncoder(config)
        except ValueError as error:
            assert str(error).startswith("text")


def test_small_text_encoder_of_flipped_vocabularies_loads_or_raises_value_error() -> None:
    whole = train_vocabulary([f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square")], 60)
    encoder, random = SmallTextEncoder(SmallTextConfig(width=8, depth=1, num_heads=2, vocab_size=60)), Random(0)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(random.choice([1, 8])):
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        try:
            encoder.load_vocabulary(bytes(content[: random.choice([len(content), random.randrange(len(content))])]))
            encoder.encode(["a red circle"])
        except ValueError as error:
            assert str(error).startswith("text")
    with pytest.raises(ValueError, match="is no sentencepiece model"):
        encoder.load_vocabulary(b"words " * 9)
    with pytest.raises(ValueError, match=r"has 16,777,217 bytes, at most 16,777,216 wanted"):
        encoder.load_vocabulary(bytes(MAX_VOCABULARY_BYTES + 1))


@pytest.mark.parametrize(
    "section",
    [
        {},
        [],
        "t5",
        {"kind": "t5", "path": "/etc", "width": 16},
        {"kind": "evil", "path": "x", "width": 16, "sha256": "0"},
        {"kind": "t5", "path": ["x"], "width": 16, "sha256": "0"},
        {"kind": "t5", "path": "a\0b", "width": 16, "sha256": "0"},
        {"kind": "t5", "path": "x", "width": 2**60, "sha256": "0"},
        {"kind": "t5", "path": "x", "width": 16, "dtype": "load", "sha256": "0"},
        {"kind": "t5", "path": "x", "width": 16, "max_length": 10**9, "sha256": "0"},
        {"kind": "t5", "path": "x", "width": 16, "sha256": "0", "trust_remote_code": True},
        {"kind": "t5", "path": "/etc", "width": 16, "sha256": "0"},
        {"kind": "t5", "path": "../..", "width": 16, "sha256": "0"},
        {"kind": "clip", "path": "ViT-B-32@/dev/zero", "width": 16, "sha256": "0"},
        {"kind": "clip", "path": "ViT-B-32@openai", "width": 16, "sha256": "0"},
    ],
)
def test_recorded_encoder_of_a_stranger_is_refused_and_nothing_is_downloaded(section: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    with pytest.raises(ValueError, match=r"^runs/x/base"):
        recorded_encoder(Artifact(Path("runs/x/base"), {}, {PRETRAINED_TEXT: section}, {}), None, "--text-encoder")


def _other(shape: tuple[int, ...], **others: torch.Tensor) -> dict[str, torch.Tensor]:
    parts = {"sha256": torch.zeros(1, 32, dtype=torch.uint8), "start": torch.tensor([0, 1]), "crc32": torch.zeros(1, dtype=torch.int64)}
    return {**parts, "tokens": torch.zeros(*shape), **others}


@pytest.mark.parametrize(
    "parts",
    [
        lambda: {"tokens": torch.zeros(1)},
        lambda: _other((1,)),
        lambda: _other((1, 2), sha256=torch.zeros(1, 31, dtype=torch.uint8)),
        lambda: _other((1, 2), sha256=torch.zeros(32)),
        lambda: _other((1, 2), start=torch.zeros(1, dtype=torch.int64)),
        lambda: _other((1, 2), crc32=torch.zeros((), dtype=torch.int64)),
    ],
)
def test_feature_cache_names_shards_of_other_tensors_as_damaged(parts: Callable[[], dict[str, torch.Tensor]], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, {"encoder": "0"})
    save_file(parts(), tmp_path / "a.safetensors", {"key": cache.key})
    os.mkfifo(tmp_path / "b.safetensors")
    with pytest.warns(UserWarning, match="is damaged") as said:
        cache.look()
    assert [Path(str(one.message).split()[0]).name for one in said] == ["a.safetensors", "b.safetensors"]
    assert cache.missing(["a"]) == ["a"] and cache.read("a") is None
