"""Hostile pickles: each would create a file, the marker, if anything of it ran. No other harm is in them."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

# (module, name, argument) of calls whose one argument is a text.
CALLS = [
    ("os", "system", "touch {mark}"),
    ("posix", "system", "touch {mark}"),
    ("os", "mkdir", "{mark}"),
    ("os", "popen", "touch {mark}"),
    ("subprocess", "getoutput", "touch {mark}"),
    ("builtins", "eval", "open('{mark}', 'w')"),
    ("builtins", "exec", "open('{mark}', 'w')"),
    ("__builtin__", "eval", "open('{mark}', 'w')"),
    ("runpy", "run_path", "{script}"),
    ("timeit", "timeit", "open('{mark}', 'w')"),
    ("cProfile", "run", "open('{mark}', 'w')"),
    ("pty", "spawn", "{script}"),
    ("numpy.testing._private.utils", "runstring", "open('{mark}', 'w')"),
    ("numpy", "load", "{script}"),
    ("torch", "load", "{raw}"),
    ("torch.serialization", "load", "{raw}"),
    ("torch.jit", "load", "{raw}"),
    ("torch.hub", "load_state_dict_from_url", "file://{raw}"),
    ("torch._utils", "_import_dotted_name", "os.system"),
    ("torch.utils.collect_env", "run", "touch {mark}"),
    ("walt_pl.runs.checkpoint", "read_state", "{raw}"),
]


def streams(mark: Path, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of pickle streams.

    Args:
        mark: file that would appear if one of them ran.
        folder: for files that they name.
    """
    script, raw = folder / "script.py", folder / "raw.pkl"
    script.write_text(f"open({str(mark)!r}, 'w')\n")
    raw.write_bytes(_reduce("os", "system", f"touch {mark}"))
    for module, name, argument in CALLS:
        yield f"{module}.{name}", _reduce(module, name, argument.format(mark=mark, script=script, raw=raw))
    shell = f"touch {mark}"
    text = _text(shell)
    yield "STACK_GLOBAL", b"\x80\x04" + _short("os") + _short("system") + b"\x93" + text + b"\x85R."
    yield (
        "STACK_GLOBAL of memoized names",
        b"\x80\x04" + _short("system") + b"\x94" + _short("os") + b"\x94h\x01h\x00\x93" + text + b"\x85R.",
    )
    yield "names exchanged in the memo", b"\x80\x02cos\nsystem\nq\x000ccollections\nOrderedDict\nq\x010h\x00" + text + b"\x85R."
    yield "INST", b"(S'" + shell.encode() + b"'\nios\nsystem\n."
    yield "OBJ", b"\x80\x02(cos\nsystem\n" + text + b"o."
    yield "NEWOBJ", b"\x80\x02csubprocess\nPopen\n(]" + b"(" + _text("touch") + _text(str(mark)) + b"et\x81."
    yield "NEWOBJ_EX", b"\x80\x04" + _short("subprocess") + _short("Popen") + b"\x93(](" + _text("touch") + _text(str(mark)) + b"et}\x92."
    yield "text protocol 0", b"cos\nsystem\n(V" + shell.encode() + b"\ntR."
    yield "BUILD with __setstate__", b"\x80\x02ccollections\nOrderedDict\n)R}" + _text("__setstate__") + b"cos\nsystem\nsb" + text + b"b."
    yield "EXT1 and a call", b"\x80\x02\x82\x01" + text + b"\x85R."
    yield "getattr of a module", b"\x80\x02cbuiltins\ngetattr\ncos\npath\n" + _text("os") + b"\x86R" + text + b"\x85R."
    yield "after a harmless stream", b"\x80\x02}." + _reduce("os", "system", shell)
    yield "inside a weight", b"\x80\x02}" + _text("state_dict") + b"}" + _text("w") + b"cos\nsystem\n" + text + b"\x85Rss."
    yield "type of a storage", b"\x80\x02(" + _text("storage") + b"cos\nsystem\n" + _text("0") + _text("cpu") + b"K\x01tQ."
    yield "text as persistent id", b"Pos.system\n."
    rebuilt = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + _reduce("os", "system", shell)[2:-1] + b"K\x00))\x89NtR."
    yield "argument of _rebuild_tensor_v2", rebuilt
    yield "_rebuild_from_type_v2", b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nsystem\n(" + text + b"t}tR."
    yield "nested tuples without end", b"\x80\x02" + b"(" * 200_000 + b"."
    yield "endless memo", b"\x80\x02" + b"".join(b"]r" + i.to_bytes(4, "little") for i in range(50_000)) + b"."


def files(name: str, stream: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield kind and bytes of files that contain a stream: as torch.save writes them, as older versions did, and bare."""
    yield f"{name} in a zip", in_zip(stream)
    yield f"{name} bare", stream
    yield (
        f"{name} in a legacy file",
        b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {})) + stream + pickle.dumps([], 2),
    )
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for member in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(member)
            entry.size = len(stream)
            tar.addfile(entry, io.BytesIO(stream))
    yield f"{name} in a tar", packed.getvalue()


def in_zip(stream: bytes) -> bytes:
    """Return a file of torch.save whose pickle is replaced by a stream."""
    saved, changed = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": {"w": torch.ones(3)}}, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, stream if entry.filename.endswith("data.pkl") else old.read(entry))
    return changed.getvalue()


def _reduce(module: str, name: str, argument: str) -> bytes:
    return b"\x80\x02" + f"c{module}\n{name}\n".encode() + _text(argument) + b"\x85R."


def _text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def _short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()
