"""Score the stages of a run: ``python -m walt_pl evaluate``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datamodules.joint import JointData
from walt_pl.cli.console import print_table
from walt_pl.cli.function_command import call
from walt_pl.data.frame_rate import DEFAULT_FPS, trained_rate
from walt_pl.data.index import Index
from walt_pl.data.transforms import PixelDataset
from walt_pl.files import file_sha256
from walt_pl.media.contact_sheet import captioned_grid, contact_sheet
from walt_pl.media.writing import write_gif, write_image
from walt_pl.runs.card import TRAIN, read_card
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.stage_names import kind_of
from walt_pl.runs.stored_config import clip_arguments, stored_index
from walt_pl.shapes.evaluation import evaluate_autoencoder, evaluate_run, render_summary
from walt_pl.untrusted import MAX_YAML_BYTES, read_bytes

SHOWN = 8
"""Number of clips in the picture of an autoencoder's reconstructions."""


def evaluate(
    run: str = "runs/shapes",
    index: str | None = None,
    prompts: int = 256,
    unseen: int = 64,
    steps: int | dict[str, int] | None = None,
    seed: int = 0,
    stages: str | None = None,
    allow_stale: bool = False,
    verify: bool = False,
) -> None:
    """Score every stage of a run on the embedded set with its analytic scorer, and print the table.

    A run that has only an autoencoder, or --stages vae, is scored on the data of its training. The figure is the PSNR of held-out clips.
    The first of them are shown beside their reconstructions in reconstructions.png and .gif in the run's folder.

    Args:
        run: folder of the run.
        index: index of the embedded set; for an autoencoder alone the index of its training when not given.
        prompts: number of validation captions to score the base model on.
        unseen: number of captions with a shape and colour that no training video has together.
        steps: sampling steps, for every stage or by stage; those of the demo when not given.
        seed: seed of the noise.
        stages: stages to score, e.g. base; all finished ones when not given.
        allow_stale: score even if a parent was trained again.
        verify: also read weights of more than 1 GB to compare their hash; smaller ones are always compared.
    """
    if prompts < 1 or unseen < 1:
        raise ValueError(f"evaluate: --prompts and --unseen must be at least 1, got {prompts} and {unseen}")
    wanted = stages.split(",") if stages else None
    scored = wanted or [name for name, stage in Manifest.open(run).stages().items() if stage.artifact is not None]
    if scored and all(kind_of(stage) == "vae" for stage in scored):
        _evaluate_autoencoder(Path(run), scored[0], index, allow_stale, verify)
        return
    path = Path(index or "data/shapes/index.parquet")
    summary = evaluate_run(Path(run), path, prompts, unseen, seed, steps, wanted, allow_stale, verify)
    print_table(render_summary(summary))


def _evaluate_autoencoder(run: Path, stage: str, index: str | None, allow_stale: bool, verify: bool) -> None:
    """Write the figures and the pictures of an autoencoder, on uncropped validation clips of its training."""
    folder = Manifest.open(run).usable([stage], allow_stale)[stage]
    data = _trained_on(folder / TRAIN, index)
    clip_transform = replace(data.clip_transform, crop=None, sizes=(), flip=False)
    videos = Index(data.index, "val").videos
    source = PixelDataset(videos, (), clip_transform)
    selected = data.selection("val").get("video")
    if selected is None:
        raise ValueError(f"{folder}: trained on images alone, and videos are scored")
    summary, clips, lines = evaluate_autoencoder(folder, stage, source, list(selected.positions()), verify)
    print_table(render_summary(summary))
    clips, lines = clips[: 2 * SHOWN], lines[: 2 * SHOWN]
    out = run / "reconstructions.png"
    write_image(out, contact_sheet(clips, lines))
    fps = trained_rate(videos, selected.positions(), clip_transform) or DEFAULT_FPS
    write_gif(out.with_suffix(".gif"), captioned_grid(clips, lines, columns=2), fps)
    print(f"{summary['counts'][stage]} held-out clips; look at {out}, {out.with_suffix('.gif')}")


def _trained_on(train_config: Path, index: str | None) -> JointData:
    """Return the data module of a training. Only numbers of its configuration are used, and its index unless another is named.

    Raises:
        ValueError: the index does not exist on this machine, or is not the one that the artifact's card names by its hash.
    """
    text, where = read_bytes(train_config, MAX_YAML_BYTES).decode(errors="replace"), str(train_config)
    found = Path(index or stored_index(text, where))
    if not found.is_file():
        raise ValueError(
            f"evaluate: there is no index {found}{'' if index else f', which {where} names'}; name it with --index FILE.parquet"
        )
    if index is None and file_sha256(found) != read_card(train_config.parent)["index"].get("sha256"):
        raise ValueError(
            f"evaluate: {found}, which {where} names, is not the index that the card names by its hash; if it is the right one, name it "
            f"with --index {found}"
        )
    return JointData(index=str(found), **clip_arguments(text, where))


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt evaluate`."""
    call(evaluate, words)
