"""Make clips with the small trained model of the checkout: ``python -m walt_pl try``."""

from collections.abc import Sequence
from pathlib import Path

from walt_pl.cli.function_command import call
from walt_pl.cli.sample import make_clips
from walt_pl.cli.sample_files import write_clips
from walt_pl.plain_text import clean_caption
from walt_pl.runs.experiment_files import PACKAGE
from walt_pl.runs.manifest import Manifest
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig
from walt_pl.sampling.defaults import sampling_fps
from walt_pl.sampling.known_conditions import warn_of_unseen_words
from walt_pl.shapes.evaluation import default_steps

ASSETS = "assets/shapes"
"""Folder of the checkout with the artifacts of the embedded set, as `make assets` writes them."""
PROMPTS = (
    "a plain red circle moving left",
    "a striped green triangle moving right",
    "a dotted blue bar growing",
    "a plain yellow triangle shrinking",
    "a striped magenta circle moving up",
    "a dotted cyan triangle moving down",
)
"""Prompts of all shapes, colours, textures and motions."""


def try_(prompt: str | None = None, run: str = ASSETS, out: str = "runs/try/", seed: int = 0) -> None:
    """Make clips with the small trained model of the checkout: an mp4 of each, a GIF of all, and a picture.

    Args:
        prompt: text of the clip, such as "a striped red circle moving left"; six prompts when not given.
        run: folder of the run.
        out: folder of the files. The first free name is taken.
        seed: seed of the noise; each further prompt uses the next seed.
    """
    found = find_assets(Path(run))
    prompts = [clean_caption(prompt)] if prompt is not None else list(PROMPTS)
    cascade = Cascade.open(found)
    warn_of_unseen_words(cascade, prompts)
    request = SampleRequest(prompts, seeds=[seed + number for number in range(len(prompts))])
    clips = make_clips(cascade, request, SamplingConfig(default_steps(cascade)), batch=len(prompts))
    print(write_clips(f"{out.rstrip('/')}/", clips, prompts, sampling_fps(cascade), overwrite=False))


def find_assets(run: Path) -> Path:
    """Return the folder of a run, that of the checkout of this program for `ASSETS`.

    Raises:
        ValueError: there is no run. The message says where the small model lies.
    """
    beside = PACKAGE.parent / ASSETS
    found = beside if run == Path(ASSETS) and not Manifest(run).path.exists() else run
    if not Manifest(found).path.exists():
        raise ValueError(
            f"try: there is no trained model in {run}; a checkout of the repository (git clone) has {ASSETS}, an installed package has "
            "not: name it there, or a run of your own, with --run DIR"
        )
    return found


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt try`. The prompt may be typed without its option."""
    call(try_, ["--prompt", *words] if words and not words[0].startswith("-") else words)
