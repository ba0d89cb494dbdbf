"""A command without the folders of one machine, for people elsewhere."""

import shlex
from pathlib import Path

import pytest

from walt_pl.runs.portable_command import portable_command, portable_words

FIT = "python -m walt_pl fit"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("experiments/shapes/base.yaml", "experiments/shapes/base.yaml"),
        ("{cwd}/my.yaml", "my.yaml"),
        ("{cwd}", "."),
        ("{cwd}/", "."),
        ("{cwd}/a.tar::/home/b/c.tar", "a.tar::/path/to/c.tar"),
        ("--config={cwd}/a b/my.yaml", "--config=a b/my.yaml"),
        ("[{cwd}/a.yaml, {cwd}/b.yaml]", "[a.yaml, b.yaml]"),
        ("/data{cwd}/x.parquet", "/path/to/x.parquet"),
        ("{cwd}-2/x.parquet", "/path/to/x.parquet"),
        ("data{cwd}/x.parquet", "data{cwd}/x.parquet"),
        ("/home/a/b/my.yaml", "/path/to/my.yaml"),
        ("{cwd}/clips (new)/set/x.parquet", "clips (new)/set/x.parquet"),
        ("{cwd}/a[1]/b}/x.parquet", "a[1]/b}/x.parquet"),
        ("/home/a/b/", "/path/to/"),
        ("--config=/home/a/my.yaml", "--config=/path/to/my.yaml"),
        ("/home/my user/sets/x.yaml", "/path/to/x.yaml"),
        ("--x=/home/my user/sets=1/a,b/x.yaml", "--x=/path/to/x.yaml"),
        ("[/home/a/b.yaml, ../c/d]", "[/path/to/b.yaml, ../c/d]"),
        ("--x=[/home/my user/b.yaml,/home/c/d.yaml]", "--x=[/path/to/b.yaml,/path/to/d.yaml]"),
        ("""['/home/a, b/c.yaml', "/home/d/e.yaml"]""", """['/path/to/c.yaml', "/path/to/e.yaml"]"""),
        ("{path: /home/my user/c, width: 8}", "{path: /path/to/c, width: 8}"),
        ("""{"kind": "t5", "path":"/home/a/t5"}""", """{"kind": "t5", "path":"/path/to/t5"}"""),
        ("https://host/a/b.tar", "https://host/a/b.tar"),
        ("[s3://bucket/a/b.tar, https://host/c/d.tar]", "[s3://bucket/a/b.tar, https://host/c/d.tar]"),
        ("file:///home/a/b.tar", "file:/path/to/b.tar"),
        ("pipe:cat /home/my user/b.tar", "pipe:cat /path/to/b.tar"),
        ("a cat / a dog / a bird", "a cat / a dog / a bird"),
        ("1/2", "1/2"),
        ("/home/a=b/x.yaml", "/path/to/x.yaml"),
        ("{a: /home/b/c, d: /home/e/f}", "{a: /path/to/c, d: /path/to/f}"),
    ],
)
def test_portable_command_names_no_folder_of_the_machine(word: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the option, in each place of the command, and in the words of another command."""
    monkeypatch.chdir(tmp_path)
    word, expected = (text.replace("{cwd}", str(tmp_path)) for text in (word, expected))
    typed = f"{FIT} --x {shlex.quote(word)} --y 1 {shlex.quote(word)}"
    assert portable_command(typed) == f"{FIT} --x {shlex.quote(expected)} --y 1 {shlex.quote(expected)}"
    assert portable_words(["walt", "export", word]) == f"walt export {shlex.quote(expected)}"


@pytest.mark.parametrize("command", [f"{FIT} --x 'a\nb'", "rm -rf /home/a/b", "the same command", f"{FIT} {'a' * 20_000}"])
def test_portable_command_is_empty_for_what_is_no_line_of_fit(command: str) -> None:
    assert portable_command(command) == ""
