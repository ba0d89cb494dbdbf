"""Memory that a large index costs a worker, and the time to open it.

A synthetic index is written (about 2 GB for ten million rows), opened here, and its videos are handed to a fresh worker process,
pickled as a DataLoader does. The worker reads entries all over the index and says what it has more of than before: memory of its own
(anonymous), which every further worker costs again, and pages of the mapped file, which all workers share and which the system takes
back when it needs them.
"""

import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from walt_pl.data.index import Index, IndexEntries, write_table
from walt_pl.data.index_table import SCHEMA

READS = 20_000


def synthetic(rows: int) -> pa.Table:
    """Rows like those of a real set of clips: paths of 40 characters, captions of 60."""
    number = pa.array(np.arange(rows)).cast(pa.string()).cast(pa.large_string())
    text = pa.large_string()

    def join(*parts: pa.Array) -> pa.Array:
        return pc.binary_join_element_wise(*parts, pa.scalar("", text))

    def same(value: object, kind: pa.DataType) -> pa.Array:
        return pa.repeat(pa.scalar(value, kind), rows)

    columns = {
        "path": join(same("clips/of/a/large/data/set/part/", text), number, same(".mp4", text)),
        "kind": same("video", text),
        "caption": join(same("somebody does something in a place, clip number ", text), number, same(", slowly", text)),
        "split": same("train", text),
        "decoder": same("decord", text),
        "frames": pa.array(np.random.default_rng(0).integers(17, 300, rows).astype(np.int32)),
    }
    plain = {"fps": 24.0, "width": 256, "height": 144, "label": -1, "bytes": 100_000, "duration": 5.0, "modified": 1}
    for name, value in plain.items():
        columns[name] = same(value, SCHEMA.field(name).type)
    return pa.table(columns)


def memory() -> dict[str, int]:
    """Bytes of memory of this process: RssAnon is its own, RssFile is mapped from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: int(value.split()[0]) << 10 for name, _, value in (line.partition(":") for line in lines) if name in ("RssAnon", "RssFile")
    }


def worker(connection: Connection) -> None:
    """Takes entries, reads READS of them, and says what it cost."""
    begin = memory()
    entries: IndexEntries = connection.recv()
    places = np.random.default_rng(1).integers(len(entries), size=READS)
    start = time.perf_counter()
    for place in places:
        entries[int(place)]
    each = (time.perf_counter() - start) / READS
    entries.column("frames").max()
    connection.send((begin, memory(), each))


def measure(path: Path) -> dict[str, float]:
    """Cost of an index: seconds to open it; bytes that a worker has more of its own (`own`) and of mapped files (`shared`)."""
    start = time.perf_counter()
    index = Index(path, "train")
    seconds = time.perf_counter() - start
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker, args=(theirs,))
    process.start()
    ours.send(index.videos)
    begin, end, each = ours.recv()
    process.join()
    cost = {name: float(end[key] - begin[key]) for name, key in (("own", "RssAnon"), ("shared", "RssFile"))}
    return {"seconds": seconds, "entry": each, **cost}


def index_memory(folder: Path, rows: int) -> dict[str, object]:
    """The figures, in words."""
    path = folder / "index.parquet"
    start = time.perf_counter()
    write_table(synthetic(rows), path)
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost = measure(path)
    return {
        "rows": rows,
        "written in seconds": round(seconds, 1),
        "GB held at most while writing": round(peak / 1e6, 1),
        "MB on disk": {file.suffix: round(file.stat().st_size / 1e6) for file in (path, path.with_suffix(".arrow"))},
        "opened in seconds": round(cost["seconds"], 2),
        "us an entry": round(cost["entry"] * 1e6),
        f"MB more of its own in a worker that read {READS:,} entries and a column": round(cost["own"] / 1e6, 1),
        "MB of pages that all workers share": round(cost["shared"] / 1e6),
    }
