"""Export an artifact from a checkpoint, without its run: ``python -m walt_pl export CKPT --out DIR``. `export_run` rounds those of a run.

The checkpoint holds a description of its artifact in plain values (`walt_pl.training.callbacks.export`). So no stage is built, and no run,
parent or configuration file is needed. Only the latent statistics of an autoencoder are missing. They are measured on an index that the
user names. Nothing that the description names is opened: a checkpoint may come from a stranger.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from datamodules.joint import JointData
from walt_pl.cli.export_run import export_run
from walt_pl.cli.function_command import call
from walt_pl.models.vae import VAE
from walt_pl.runs.artifact import component_config
from walt_pl.runs.artifact_writing import component_states, save_artifact
from walt_pl.runs.card import WEIGHTS, check_replaceable
from walt_pl.runs.checkpoint import Checkpoint, CheckpointError, check_floating, read_state, recovery_hint
from walt_pl.runs.checkpoint_card import validation_values
from walt_pl.runs.finite import NonFiniteError
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.stored_config import clip_arguments, in_bfloat16, statistics_batches
from walt_pl.runs.whole_weights import weights
from walt_pl.training.callbacks.export import DESCRIPTION


def export(
    checkpoint: str, out: str = "artifact", ema: bool = True, index: str | None = None, dtype: Literal["float32", "bfloat16"] = "float32"
) -> None:
    """Make an artifact of a checkpoint of any strategy: one safetensors file, and the files to load it (walt_pl.load).

    Args:
        checkpoint: folder of the checkpoint, or a folder of several, of which the newest is used; or that of a run, with --dtype bfloat16.
        out: folder of the artifact; of a run, that of the new run.
        ema: export the averaged weights, if there are averages; false exports the raw training weights.
        index: index of an autoencoder's training data, on which its latent statistics are measured. Without it the artifact has none.
        dtype: bfloat16 rounds the weights of all finished stages of a run, which halves their files; of a checkpoint float32 alone.
    """
    if dtype == "bfloat16":
        _export_run(Path(checkpoint), Path(out), ema and index is None)
        return
    found, sha256 = export_checkpoint(Path(checkpoint), Path(out), ema, Path(index) if index else None)
    kind = "averaged weights" if ema and found.ema is not None else "weights"
    print(f"{out}: {kind} of step {found.step} ({found.strategy}, {found.world_size} ranks), sha256 {sha256[:12]}")


def _export_run(run: Path, out: Path, plain: bool) -> None:
    """Write the artifacts of a run in bfloat16, and print their hashes and sizes.

    Raises:
        ValueError: the folder is no run, or an option of checkpoints is given.
    """
    if not plain:
        raise ValueError("export: --ema and --index are of checkpoints, and --dtype bfloat16 is of a run: leave one out")
    if not Manifest(run).path.exists():
        raise ValueError(
            f"export: --dtype bfloat16 is of a run with finished stages, and {run} has no manifest.json: name one, such as runs/shapes"
        )
    for stage, sha256 in export_run(run, out).items():
        print(f"{out / stage}: bfloat16, {(out / stage / WEIGHTS).stat().st_size / 1e6:.1f} MB, sha256 {sha256[:12]}")


def export_checkpoint(path: Path, out: Path, ema: bool = True, index: Path | None = None) -> tuple[Checkpoint, str]:
    """Write the artifact of a checkpoint.

    Args:
        path: folder of the checkpoint, or a folder of several, of which the newest is used.
        out: folder of the artifact.
        ema: replace the weights by their averages, if there are averages.
        index: index of the training data, to measure the latent statistics of an autoencoder. Without it the artifact has none.

    Returns:
        The checkpoint used, and the sha256 of the weights.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be used; nothing is written.
        ArtifactError: `out` holds something other than an artifact.
        NonFiniteError: weights, latent statistics or values of the validation are nan or infinite.
        ValueError: the index does not exist, does not fit the training, or must not be given.
    """
    checkpoint = Checkpoint.at(path, hashed=True) if path.name.startswith("step=") else Checkpoint.newest(path, hashed=True)
    if checkpoint is None:
        raise CheckpointError(f"{path} has no whole checkpoint; name a folder such as runs/shapes/training/base/checkpoints/step=00000100")
    check_replaceable(out)
    described = read_state(checkpoint.state).get(DESCRIPTION)
    if described is None:
        raise CheckpointError(f"{checkpoint.path} does not say what it is a checkpoint of; let `fit` go on from it and write another one")
    _check_index(index, described["kind"])
    states = component_states(weights(checkpoint, ema), described["components"])
    for state in states.values():
        check_floating(state, checkpoint.state)
    models = {name: (states[name], component_config(name, fields)) for name, fields in described["components"].items()}
    averaged = ema and checkpoint.ema is not None
    card = {
        "parents": described["parents"],
        "index": described["index"],
        "steps": checkpoint.step,
        "samples": checkpoint.samples,
        "training": described.get("training", {}),
        "metrics": {
            "protocol": f"the validation clips of the index, view 0{', averaged weights' * averaged}",
            "values": validation_values(checkpoint.metrics),
        },
    }
    if index is not None:
        card["latents"] = _latents(models["vae"], described, index, checkpoint.state)
    elif described["kind"] == "vae":
        warnings.warn(
            "no latent statistics, which are measured on training data: no stage can be trained on this autoencoder unless with "
            f"--model.diffusion.normalize_latents false; to measure them, type: python -m walt_pl export {path} --out {out} "
            "--index FILE.parquet",
            stacklevel=2,
        )
    try:
        sha256 = save_artifact(
            out,
            kind=described["kind"],
            models=models,
            sampling_config=described["sampling_config"],
            card=card,
            train_config=described["train_config"],
            files=described["files"],
        )
    except NonFiniteError as error:
        raise NonFiniteError(f"{checkpoint.path}: {error}; {recovery_hint(checkpoint.path.parent, checkpoint.step)}") from error
    return checkpoint, sha256


def _check_index(index: Path | None, kind: str) -> None:
    if index is None:
        return
    if kind != "vae":
        raise ValueError(
            f"export: --index is for the latent statistics of an autoencoder, and this is a checkpoint of kind {kind}; leave it out"
        )
    if not index.is_file():
        raise ValueError(f"export: --index {index}: there is no such file; name the index that the autoencoder was trained on (.parquet)")


def _latents(model: tuple[dict[str, torch.Tensor], Any], described: dict[str, Any], index: Path, state: Path) -> dict[str, list[float]]:
    """Measure latent statistics on an index, as training does at its end. Only numbers of the description are used."""
    # The import is here, since the help of `fit` lists every stage that is already imported.
    from stages.latent_statistics import latent_statistics, latent_sums, training_latents

    config, where = described["train_config"], str(state)
    data = JointData(index=str(index), **clip_arguments(config, where))
    if data.index_sha256 != described["index"]["sha256"]:
        warnings.warn(
            f"latent statistics are measured on {index}, which is not the index that this autoencoder was trained on", stacklevel=3
        )
    batches = statistics_batches(config, where)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    values, size = model
    vae = VAE(size)
    vae.load_state_dict(values)
    vae.to(device).eval()
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bfloat16(config, where)):
            latents = training_latents(vae, data.train_dataloader(), batches, device)
            return latent_statistics(latent_sums(latents, size.latent_channels))
    finally:
        data.teardown("fit")


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt export`."""
    call(export, words)
