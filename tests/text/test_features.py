"""Features of frozen text encoders: an encoder is known by its bytes, and its tokens are computed once, whatever happens meanwhile."""

import errno
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor

from walt_pl.runs.artifact import Artifact
from walt_pl.text import features as text_features
from walt_pl.text.features import CachedTextEncoder, FeatureCache, encoder_section, encoder_sha256, recorded_encoder
from walt_pl.text.pretrained_encoder import PretrainedTextEncoder
from walt_pl.text.small_encoder import PretrainedTextConfig

CAPTIONS = [f"a {colour} {shape}" for colour in ("red", "blue", "plain") for shape in ("circle", "square left", "plain circle")]
SHA = "0" * 64


@pytest.fixture
def config(tiny_t5: Path, tmp_path: Path) -> PretrainedTextConfig:
    """The tiny T5 in a folder that a test may change."""
    shutil.copytree(tiny_t5, tmp_path / "t5")
    return PretrainedTextConfig("t5", str(tmp_path / "t5"), width=16, max_length=24, dtype="bfloat16")


def encoder(config: PretrainedTextConfig, tmp_path: Path, sha256: str = SHA) -> CachedTextEncoder:
    return CachedTextEncoder(config, sha256, tmp_path / "cache")


def shards(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("text-*/*.safetensors"))


def unloadable(*_: object) -> PretrainedTextEncoder:
    raise AssertionError("the encoder was loaded")


# ---- Which encoder -------------------------------------------------------------------------------------------------


def test_encoder_sha256_depends_on_the_bytes_of_its_files(config: PretrainedTextConfig, tmp_path: Path) -> None:
    known = encoder_sha256(config)
    shutil.copytree(config.path, tmp_path / "elsewhere")
    assert encoder_sha256(replace(config, path=str(tmp_path / "elsewhere"))) == known
    (Path(config.path) / "README.md").write_text("no part of it")
    assert encoder_sha256(config) == known
    for name in ("config.json", "spiece.model", "model.safetensors"):
        path = Path(config.path) / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert encoder_sha256(config) != known, name
        path.write_bytes(whole)
    assert encoder_sha256(config) == known


