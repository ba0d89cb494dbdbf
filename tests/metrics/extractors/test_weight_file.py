"""Files of extractors: nothing is loaded before its hash was compared, and nothing in a state dict runs."""

import hashlib
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.environment import Bomb
from tests.helpers.scripted_extractors import TinyC3D, TinyI3D, write_torchscript
from walt_pl.metrics.extractors.c3d import C3D
from walt_pl.metrics.extractors.configured import ExtractorSettings
from walt_pl.metrics.extractors.i3d import I3D
from walt_pl.metrics.extractors.known_files import KNOWN_FILES
from walt_pl.metrics.extractors.weight_file import WeightFile, read_state_dict, read_weight_file
from walt_pl.metrics.protocol import EvaluationProtocol


def settings(file: Path | None, sha256: str | None = None) -> ExtractorSettings:
    return ExtractorSettings(EvaluationProtocol(), str(file) if file else None, sha256)


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that loads a torchscript or a pickle."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded before the hash was compared")

    monkeypatch.setattr(torch.jit, "load", fail)
    monkeypatch.setattr(torch, "load", fail)


@pytest.mark.usefixtures("nothing_loads")
def test_read_weight_file_refuses_another_hash_before_anything_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "i3d.pt"
    found, known = write_torchscript(TinyI3D(), file), KNOWN_FILES["i3d"].sha256
    told = rf"{re.escape(str(file))} has the sha256 {found}, wanted for i3d: {known}.*torchscript is code.*--extractor-sha256 {found}"
    with pytest.raises(ValueError, match=told):
        I3D(settings(file))
    with pytest.raises(ValueError, match=f"wanted for i3d: {'0' * 64}"):
        I3D(settings(file, "0" * 64))


@pytest.mark.usefixtures("nothing_loads")
def test_torchscripts_of_an_unknown_hash_are_never_loaded(tmp_path: Path) -> None:
    file = tmp_path / "c3d.pt"
    found = write_torchscript(TinyC3D(), file)
    with pytest.raises(ValueError, match=rf"has no published one\. It was not loaded\. A torchscript is code.*--extractor-sha256 {found}"):
        C3D(settings(file))
    with pytest.raises(ValueError, match=r"wants 64 hexadecimal digits, got 'abc'"):
        C3D(settings(file, "abc"))
    with pytest.raises(ValueError, match=r"wants 64 hexadecimal digits, got '0{10}'"):
        C3D(settings(file, "0" * 10))


def test_read_weight_file_loads_the_bytes_that_were_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process swaps the file after it was hashed."""
    file = tmp_path / "i3d.pt"
    found = write_torchscript(TinyI3D(width=6), file)
    load = torch.jit.load

    def swap_and_load(source: Any, **arguments: Any) -> Any:
        write_torchscript(TinyI3D(width=3), file)
        return load(source, **arguments)

    monkeypatch.setattr(torch.jit, "load", swap_and_load)
    extractor = I3D(settings(file, found.upper()))
    assert next(iter(extractor.network.parameters())).shape == (9, 6) and extractor.identity()["sha256"] == found


@pytest.mark.parametrize("kind", KNOWN_FILES)
def test_read_weight_file_says_where_a_missing_file_is_got(kind: str, tmp_path: Path) -> None:
    known = KNOWN_FILES[kind]
    for file in (None, tmp_path / "absent.pt"):
        with pytest.raises(ValueError, match=re.escape(known.describe())) as raised:
            read_weight_file(kind, settings(file), is_code=True)
        assert f'--extractor \'{{"{kind}": "' in str(raised.value) and (known.sha256 or "no published") in str(raised.value)
        assert file is None or str(file) in str(raised.value)


def test_read_weight_file_follows_a_link_to_a_file_and_waits_for_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"bytes")
    (tmp_path / "link").symlink_to(tmp_path / "weights")
    assert read_weight_file("clip", settings(tmp_path / "link"), is_code=False).sha256 == hashlib.sha256(b"bytes").hexdigest()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a plain file"):
        read_weight_file("clip", settings(tmp_path / "pipe"), is_code=False)
    with pytest.raises(ValueError, match="not a plain file"):
        read_weight_file("clip", settings(tmp_path), is_code=False)


def test_read_state_dict_refuses_code_and_other_values(tmp_path: Path) -> None:
    mark, file = tmp_path / "ran", tmp_path / "weights.pth"
    values: dict[Any, tuple[Any, str]] = {
        "code": ({"a": Bomb(mark)}, "holds no state dict that can be read"),
        "list": ([torch.zeros(1)], "other values than tensors"),
        "nested": ({"a": {"b": torch.zeros(1)}}, "other values than tensors"),
    }
    for value, told in values.values():
        torch.save(value, file)
        with pytest.raises(ValueError, match=told):
            read_state_dict(WeightFile(file, file.read_bytes(), ""))
    whole = file.read_bytes()
    for data in (b"", b"text", whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match="holds no state dict that can be read"):
            read_state_dict(WeightFile(file, data, ""))
        with pytest.raises(ValueError, match="holds no state dict that can be read"):
            read_state_dict(WeightFile(file.with_suffix(".safetensors"), data, ""))
    assert not mark.exists()


def test_read_state_dict_reads_pickles_and_safetensors(tmp_path: Path) -> None:
    state = OrderedDict(a=torch.arange(3.0))
    torch.save(state, tmp_path / "a.pth")
    save_file(dict(state), tmp_path / "a.safetensors")
    for path in tmp_path.iterdir():
        assert torch.equal(read_state_dict(WeightFile(path, path.read_bytes(), ""))["a"], state["a"])
