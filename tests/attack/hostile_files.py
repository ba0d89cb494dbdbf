"""Contents of hostile files: a name, and what `tests/attack/artifacts.py` writes. No code in them does more than make a marker file."""

import json
import struct
from collections.abc import Callable
from itertools import product
from typing import Any

ESCAPE = "\x1b]0;title\x07\nsecond line"
BOMB = b"a: &a [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 10)) for i in range(12)
)
"""Nested aliases: 10^13 values in a few lines."""
YAMLS: dict[str, bytes] = {
    "nested aliases": BOMB,
    "merged aliases": b"a: &a {x: 1}\n"
    + b"".join(b"%c: &%c {<<: [%s]}\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 10)) for i in range(12)),
    "contains itself": b"a: &a [*a]\n",
    "deep": b"a: " + b"[" * 5000 + b"]" * 5000,
    "a tag that runs code": b'vae: !!python/object/apply:os.mkdir ["MARKER"]\n',
    "large": b"a: [" + b"1, " * 200_000 + b"1]",
    "no UTF-8": b"\xff\xfe\x00a",
    "a list": b"[1, 2]",
    "a text": b"vae",
    "an integer of thousands of digits": b"vae: {width: 0x" + b"f" * 20_000 + b"}\n",
    "control characters": b"vae: {width: \x1b[31m}\n",
    "nothing": b"",
    "unknown anchors": b"vae: *none\n",
    "lists as keys": b"? [1, 2]\n: 3\n",
    "numbers as sections": b"1: {width: 2}\n",
}
JSONS: dict[str, bytes] = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep mappings": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "large": b'{"format": 1, "x": "' + b"a" * (5 << 20) + b'"}',
    "an integer of a million digits": b'{"format": ' + b"1" * 1_000_000 + b"}",
    "no UTF-8": b"\xff\xff{}",
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "a lone surrogate": b'{"format": "\\ud800"}',
    "nan": b'{"format": NaN}',
}
NO_TEXT: tuple[Any, ...] = (7, True, None, ["x"], {"a": "b"}, ESCAPE, "x" * 100_000)
NO_COUNT: tuple[Any, ...] = (-1, 2**70, True, "x", 1.5, [1], {}, float("nan"))
NO_HASH: tuple[Any, ...] = ("", "x", "0" * 63, "G" * 64, "A" * 64, 7, None, ["0" * 64], ESCAPE)
NO_MAPPING: tuple[Any, ...] = ([], "x", 7, True)

_CARD_FIELDS: dict[str, tuple[Any, ...]] = {
    "format": (*NO_COUNT, 3, ESCAPE, "2"),
    "kind": ("unknown", 7, None, ESCAPE, ["vae"], "Vae"),
    "sha256": (*NO_HASH, "0" * 64),
    "files": (*NO_MAPPING, {}, {"../../..": {"sha256": "0" * 64, "bytes": 1}}, {"model.yaml": {"sha256": "0" * 64, "bytes": 1}}),
    "files/../../../words.txt": ({"sha256": "0" * 64, "bytes": 28},),
    "files/model.yaml": ([], {"sha256": "0" * 64}, {"sha256": "0" * 64, "bytes": 1, "more": 1}),
    "files/model.yaml/sha256": NO_HASH,
    "files/model.yaml/bytes": (*NO_COUNT, 2**50),
    "files/model.safetensors/bytes": (*NO_COUNT, 2**60),
    "parents": (*NO_MAPPING, {"../x": "0" * 64}, {"vae": "x"}, {"vae": 7}, {ESCAPE: "0" * 64}),
    "latents": (*NO_MAPPING, {}, {"mean": [0.0]}, {"mean": [0.0], "std": [1.0, 2.0]}, {"mean": [], "std": []}),
    "latents/mean": (0.0, ["x"], [True], [float("nan")], [1e400], [0.0] * 100_000, [[0.0]], [10**400]),
    "latents/std": ([-1.0] * 8, [float("inf")] * 8, [None] * 8, [1e38] * 8),
    "steps": NO_COUNT,
    "epochs": NO_COUNT,
    "samples": NO_COUNT,
    "metrics": (*NO_MAPPING, {"a": {"b": float("nan")}}, {"a": 2**70}, {"a": ESCAPE}),
    "packages": (*NO_MAPPING, {"torch": 2}, {"torch": ESCAPE}),
    "code": (7, ["x"], ESCAPE),
    "created": (*NO_TEXT, "yesterday", "2026-01-31T12:00:00"),
    "more": (ESCAPE, 2**70, {"a": float("inf")}),
}


