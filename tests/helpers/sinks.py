"""Find the calls in a source tree that open, import, start or fetch something named by a value.

`docs/SECURITY.md` lists every one of them with its check, and tests/test_security.py compares the list with the code.
"""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.helpers.house_rules import FOLDERS, modules, tree_of

SINKS = {
    "open": "open",
    "read_text": "open",
    "read_bytes": "open",
    "memmap": "open",
    "memory_map": "open",
    "read_table": "open",
    "ParquetFile": "open",
    "open_file": "open",
    "load_file": "open",
    "safe_open": "open",
    "file_sha256": "open",
    "ZipFile": "open",
    "VideoReader": "open",
    "SentencePieceProcessor": "open",
    "SummaryWriter": "open",
    "get_unsafe_globals_in_checkpoint": "open",
    "get_fp32_state_dict_from_zero_checkpoint": "open",
    "load_checkpoint": "open",
    "create_model": "open",
    "rmtree": "remove",
    "unlink": "remove",
    "rmdir": "remove",
    "import_module": "import",
    "__import__": "import",
    "from_pretrained": "import",
    "exec": "import",
    "eval": "import",
    "Popen": "subprocess",
    "run": "subprocess",
    "check_call": "subprocess",
    "check_output": "subprocess",
    "system": "subprocess",
    "execv": "subprocess",
    "execvp": "subprocess",
    "snapshot_download": "URL",
    "urlopen": "URL",
    "tarfile_samples": "URL",
    "gopen": "URL",
    "gopen_schemes[scheme]": "URL",
}
"""Last name of a called function -> the kind of its reach."""
QUALIFIED = {
    "torch.load": "open",
    "torch.jit.load": "import",
    "np.load": "open",
    "pickle.load": "import",
    "pickle.loads": "import",
    "eval": "import",
    "exec": "import",
    "subprocess.run": "subprocess",
}
"""Calls that count only with their module's name."""
ONLY_QUALIFIED = {"run", "eval", "exec"}
"""Last names that other functions have, too."""


def sinks(root: Path, folders: Sequence[str] = FOLDERS) -> set[tuple[str, str]]:
    """Return the function (module.class.function) and the kind of reach of every call in a tree that reaches out."""
    found: set[tuple[str, str]] = set()
    for module, path in modules(root, folders).items():
        found |= {(where, kind) for where, kind in _calls(tree_of(path), module)}
    return found


def _calls(node: ast.AST, where: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _calls(child, f"{where}.{child.name}")
            continue
        if isinstance(child, ast.Call):
            kind = kind_of_call(ast.unparse(child.func))
            if kind:
                yield where, kind
        yield from _calls(child, where)


def kind_of_call(name: str) -> str:
    """Return the kind of reach of a called function, "" if it has none.

    Args:
        name: the function as written, such as "torch.load" or "path.read_text".
    """
    owner, _, last = name.rpartition(".")
    if name in QUALIFIED:
        return QUALIFIED[name]
    # A class method of ours, such as Manifest.open: the calls in it are found by themselves.
    ours = last == "open" and owner[:1].isupper() and owner != "Image"
    return "" if ours or last in ONLY_QUALIFIED else SINKS.get(last, "")