def test_encoder_sha256_is_remembered_by_size_and_time(
    config: PretrainedTextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, memory = Path(config.path) / "model.safetensors", tmp_path / "new" / "hashes.json"
    for path in Path(config.path).iterdir():
        os.utime(path, ns=(0, 10**18))
    known = encoder_sha256(config, memory)
    read: list[Path] = []
    monkeypatch.setattr(text_features, "file_sha256", lambda path: read.append(path) or "other")
    assert encoder_sha256(config, memory) == known and not read
    os.utime(weights, ns=(0, 2 * 10**18))
    assert encoder_sha256(config, memory) != known and read == [weights]
    memory.write_text("{half")
    assert encoder_sha256(config, memory) != known, "a damaged memory is no memory"


def test_encoder_sha256_of_a_file_that_changed_just_now_is_not_remembered(config: PretrainedTextConfig, tmp_path: Path) -> None:
    weights, memory = Path(config.path) / "model.safetensors", tmp_path / "hashes.json"
    os.utime(weights)
    before, stat = encoder_sha256(config, memory), weights.stat()
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert encoder_sha256(config, memory) != before


def artifact(config: PretrainedTextConfig | None, sha256: str = "") -> Artifact:
    return Artifact(Path("runs/x/base"), {}, encoder_section(config, sha256) if config else {}, {})


def test_recorded_encoder_missing_or_changed_says_what_to_type(config: PretrainedTextConfig, tmp_path: Path) -> None:
    made = artifact(config, encoder_sha256(config))
    assert recorded_encoder(made, None, "--text-encoder") == config
    moved = str(shutil.move(config.path, tmp_path / "moved"))
    with pytest.raises(ValueError, match=rf"runs/x/base needs its text encoder .*no folder {config.path}.*--text-encoder PATH"):
        recorded_encoder(made, None, "--text-encoder")
    assert recorded_encoder(made, moved, "--text-encoder") == replace(config, path=moved)
    (Path(moved) / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not the one that runs/x/base was trained with .*--text-encoder PATH"):
        recorded_encoder(made, moved, "--text-encoder")


def test_recorded_encoder_of_an_artifact_is_not_downloaded(config: PretrainedTextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person's own --text-encoder is, and a snapshot that is on this machine is taken."""
    asked: list[bool] = []

    def snapshot(name: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append(local_files_only)
        if name == "stranger/away" and local_files_only:
            raise LocalEntryNotFoundError("not here")
        return config.path

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    sha256 = encoder_sha256(config)
    with pytest.raises(ValueError, match=r"recorded in an artifact is not downloaded: hf download stranger/away.*--text-encoder PATH"):
        recorded_encoder(artifact(replace(config, path="stranger/away"), sha256), None, "--text-encoder")
    assert asked and all(asked)
    assert recorded_encoder(artifact(replace(config, path="stranger/here"), sha256), None, "--text-encoder") is not None
    assert recorded_encoder(artifact(config, sha256), "stranger/away", "--text-encoder") is not None and False in asked


def test_recorded_encoder_refuses_a_path_where_no_encoder_is_frozen() -> None:
    assert recorded_encoder(artifact(None), None, "--text-encoder") is None
    with pytest.raises(ValueError, match="not trained with a frozen text encoder"):
        recorded_encoder(artifact(None), "/somewhere", "--text-encoder")


# ---- Features on disk ----------------------------------------------------------------------------------------------


def test_cached_text_encoder_gives_the_features_of_the_encoder_bit_for_bit(
    config: PretrainedTextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct, words = PretrainedTextEncoder(config).encode(sorted(CAPTIONS, key=lambda caption: (len(caption), caption)))
    encoder(config, tmp_path).fill(CAPTIONS)
    monkeypatch.setattr(text_features, "PretrainedTextEncoder", unloadable)
    tokens, mask = encoder(config, tmp_path).encode(sorted(CAPTIONS, key=lambda caption: (len(caption), caption)))
    assert tokens.dtype == torch.bfloat16
    assert torch.equal(mask, words)
    assert torch.equal(tokens[mask], direct[words])
    assert not tokens[~mask].any()


def test_cached_text_encoder_encodes_missing_captions_once_and_stores_them(
    config: PretrainedTextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = encoder(config, tmp_path)
    cached.fill(CAPTIONS[:4])
    first, mask = cached.encode([*CAPTIONS[2:6], CAPTIONS[5]])
    assert [len(load_file(path)["sha256"]) for path in sorted(shards(tmp_path), key=os.path.getctime)] == [4, 2]
    monkeypatch.setattr(text_features, "PretrainedTextEncoder", unloadable)
    again, _ = encoder(config, tmp_path).encode([*CAPTIONS[2:6], CAPTIONS[5]])
    assert torch.equal(first, again)
    assert torch.equal(first[-1][mask[-1]], first[-2][mask[-2]])


def test_feature_cache_stores_no_padding(config: PretrainedTextConfig, tmp_path: Path) -> None:
    _, words = PretrainedTextEncoder(config).encode(CAPTIONS)
    encoder(config, tmp_path).fill(CAPTIONS)
    [shard] = shards(tmp_path)
    assert load_file(shard)["tokens"].shape == (int(words.sum()), 16)


def test_cached_text_encoder_gives_empty_captions_a_token_and_no_captions_a_shape(config: PretrainedTextConfig, tmp_path: Path) -> None:
    tokens, mask = encoder(config, tmp_path).encode(["", "red"])
    assert mask[0].tolist()[:1] == [True] and tokens.shape[0] == 2
    tokens, mask = encoder(config, tmp_path).encode([])
    assert tokens.shape == (0, 1, 16) and mask.shape == (0, 1) and mask.dtype == torch.bool


@pytest.mark.parametrize("change", [{"max_length": 12}, {"dtype": "float32"}])
def test_feature_cache_of_another_length_or_dtype_is_its_own(config: PretrainedTextConfig, tmp_path: Path, change: dict[str, str]) -> None:
    encoder(config, tmp_path).fill(CAPTIONS)
    other = encoder(replace(config, **change), tmp_path)  # type: ignore[arg-type]
    assert other.cache.missing(CAPTIONS) == sorted(CAPTIONS)


def test_feature_cache_never_reads_a_shard_of_another_encoder(config: PretrainedTextConfig, tmp_path: Path) -> None:
    encoder(config, tmp_path).fill(CAPTIONS)
    [shard] = shards(tmp_path)
    other = encoder(config, tmp_path, "1" * 64)
    other.cache.folder.mkdir()
    shutil.copy(shard, other.cache.folder)
    with pytest.warns(UserWarning, match="stale"):
        other.cache.look()
    assert other.cache.missing(CAPTIONS) == sorted(CAPTIONS)
    assert other.cache.read(CAPTIONS[0]) is None


def test_cached_text_encoder_encodes_damaged_features_again(config: PretrainedTextConfig, tmp_path: Path) -> None:
    right, _ = encoder(config, tmp_path).encode(CAPTIONS)
    [shard] = shards(tmp_path)
    data, token = bytearray(shard.read_bytes()), load_file(shard)["tokens"][-1]
    data[data.index(token.view(torch.uint8).numpy().tobytes())] ^= 255
    shard.unlink()
    shard.with_name("flipped.safetensors").write_bytes(data)
    shard.with_name("half.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match="is damaged"):
        cached = encoder(config, tmp_path)
    with pytest.warns(UserWarning, match="row . is damaged"):
        tokens, _ = cached.encode(CAPTIONS)
    torch.testing.assert_close(tokens, right, rtol=0.02, atol=0.02)  # another batch, other roundings
    assert len(shards(tmp_path)) == 3


def test_cached_text_encoder_interrupted_build_resumes_to_the_same_bytes(
    config: PretrainedTextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_features, "SHARD_CAPTIONS", 2)
    whole = encoder(config, tmp_path / "whole")
    whole.fill(CAPTIONS)
    write, written = FeatureCache.write, []

    def stops(self: FeatureCache, captions: Sequence[str], rows: Sequence[Tensor]) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(captions)
        write(self, captions, rows)

    monkeypatch.setattr(FeatureCache, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        encoder(config, tmp_path).fill(CAPTIONS)
    monkeypatch.setattr(FeatureCache, "write", lambda self, captions, rows: [written.append(captions), write(self, captions, rows)])
    cached = encoder(config, tmp_path)
    cached.fill(CAPTIONS)
    assert sorted(caption for part in written for caption in part) == sorted(CAPTIONS), "each caption once"
    assert torch.equal(cached.encode(CAPTIONS)[0], whole.encode(CAPTIONS)[0])


def test_cached_text_encoder_ranks_share_the_work(config: PretrainedTextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_features, "SHARD_CAPTIONS", 2)
    ranks = [encoder(config, tmp_path) for _ in range(2)]
    for cached in ranks:
        cached._encoder = PretrainedTextEncoder(config)  # transformers does not load in two threads at once
    meet = threading.Barrier(2)
    threads = [threading.Thread(target=cached.fill, args=(CAPTIONS, rank, 2, meet.wait)) for rank, cached in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(load_file(path)["sha256"]) for path in shards(tmp_path)) == len(CAPTIONS)
    monkeypatch.setattr(text_features, "PretrainedTextEncoder", unloadable)
    first, second = (cached.encode(CAPTIONS)[0] for cached in ranks)
    assert torch.equal(first, second)


def test_feature_cache_on_a_full_disk_says_how_much_was_needed(
    config: PretrainedTextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(text_features, "write_whole", full)
    with pytest.raises(OSError, match=r"of text features \(9 captions; .* free\)\. Make room, or set data\.cache_dir"):
        encoder(config, tmp_path).fill(CAPTIONS)


def test_feature_cache_removes_old_unfinished_shards_only(config: PretrainedTextConfig, tmp_path: Path) -> None:
    cached = encoder(config, tmp_path)
    cached.cache.folder.mkdir(parents=True)
    for name, age in (("0" * 32, 10**9), ("1" * 32, None), ("mine", 10**9)):
        left = cached.cache.folder / f".{name}.safetensors.7.tmp"
        left.write_bytes(b"half")
        if age:
            os.utime(left, (age, age))
    cached.fill(CAPTIONS)
    left_names = sorted(path.name[1:5] for path in cached.cache.folder.glob(".*"))
    assert left_names == ["1111", "mine"]
