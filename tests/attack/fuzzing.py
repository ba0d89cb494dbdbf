"""Fuzz a reader of foreign bytes, guided by coverage: ``python -m tests.attack.fuzzing READER --seconds 180``.

It needs atheris (pip install atheris), which is no requirement of the project. Each run starts from whole files of this program.
A reader may return, or raise a ValueError of its own. Any other error, a crash or an input that takes over five seconds is a finding:
it ends the run, and its input stays in the current folder as crash-... or timeout-....
"""

import argparse
import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

try:
    import atheris
except ImportError as error:
    raise SystemExit(f"fuzzing needs atheris ({error}): pip install atheris") from None

with atheris.instrument_imports(include=["walt_pl", "yaml", "tarfile"]):
    import walt_pl
    from tests.helpers.tiny_vae import SIZE
    from walt_pl.data.index import write_index
    from walt_pl.data.index_table import read_table
    from walt_pl.data.quarantine import Quarantine
    from walt_pl.indexing.dataset_layouts import list_source
    from walt_pl.indexing.tables import list_table
    from walt_pl.indexing.tar_shards import list_shard
    from walt_pl.models.vae import VAE
    from walt_pl.runs.artifact import load
    from walt_pl.runs.artifact_writing import save_artifact
    from walt_pl.runs.card import CARD, CONFIG, card_text, read_card
    from walt_pl.runs.checkpoint import Checkpoint, finalize_checkpoint, write_state
    from walt_pl.runs.checkpoint_card import CARD as CHECKPOINT_CARD
    from walt_pl.runs.manifest import Manifest
    from walt_pl.runs.status import status_rows

Read = Callable[[bytes], object]
"""Function that gives its argument to the reader, as the content of a file."""

WALT = str(Path(walt_pl.__file__).parent)


def card(folder: Path) -> tuple[Read, list[bytes]]:
    """Fuzz card.json: as it is, and with the checksum that belongs to its content."""
    artifact = _save_artifact(folder)

    def read(data: bytes) -> None:
        (artifact / CARD).write_bytes(data)
        _expect_own_error(lambda: read_card(artifact))
        try:
            plain = json.loads(data)
            text = card_text({key: value for key, value in plain.items() if key != "checksum"})
            (artifact / CARD).write_text(text, encoding="utf-8")
        except (ValueError, AttributeError, RecursionError):
            return
        _expect_own_error(lambda: load(artifact))

    return read, [(artifact / CARD).read_bytes()]


def model_yaml(folder: Path) -> tuple[Read, list[bytes]]:
    """Fuzz model.yaml, with a card that has its hash."""
    artifact = _save_artifact(folder)
    written = read_card(artifact)

    def read(data: bytes) -> None:
        (artifact / CONFIG).write_bytes(data)
        record = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        changed = {**written, "files": {**written["files"], CONFIG: record}}
        (artifact / CARD).write_text(card_text(changed), encoding="utf-8")
        _expect_own_error(lambda: load(artifact))

    return read, [(artifact / CONFIG).read_bytes()]


def manifest(folder: Path) -> tuple[Read, list[bytes]]:
    """Fuzz manifest.json of a run: its stages, their states and their files."""
    _save_artifact(folder)
    run = Manifest(folder)
    run.start("vae", {})
    begun = run.path.read_bytes()
    run.finish("vae", folder / "vae")
    seeds = [begun, run.path.read_bytes()]

    def use() -> None:
        status_rows(folder)
        for stage in Manifest.open(folder).stages():
            run.problems(stage)

    def read(data: bytes) -> None:
        run.path.write_bytes(data)
        _expect_own_error(use)

    return read, seeds


def index(folder: Path) -> tuple[Read, list[bytes]]:
    """Fuzz the Parquet file of an index."""
    row = {"path": "a.mp4", "kind": "video", "frames": 9, "fps": 8.0, "width": 8, "height": 8, "caption": "a", "label": 1, "bytes": 9}
    path = folder / "index.parquet"
    write_index([{**row, "split": "train"}, {**row, "path": "b.mp4", "split": "val"}], path)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _expect_own_error(lambda: read_table(path))

    return read, [path.read_bytes()]


def quarantine(folder: Path) -> tuple[Read, list[bytes]]:
    """Fuzz the CSV of a quarantine."""
    path = folder / "index.quarantine.csv"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _expect_own_error(lambda: Quarantine(path))

    return read, [b'path,offset,begin,end,reason\na.mp4,-1,0.0,2.5,"corrupt: x"\nb.tar,512,0,0,mine\n']


