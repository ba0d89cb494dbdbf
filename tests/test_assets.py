"""The artifacts in assets/: whole, small, in bfloat16, and they paint what a prompt says."""

import subprocess
from itertools import cycle, islice

import pytest
from safetensors import safe_open

from tests.helpers.environment import ROOT
from walt_pl.cli.try_ import ASSETS
from walt_pl.runs.card import read_card
from walt_pl.runs.manifest import Manifest
from walt_pl.runs.status import verify_run
from walt_pl.sampling.cascade import Cascade, SamplingConfig
from walt_pl.shapes.dataset import MOTIONS, SEEN_PAIRS, TEXTURES, parse_caption
from walt_pl.shapes.evaluation import default_steps, request_captions
from walt_pl.shapes.scorer import score

RUN = ROOT / ASSETS
STAGES = ("vae", "base", "sr1", "sr2")
MOST_BYTES = 24_000_000


def captions(count: int) -> list[str]:
    """Return captions of pairs that training videos show, with every motion and texture in turn."""
    words = islice(zip(cycle(SEEN_PAIRS), cycle(MOTIONS), cycle(TEXTURES), strict=False), count)
    moves = {motion: motion if motion in ("growing", "shrinking") else f"moving {motion}" for motion in MOTIONS}
    return [f"a {texture} {colour} {shape} {moves[motion]}" for (shape, colour), motion, texture in words]


def test_assets_are_whole_small_and_in_bfloat16() -> None:
    assert verify_run(RUN) == []
    assert [stage for stage, record in Manifest.open(RUN).stages().items() if record.artifact is not None] == list(STAGES)
    assert sum(path.stat().st_size for path in (ROOT / "assets").rglob("*") if path.is_file()) <= MOST_BYTES
    vae, base = (read_card(RUN / stage)["sha256"] for stage in ("vae", "base"))
    parents = {"vae": {}, "base": {"vae": vae}, "sr1": {"vae": vae, "base": base}, "sr2": {"vae": vae, "base": base}}
    for stage in STAGES:
        card = read_card(RUN / stage)
        assert card["parents"] == parents[stage] and card["converted_from"] not in (None, card["sha256"])
        with safe_open(RUN / stage / "model.safetensors", framework="np") as file:
            types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        assert "BF16" in types and "F32" not in types
        assert "license: " in (RUN / stage / "README.md").read_text()


def test_assets_name_the_command_that_makes_them() -> None:
    page = (ROOT / "assets" / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    command = "export runs/shapes --dtype bfloat16 --out assets/shapes"
    assert f"walt {command}" in page and f"$(WALT) {command}" in makefile and "make demo" in page


def test_assets_come_unchanged_from_a_checkout() -> None:
    """Hashes cover text files, too: git must not change their line ends."""
    files = sorted(str(path.relative_to(ROOT)) for path in RUN.rglob("*") if path.is_file())
    done = subprocess.run(["git", "check-attr", "text", "--", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no git checkout")
    assert files and all(line.endswith(": text: unset") for line in done.stdout.split("\n")[:-1])


def test_assets_paint_what_32_prompts_say() -> None:
    """The demo's own run had 99 % or more of each word, with 256 prompts."""
    before = {path: path.stat().st_mtime_ns for path in (RUN, *RUN.rglob("*"))}
    cascade = Cascade.open(RUN, ["base"])
    prompts = captions(32)
    clips = cascade.video(request_captions(prompts, 1), SamplingConfig(default_steps(cascade)), cascade.clip_frames)
    shares = score(clips, prompts)
    assert {word: float(shares[word]) for word in ("shape", "colour", "motion") if shares[word] < 0.9} == {}
    assert {path: path.stat().st_mtime_ns for path in (RUN, *RUN.rglob("*"))} == before, "reading a run of the checkout changes it"


def test_assets_paint_textures_at_the_largest_size() -> None:
    """The first four captions have all textures; a texture shows at 64 pixels and more."""
    prompts = captions(4)
    cascade = Cascade.open(RUN)
    clips = cascade.video(request_captions(prompts, 1), SamplingConfig(default_steps(cascade)), cascade.clip_frames)
    assert clips.shape == (4, 3, 17, 128, 128)
    shares = score(clips, prompts)
    assert {parse_caption(prompt).texture for prompt in prompts} == set(TEXTURES)
    assert shares["texture"] >= 0.75 and shares["all"] >= 0.75