def _of(fields: dict[str, tuple[Any, ...]]) -> list[tuple[str, Any]]:
    return [(f"{path} = {ascii(value)[:40]}", (path, value)) for path, values in fields.items() for value in values]


# A path with "/" in a key is written as one key.
CARDS: list[tuple[str, Any]] = [
    *((name, data) for name, data in JSONS.items()),
    *((name, content) for name, content in _of(_CARD_FIELDS) if "../../../words.txt" not in name),
    ("files lists ../../../words.txt", ("files", {"../../../words.txt": {"sha256": "0" * 64, "bytes": 28}})),
]

_LONG_PATHS = ("x/" * 1000 + "vae", "x" * 900, "\u00e4" * 200, "\ud800", "x/../vae", "./vae", "vae/", "vae//vae")
_ARTIFACT = "stages/vae/artifact"
_HOLDER = "stages/base/training/holder"
_MANIFEST_FIELDS: dict[str, tuple[Any, ...]] = {
    "format": (*NO_COUNT, 2, ESCAPE),
    "stages": (*NO_MAPPING, {"unknown": {}}, {"../vae": {}}, {ESCAPE: {}}, {"vae": []}, {"vae": {}}, {"vae_" + "x" * 10_000: {}}),
    "stages/vae/kind": ("base", "unknown", 7, ESCAPE),
    "stages/vae/artifact": (7, [], {}, "vae"),
    f"{_ARTIFACT}/path": ("..", "../../..", "/", "/etc", "", ".", "x" * 20_000, ESCAPE, 7, None, "a\0b", "../x/" * 500, *_LONG_PATHS),
    f"{_ARTIFACT}/sha256": NO_HASH,
    f"{_ARTIFACT}/parents": (*NO_MAPPING, {"x": "0" * 64}, {"vae": "x"}, {"vae": "0" * 64}),
    f"{_ARTIFACT}/files": (*NO_MAPPING, {"../../words.txt": {}}, {"/etc/passwd": {"sha256": "0" * 64, "bytes": 1, "mtime_ns": 1}}),
    f"{_ARTIFACT}/files/model.yaml": ([], {}, {"sha256": "0" * 64, "bytes": 1, "mtime_ns": 1}),
    f"{_ARTIFACT}/files/model.yaml/mtime_ns": (2**70, "x", 1.5, True, None),
    f"{_ARTIFACT}/files/model.yaml/bytes": NO_COUNT,
    f"{_ARTIFACT}/finished": ("yesterday", ESCAPE, 7, "2026-01-31T12:00:00"),
    f"{_HOLDER}/pid": (-1, 0, 10**30, 2**31, True, "4", None),
    f"{_HOLDER}/host": (ESCAPE, 7, None, "x" * 100_000),
    f"{_HOLDER}/born": (10**30, "x", True),
    f"{_HOLDER}/time": ("never", "2026-01-31T12:00:00", ESCAPE, 7),
    "stages/base/training/stop": ([], {"step": -1, "max_steps": 1}, {"step": 10**30, "max_steps": None}, {"step": "x", "max_steps": 1}),
    "stages/base/training/parents": ({"vae": ESCAPE}, {"x": "0" * 64}, 7),
}
MANIFESTS: list[tuple[str, Any]] = [*JSONS.items(), *_of(_MANIFEST_FIELDS)]

