"""What a ten-million-row index costs a worker, and how long a one-million-row index takes to open.

    python benchmarks/index_memory.py [--rows 10000000] [--folder DIR]

A synthetic index is written (about 2 GB for ten million rows), opened here, and its videos are handed to a fresh worker process,
pickled as a DataLoader does. The worker reads entries all over the index and says what it has more of than before: memory of its own
(anonymous), which every further worker costs again, and pages of the mapped file, which all workers share and which the system takes
back when it needs them.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from walt_pl.data.index import SCHEMA, Entries, Index, write_table

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
    plain = {"fps": 24.0, "width": 256, "height": 144, "label": -1, "bytes": 100_000, "duration": 5.0, "offset": -1, "modified": 1}
    for name in (*plain, "variable_rate"):
        columns[name] = same(plain.get(name, False), SCHEMA.field(name).type)
    return pa.table({name: columns[name] for name in SCHEMA.names})


def memory() -> dict[str, int]:
    """Bytes of memory of this process: RssAnon is its own, RssFile is mapped from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: int(value.split()[0]) << 10 for name, _, value in (line.partition(":") for line in lines) if name in ("RssAnon", "RssFile")
    }


def worker(connection: Connection) -> None:
    """Takes entries, reads READS of them, and says what it cost."""
    begin = memory()
    entries: Entries = connection.recv()
    places = np.random.default_rng(1).integers(len(entries), size=READS)
    start = time.perf_counter()
    for place in places:
        entries[int(place)]
    each = (time.perf_counter() - start) / READS
    entries.column("frames").max()
    connection.send((begin, memory(), each))


def measure(path: Path) -> dict[str, float]:
    """What an index costs: seconds to open it; bytes that a worker has more of its own (`own`) and of mapped files (`shared`)."""
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--folder", default=None, help="where the synthetic index is written")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}")
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "index.parquet"
            start = time.perf_counter()
            write_table(synthetic(rows), path)
            seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(f"{rows:,} rows written in {seconds:.1f} s, peak {peak / 1e6:.1f} GB")
            cost = measure(path)
            sizes = [file.stat().st_size / 1e6 for file in (path, path.with_suffix(".arrow"))]
            print(f"  Parquet {sizes[0]:.0f} MB, Arrow {sizes[1]:.0f} MB")
            print(f"  opened in {cost['seconds']:.2f} s, {cost['entry'] * 1e6:.0f} us an entry")
            print(f"  a worker that read {READS:,} entries all over it and a whole column: {cost['own'] / 1e6:+.1f} MB of its own,")
            print(f"  {cost['shared'] / 1e6:+.0f} MB of pages that all workers share")


if __name__ == "__main__":
    main()