def captions(folder: Path) -> tuple[Read, list[bytes]]:
    """Fuzz the texts of a source: a CSV, a JSONL file, and the caption beside a clip."""
    (folder / "a.mp4").write_bytes(b"x")
    csv, jsonl, text = folder / "table.csv", folder / "table.jsonl", folder / "a.txt"

    def read(data: bytes) -> None:
        csv.write_bytes(data)
        _expect_own_error(lambda: list_table(csv, folder))
        jsonl.write_bytes(data)
        _expect_own_error(lambda: list_table(jsonl, folder))
        csv.unlink()
        jsonl.unlink()
        text.write_bytes(data)
        _expect_own_error(lambda: list_source(str(folder)))

    return read, [
        b"path,caption,label,split,begin,end\na.mp4,a red ball,3,train,0:01,2.5\n",
        b'{"path": "a.mp4", "caption": "a red ball", "label": 3, "begin": 1, "duration": 2}\n',
        b'{"path": "a.mp4", "caption": ["a red ball", "a ball", null], "text": "a", "split": "val"}\n',
    ]


def tar(folder: Path) -> tuple[Read, list[bytes]]:
    """Fuzz a tar shard and the texts in it."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as shard:
        words = {"a.txt": b"a ball", "a.cls": b"3", "a.json": b'{"caption": ["b", "c"], "label": 1}'}
        for name, content in {"a.mp4": b"x" * 9, **words}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    path = folder / "a.tar"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _expect_own_error(lambda: list_shard(str(path)))

    return read, [whole.getvalue()]


def checkpoint(folder: Path) -> tuple[Read, list[bytes]]:
    """Fuzz the description of a checkpoint: as it is, and with the checksum that belongs to its content."""
    part, written = folder / "step=00000004.part", folder / "step=00000004"
    part.mkdir()
    write_state({"global_step": 4, "state_dict": {"vae.weight": torch.zeros(2)}}, part / "state.ckpt")
    finalize_checkpoint(part, 4, 8, "single", 1, {"val/loss": 0.5})
    file = written / CHECKPOINT_CARD

    def read(data: bytes) -> None:
        file.write_bytes(data)
        _expect_own_error(lambda: Checkpoint.newest(folder, hashed=True))
        try:
            plain = json.loads(data)
            file.write_text(card_text({key: value for key, value in plain.items() if key != "checksum"}), encoding="utf-8")
        except (ValueError, AttributeError, RecursionError):
            return
        _expect_own_error(lambda: Checkpoint.at(written, hashed=True))

    return read, [file.read_bytes()]


READERS: Mapping[str, Callable[[Path], tuple[Read, list[bytes]]]] = {
    "card": card,
    "model_yaml": model_yaml,
    "manifest": manifest,
    "index": index,
    "quarantine": quarantine,
    "captions": captions,
    "tar": tar,
    "checkpoint": checkpoint,
}


def _save_artifact(folder: Path) -> Path:
    """Write the artifact of a small autoencoder to folder/vae."""
    artifact = folder / "vae"
    described = {"latents": {"mean": [0.0, 0.0], "std": [1.0, 1.0]}, "steps": 7}
    save_artifact(artifact, kind="vae", models={"vae": VAE(SIZE)}, sampling_config={}, card=described, train_config="trainer: {}\n")
    return artifact


def _expect_own_error(use: Callable[[], object]) -> None:
    """Call a reader, and accept a ValueError that this program raises itself.

    Raises:
        BaseException: any other error: a library's, or one that only a fault of the program explains.
    """
    try:
        use()
    except ValueError as error:
        if not traceback.extract_tb(error.__traceback__)[-1].filename.startswith(WALT):
            raise


def main() -> None:
    """Fuzz one reader for some seconds."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack.fuzzing", description=__doc__)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="walt-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        folder, corpus = Path(name, "files"), Path(name, "corpus")
        folder.mkdir()
        corpus.mkdir()
        read, seeds = READERS[arguments.reader](folder)
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
            read(seed)
        limits = [f"-max_total_time={arguments.seconds}", f"-seed={arguments.seed}", "-timeout=5", "-rss_limit_mb=6000", "-max_len=8192"]
        atheris.Setup([sys.argv[0], *limits, str(corpus)], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