_SIZES: tuple[Any, ...] = ("3", [1], True, float("inf"), float("nan"), 2**60, -1, 10_000_000, None, {"a": 1})
_LAYERS: tuple[Any, ...] = (100_000, 1_000_000, 10_000_000)
_VAE_FIELDS: dict[str, tuple[Any, ...]] = {
    "vae/width": (*_SIZES, 0),
    "vae/num_middle_blocks": (*_SIZES, *_LAYERS),
    "vae/latent_channels": (*_SIZES, 0, 4096),
    "vae/num_res_blocks": ([10_000_000, 1, 1], [1] * 100_000, ["1"], "111", 7),
    "vae/channel_multipliers": ([2**60, 1, 1], [2**19] * 3, [0, 0, 0]),
    "vae/strides": ([[2, 2]], [[2, 2, 2], [2, 2, "x"]], [[3, 3, 3]] * 2),
    "vae/norm": ("batch", 7, None, ESCAPE),
    "vae/time_kernel": (2, True, "3", 10**9),
    "vae": ([], None, 7, {}, {"widht": 8}, {ESCAPE: 8}),
}
_BASE_FIELDS: dict[str, tuple[Any, ...]] = {
    "denoiser/depth": (*_SIZES, *_LAYERS),
    "denoiser/num_heads": (*_SIZES, 0),
    "denoiser/patch_size": (*_SIZES, 0),
    "denoiser/size": ([3, 2**19, 2**19], [0, 0, 0], [3, 4], "345"),
    "denoiser/window_size": ([3, 2, 0], [1, 1, 1, 1], [2**40, 1, 1]),
    "denoiser/num_classes": ("x", 2**60, -1),
    "denoiser/self_conditioning": ("x", float("nan"), 2, True),
    "denoiser/attention": ("flash", 7),
    "text/vocab_size": _SIZES,
    "text/max_length": _SIZES,
    "diffusion": ([], None, {"objective": "eps"}, {"more": 1}),
    "diffusion/guidance": ([], {"scale": float("nan")}, {"scale": "x"}, {"power": 1e400}, {"rescale": 7.0}, {"shape": "x"}),
    "diffusion/context_frames": ([], [3], "12", [1] * 20_000),
    "diffusion/noise_aug_max": (-1, 10**9, "x", True),
    "video": ({"fps": float("nan")}, {"fps": 0}, {"fps": 1e300}, {"fps": "x"}, {}, [1], {"fps": 1e-300}),
    "classes": ({"x": 1}, {1: 7}, [1], {1: ESCAPE}),
    "pretrained_text": (
        {},
        {"kind": "t5", "path": "/etc", "width": 16, "sha256": "x"},
        {"kind": "pickle", "path": "/etc", "width": 16, "sha256": "0" * 64},
        {"kind": "t5", "path": 7, "width": 16, "sha256": "0" * 64},
        {"kind": "t5", "path": "/etc", "width": 2**60, "sha256": "0" * 64},
    ),
}
CONFIGS: list[tuple[str, Any]] = [
    *((f"{stage}: {name}", (stage, data)) for stage, (name, data) in product(("vae", "base"), YAMLS.items())),
    *((f"vae: {name}", ("vae", content)) for name, content in _of(_VAE_FIELDS)),
    *((f"base: {name}", ("base", content)) for name, content in _of(_BASE_FIELDS)),
]

_TRAIN = {"model": {"init_args": {"statistics_batches": 4}}, "data": {"index": "index.parquet"}, "trainer": {"max_steps": 7}}


def _train(section: str, name: str, value: Any) -> bytes:
    changed = json.loads(json.dumps(_TRAIN))
    (changed["model"]["init_args"] if section == "model" else changed[section])[name] = value
    return json.dumps(changed).encode()  # JSON is YAML


