"""The folder for temporary files is as empty after a command as before."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.environment import ROOT
from tests.helpers.tiny_stages import CAPTIONS, write_stages
from tests.helpers.training import arguments
from walt_pl.runs.manifest import Manifest

RUN = """
import json, sys
from walt_pl.cli.main import main
if __name__ == "__main__":
    for words in json.loads(sys.argv[1]):
        main(words)
"""


def test_fit_validate_and_sample_leave_nothing_in_the_temporary_folder(painted: Path, tmp_path: Path) -> None:
    """With workers, which are killed at the end, and with everything imported anew."""
    # A socket's path has at most 107 characters, so this folder lies directly in the outer temporary folder.
    temporary = Path(tempfile.mkdtemp(prefix="walt-test-"))
    (program := tmp_path / "program.py").write_text(RUN)
    manifest = Manifest.open(tmp_path / "tiny")
    for stage, folder in write_stages(manifest.run_dir).items():
        manifest.finish(stage, folder)
    train = arguments("vae", tmp_path / "run", painted, "--trainer.max_steps", "2", "--model.warmup_steps", "1", "--data.num_workers", "2")
    prompt = ["--prompt", CAPTIONS[0], "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "clip.mp4")]
    commands = [["fit", *train], ["validate", *train], ["sample", "--run", str(manifest.run_dir), *prompt]]
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, program, json.dumps(commands)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and (tmp_path / "clip.mp4").is_file(), done.stderr[-3000:]
    assert list(temporary.rglob("*")) == []
    temporary.rmdir()
