"""An artifact from a checkpoint, wherever that is: ``python -m walt_pl export CKPT --out DIR``.

The checkpoint holds a description of its artifact in plain values (`walt_pl.callbacks.export`), so no stage is built and no run, parent or
configuration file has to be there. One thing is not in it: the latent statistics of an autoencoder, which are measured on training data.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
import yaml

from datamodules.joint import JointData
from stages.vae import latent_statistics, latent_sums, training_latents
from walt_pl.artifact import check_replaceable, save_artifact, section_config, section_states
from walt_pl.callbacks.export import DESCRIPTION
from walt_pl.checkpoint import Checkpoint, CheckpointError, read_state, way_back
from walt_pl.checkpoint_weights import weights
from walt_pl.finite import NonFiniteError
from walt_pl.models.vae import VAE


def export_checkpoint(path: Path, out: Path, ema: bool = True) -> tuple[Checkpoint, str]:
    """Write the artifact of a checkpoint (its folder, or one of several: then of the newest); the checkpoint used, and the weights' sha256.

    Raises:
        CheckpointError: there is none, or it cannot be used; nothing is written.
        ArtifactError: `out` holds something else than an artifact.
        NonFiniteError: weights, latent statistics or values of the validation are nan or infinite.
    """
    checkpoint = Checkpoint.at(path) if path.name.startswith("step=") else Checkpoint.newest(path)
    if checkpoint is None:
        raise CheckpointError(f"{path} has no whole checkpoint; name a folder such as runs/shapes/training/base/checkpoints/step=00000100")
    check_replaceable(out)
    described = read_state(checkpoint.state).get(DESCRIPTION)
    if described is None:
        raise CheckpointError(f"{checkpoint.path} does not say what it is a checkpoint of; let `fit` go on from it and write another one")
    states = section_states(weights(checkpoint, ema), described["sections"])
    models = {name: (states[name], section_config(name, fields)) for name, fields in described["sections"].items()}
    averaged = ema and checkpoint.ema is not None
    card = {
        "parents": described["parents"],
        "index": described["index"],
        "steps": checkpoint.step,
        "samples": checkpoint.samples,
        "metrics": {
            "protocol": f"the validation clips of the index, view 0{', averaged weights' * averaged}",
            "values": checkpoint.metrics,
        },
    }
    if described["kind"] == "vae":
        card["latents"] = _latents(models["vae"], described["train_config"])
    try:
        sha256 = save_artifact(
            out,
            kind=described["kind"],
            models=models,
            settings=described["settings"],
            card=card,
            train_config=described["train_config"],
            files=described["files"],
        )
    except NonFiniteError as error:
        raise NonFiniteError(f"{checkpoint.path}: {error}; {way_back(checkpoint.path.parent, checkpoint.step)}") from error
    return checkpoint, sha256


def _latents(model: tuple[dict[str, torch.Tensor], Any], train_config: str) -> dict[str, list[float]] | None:
    """Statistics on the data that was trained on; None, and a warning, where that is not here."""
    config = yaml.safe_load(train_config)
    data = JointData(**config["data"])
    try:
        loader = data.train_dataloader()
    except (OSError, ValueError) as error:
        warnings.warn(
            f"no latent statistics, which are measured on the training data ({error}): no stage can be trained on this autoencoder unless "
            "with --model.normalise_latents false; export it where the data is",
            stacklevel=3,
        )
        return None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state, size = model
    vae = VAE(size)
    vae.load_state_dict(state)
    vae.to(device).eval()
    half = "bf16" in str(config["trainer"]["precision"])  # as the training measures them at its end
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            latents = training_latents(vae, loader, config["model"]["init_args"]["statistics_batches"], device)
            return latent_statistics(latent_sums(latents, size.latent_channels))
    finally:
        data.teardown("fit")