TRAINS: list[tuple[str, Any]] = [
    *((name, data) for name, data in YAMLS.items() if name != "nothing"),
    *(
        (f"{section}.{name} = {ascii(value)[:40]}", _train(section, name, value))
        for section, name, values in (
            ("data", "size", (10_000_000, -1, "x", True, 1.5, None)),
            ("data", "frames", (2**60, -1)),
            ("data", "index", (7, None, ["x"], {"class_path": "os.system"})),
            ("data", "fps", (1e300, -1, "x")),
            ("data", "sizes", ([1] * 20_000, [2**40])),
            ("data", "buckets", ([[1]], [[1, 2, 3]], [["x", 1]])),
            ("model", "statistics_batches", ("x", 2**40, None)),
            ("trainer", "max_steps", ("x", 1.5, [1], True)),
            ("trainer", "max_epochs", ("x", {})),
        )
        for value in values
    ),
]


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _joined(header: dict[str, Any], values: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def _with(change: Callable[[str, dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """Return a change of the first tensor in the header."""

    def spoil(data: bytes) -> bytes:
        header, values = _header(data)
        name = next(name for name in sorted(header) if name != "__metadata__" and len(header[name]["shape"]) > 1)
        change(name, header)
        return _joined(header, values)

    return spoil


def _value(number: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:-4] + number


def _type(name: str, size: int) -> Callable[[bytes], bytes]:
    """Return a change of the type of the first tensor. Its shape changes so that its bytes stay."""

    def change(tensor: str, header: dict[str, Any]) -> None:
        shape = header[tensor]["shape"]
        header[tensor] |= {"dtype": name, "shape": [shape[0] * 4 // size, *shape[1:]]}

    return _with(change)


_EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
WEIGHTS: list[tuple[str, Any]] = [
    ("a header of 2^63 bytes", lambda data: struct.pack("<Q", 2**63) + data[8:]),
    ("a header of 64 MB", lambda data: struct.pack("<Q", 64 << 20) + b"{" + b" " * ((64 << 20) - 2) + b"}" + data[:64]),
    ("nothing", lambda data: b""),
    ("seven bytes", lambda data: data[:7]),
    ("a header that is no JSON", lambda data: data[:8] + b"x" * (len(data) - 8)),
    ("a pickle", lambda data: b"\x80\x04" + data[2:]),
    ("no end", lambda data: data[:-5]),
    ("more at the end", lambda data: data + b"\0" * 5),
    ("nan", _value(b"\0\0\xc0\x7f")),
    ("infinite", _value(b"\0\0\x80\x7f")),
    ("32-bit integers", _type("I32", 4)),
    ("64-bit integers", _type("I64", 8)),
    ("8-bit floats", _type("F8_E4M3", 1)),
    ("16-bit floats", _type("F16", 2)),
    ("complex", _type("C64", 8)),
    ("an unknown type", _type("X7", 4)),
    ("a shape of 2^60", _with(lambda name, header: header[name].update(shape=[2**60]))),
    ("a shape of 2^32 by 2^32", _with(lambda name, header: header[name].update(shape=[2**32, 2**32]))),
    ("a shape of text", _with(lambda name, header: header[name].update(shape=["x"]))),
    ("offsets of 2^60 bytes", _with(lambda name, header: header[name].update(data_offsets=[0, 2**60]))),
    ("offsets backwards", _with(lambda name, header: header[name].update(data_offsets=[4, 0]))),
    ("offsets that overlap", _with(lambda name, header: header[name].update(data_offsets=[0, header[name]["data_offsets"][1]]))),
    ("a tensor more", _with(lambda name, header: header.update({ESCAPE: _EMPTY}))),
    ("a tensor less", _with(lambda name, header: header.pop(name) and None)),
    ("100,000 tensors", lambda data: _joined({f"vae.{i}": _EMPTY for i in range(100_000)}, b"")),
    ("metadata of numbers", _with(lambda name, header: header.update(__metadata__={"a": 1}))),
]

_STATUS = {
    "step": 1,
    "total": 2,
    "steps_per_second": 1.0,
    "checkpoints": "/",
    "command": "python -m walt_pl fit",
    "time": "2126-01-31T12:00:00+00:00",
}
PROGRESS: list[tuple[str, Any]] = [
    *JSONS.items(),
    *(
        (f"{name} = {ascii(value)[:40]}", {**_STATUS, name: value})
        for name, values in {
            "step": NO_COUNT,
            "total": (*NO_COUNT[1:], 2**53),
            "steps_per_second": (-1, 1e-300, 1e300, float("nan"), "x"),
            "checkpoints": (7, None, ESCAPE, "a\0b", "x" * 10_000, "/proc/1/root", "~root"),
            "command": ("rm -rf .", "python -m walt_pl fit; rm x", "python -m walt_pl fit $(id)", ESCAPE, "python -m walt_pl fit 'a", 7),
            "time": ("never", "2026-01-31T12:00:00", ESCAPE),
            "more": (1,),
        }.items()
        for value in values
    ),
]
