"""Names of shards: how many a pattern may stand for, and which schemes are opened."""

from __future__ import annotations

import http.server
import os
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from braceexpand import braceexpand

from tests.helpers.sources import shard
from walt_pl.data.shard_urls import _count, expand_urls, open_shard
from walt_pl.data.tar_members import MAX_NAMES
from walt_pl.data.webdataset_loader import ShardStream, StreamPosition


@pytest.mark.parametrize(
    "pattern",
    ["a-{08..11}.tar", "{a..f}{1,2}", "{a,{1..3},c}/x", "{5..1..2}", "{abc}", "{}", "x", r"\{1..9\}", "{a..z..5}", "{-2..3}{,.bak}"],
)
def test_expand_urls_counts_as_many_names_as_braceexpand_makes(pattern: str) -> None:
    names = list(braceexpand(pattern))
    assert expand_urls(pattern, ()) == names
    assert _count(pattern) == len(names) or (_count(pattern) >= len(names) and "a.." in pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "{0..99999999}.tar",
        "{{0..999}{0..999}{0..999},x}.tar",
        "{a,b}" * 40,
        "{0..99999999999999999999999}.tar",
        "a.tar::" * 3 + "{0..1000000}",
        "{" * 3000,
        "{" * 900 + "}" * 900,
        "x" * 100_000,
        "a}b",
        "${WALT_NO_SUCH}.tar",
        "http://[::1/a.tar",
    ],
)
def test_expand_urls_ends_at_once_with_an_error(pattern: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=r"data\.shards: "):
        expand_urls(pattern, ())
    assert time.process_time() - started < 2


def test_expand_urls_allows_its_largest_number_of_names() -> None:
    assert len(expand_urls(f"{{1..{MAX_NAMES}}}.tar", ())) == MAX_NAMES


@pytest.mark.parametrize(
    ("pattern", "scheme"),
    [
        ("pipe:touch {folder}/marker", "pipe"),
        ("PIPE:touch {folder}/marker", "pipe"),
        (" pipe:touch {folder}/marker", "pipe"),
        ("pi\tpe:touch {folder}/marker", "pipe"),
        ("a.tar::pipe:touch {folder}/marker", "pipe"),
        ("{{a.tar,pipe:touch {folder}/marker}}", "pipe"),
        ("{{p,a}}ipe:touch {folder}/marker", "pipe"),
        ("http://127.0.0.1:9/a.tar", "http"),
        ("https://127.0.0.1:9/a.tar", "https"),
        ("gs://bucket/a.tar", "gs"),
        ("hf://datasets/a/b.tar", "hf"),
        ("ais://bucket/a.tar", "ais"),
        ("scp://host/a.tar", "scp"),
    ],
)
def test_shard_stream_refuses_a_scheme_that_is_not_allowed_and_names_the_option(tmp_path: Path, pattern: str, scheme: str) -> None:
    pattern = pattern.format(folder=tmp_path)
    with pytest.raises(ValueError, match=rf'"{scheme}:" .* type --data.allow_schemes \'\[{scheme}\]\'') as caught:
        next(ShardStream("video", pattern, 0).read(0, 1, StreamPosition()))
    assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "marker").exists()


@pytest.mark.parametrize("pattern", ["s3://bucket/a.tar", "hdfs://host/a.tar", "data:v1/a.tar"])
def test_expand_urls_says_that_nothing_opens_a_scheme(pattern: str) -> None:
    with pytest.raises(ValueError, match=rf'nothing opens "{pattern.split(":")[0]}:", there are plain files and ais, .*pipe'):
        expand_urls(pattern, ("s3", "hdfs", "data"))


def test_expand_urls_checks_what_the_environment_makes_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_HOME", "pipe:true ")
    with pytest.raises(ValueError, match='"pipe:" runs the command'):
        expand_urls("${HOME}a.tar", ("https",))
    monkeypatch.setenv("GOPEN_REWRITE", "store/=pipe:true ")
    for work in (lambda: expand_urls("store/a.tar", ()), lambda: open_shard("store/a.tar", ())):
        with pytest.raises(ValueError, match='"pipe:" runs the command'):
            work()


def test_open_shard_opens_plain_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(b"words")
    for url in (f"{tmp_path}/a.tar", f"file:{tmp_path}/a.tar", f"file://{tmp_path}/a.tar"):
        with open_shard(url, ()) as file:
            assert file.read() == b"words"
    os.mkfifo(tmp_path / "pipe.tar")
    for url in (f"{tmp_path}/pipe.tar", "/dev/zero"):
        with pytest.raises(OSError, match="not a plain file"):
            open_shard(url, ())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):  # webdataset would read standard input
        open_shard("-", ())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Return the address of a server on this machine that has the files of `tmp_path`."""
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: handler(*args, directory=str(tmp_path))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_shard_stream_reads_the_schemes_that_are_allowed(tmp_path: Path, server: str) -> None:
    for number in range(2):
        shard(tmp_path / f"{number}.tar", {f"{number}.mp4": b"clip", f"{number}.cls": f"{number}".encode()})
    for pattern in (f"{server}/{{0..1}}.tar", f"pipe:cat {tmp_path}/{{0..1}}.tar"):
        stream = ShardStream("video", pattern, 0, allow_schemes=["http", "pipe"])
        assert {member.label for member, _ in islice(stream.read(0, 1, StreamPosition()), 2)} == {0, 1}
