"""`--verify` of the commands that load artifacts."""

from pathlib import Path
from typing import Any

import pytest

from walt_pl.cli.main import main


@pytest.mark.parametrize("command", [["sample", "--prompt", "a red circle", "--run"], ["evaluate", "--index", "none.parquet"]])
@pytest.mark.parametrize("verify", [True, False])
def test_verify_option_compares_hashes_of_large_weights(
    command: list[str], verify: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def load(folder: Path, device: Any, verify: bool) -> None:
        asked.append(verify)
        raise ValueError("stop here")

    monkeypatch.setattr("walt_pl.sampling.cascade.load", load)
    monkeypatch.setattr("walt_pl.sampling.cascade.Manifest.usable", lambda *_, **__: {"vae": tmp_path, "base": tmp_path})
    with pytest.raises(SystemExit, match="stop here"):
        main([*command, str(tmp_path), *(["--verify", "true"] if verify else [])])
    assert asked == [verify]
