"""Promises of the data side, measured in one run: as ratios where others do the same, with the load average noted.

    python -m benchmarks.data [PART ...] [--clips 96] [--rounds 3] [--rows 1000000] [--samples 20000] [--files 500] [--figure FILE]

decoding: 17 frames to 128 x 128 from 256 x 256 H.264, against a plain loop of decord or torchcodec and torchvision's resize.
memory: what a worker and the training process hold while 20,000 clips are read; the picture goes to --figure.
first_batch: from the first line after the imports to the first batch, of an index with a million rows.
cache: batches a second from cached latents, and from pixels through the encoder.
index: what an index of ten million rows costs a worker (2 GB on disk, 4 GB in memory while it is written).
broken: the command line, from `index` to the end of `fit`, on a set of which a hundredth is broken in every way.
mutated: 500 files with bytes flipped, cut and swapped, through index and loader.

Without a PART all of them. Each part's figures are printed as JSON when it is done.
"""

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.damage import broken, mutated
from benchmarks.decoding import decoding
from benchmarks.index_memory import index_memory
from benchmarks.loader import cache, first_batch, memory
from walt_pl.evaluation.program import machine


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--clips", type=int, default=96, help="that each reader decodes")
    parser.add_argument("--rounds", type=int, default=3, help="in which it does so")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the index in first_batch; that of index has ten times as many")
    parser.add_argument("--samples", type=int, default=20_000, help="read while memory is watched")
    parser.add_argument("--files", type=int, default=500, help="that are mutated")
    parser.add_argument("--figure", type=Path, default=None, help="PNG of the memory held")
    arguments = parser.parse_args()
    parts = {
        "decoding": partial(decoding, clips=arguments.clips, rounds=arguments.rounds),
        "memory": partial(memory, samples=arguments.samples, figure=arguments.figure),
        "first_batch": partial(first_batch, rows=arguments.rows),
        "cache": cache,
        "index": partial(index_memory, rows=10 * arguments.rows),
        "broken": broken,
        "mutated": partial(mutated, count=arguments.files),
    }
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    torch.set_num_threads(1)
    print(json.dumps({"machine": machine()}), flush=True)
    for part in arguments.parts or parts:
        begin = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            figures = parts[part](Path(folder))
        load = [round(begin, 1), round(os.getloadavg()[0], 1)]
        print(json.dumps({part: figures, "load average before and after": load}, indent=2), flush=True)


if __name__ == "__main__":
    main()
