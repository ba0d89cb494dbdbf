"""An artifact in somebody else's program, who has neither Lightning nor DeepSpeed."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

from tests.helpers.environment import ROOT, refuse_imports
from walt_pl.models.vae import VAE, VAEConfig
from walt_pl.runs.artifact_writing import save_artifact

ABSENT = ("lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics", "deepspeed")
REFUSE = refuse_imports(ABSENT)
PROVE = f"""
import importlib
for name in {ABSENT}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{{name}} is there")
"""


def five_lines() -> str:
    """As docs/EXPORT.md gives them."""
    block, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "EXPORT.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in block.splitlines() if line]) == 5
    return block


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[VAE, Path]:
    torch.manual_seed(0)
    size = VAEConfig(
        width=8,
        channel_multipliers=(1, 1),
        strides=((2, 2, 2),),
        num_res_blocks=(0, 1),
        num_middle_blocks=0,
        norm="layer",
        latent_channels=2,
    )
    vae = VAE(size).eval()
    folder = tmp_path_factory.mktemp("artifact") / "vae"
    save_artifact(folder, kind="vae", models={"vae": vae}, sampling_config={}, card={}, train_config="{}")
    return vae, folder


def same_outputs(python: Path, before: str, autoencoder: tuple[VAE, Path], folder: Path) -> None:
    vae, artifact = autoencoder
    lines = five_lines().replace("runs/shapes/vae", str(artifact)).replace("torch.zeros(1, 3, 17, 64, 64)", "torch.load('x.pt')")
    x = torch.randn(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.save(x, folder / "x.pt")
    program = f"{before}\n{lines}\n{PROVE}\ntorch.save((latents, clips), 'out.pt')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([python, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    latents, clips = torch.load(folder / "out.pt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(latents, vae.encode(x).mean, rtol=0, atol=1e-6)  # another process may split sums another way
        torch.testing.assert_close(clips, vae.decode(latents), rtol=0, atol=1e-6)


def test_load_artifact_works_in_five_lines_where_lightning_and_deepspeed_are_blocked(autoencoder: tuple[VAE, Path], tmp_path: Path) -> None:
    same_outputs(Path(sys.executable), REFUSE, autoencoder, tmp_path)


@pytest.mark.slow
def test_load_artifact_works_in_five_lines_where_lightning_and_deepspeed_are_not_installed(
    autoencoder: tuple[VAE, Path], tmp_path: Path
) -> None:
    """A virtual environment with links to everything that is installed here, but for them."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    packages = next(home.glob("lib/python*/site-packages"))
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(ABSENT) and not entry.name.endswith(".pth"):
            (packages / entry.name).symlink_to(entry.resolve())
    same_outputs(home / "bin" / "python", "", autoencoder, tmp_path)
