"""Samples of a run as a source of clips."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_stages import CAPTIONS, write_stages
from walt_pl.diffusion.ddim import Guidance
from walt_pl.evaluation.clip_reading import cover_and_crop
from walt_pl.evaluation.conditions import ClassesInTurn, RealConditions
from walt_pl.evaluation.run_source import RunSource
from walt_pl.evaluation.source import ClipDraw, ClipSource, Drawn, ReadClips
from walt_pl.media.contact_sheet import to_uint8
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig

SAMPLING = SamplingConfig(2)
REAL = [ClipDraw(item, item % 2) for item in (3, 1, 0, 2, 1)]


class FakeClips(ClipSource):
    """Clips of noise in memory. Clip 2 cannot be read where `broken` is true."""

    def __init__(self, broken: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        self.clips = torch.randint(0, 256, (4, 12, 40, 48, 3), generator=generator, dtype=torch.uint8)
        self.broken = broken
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.clips)

    def facts(self) -> dict[str, Any]:
        return {"kind": "fake"}

    def lengths(self) -> Sequence[int]:
        return [12] * 4

    def names(self) -> Sequence[str]:
        return [f"clip{i}.mp4" for i in range(4)]

    def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: tuple[int, int] | None) -> ReadClips:
        self.asked += [(draw.item, frames) for draw in draws]
        clips: list[Tensor | None] = [cover_and_crop(self.clips[item][start::stride][:frames].numpy(), size) for item, start in draws]
        lost = {i: "clip2.mp4: no such file" for i, draw in enumerate(draws) if self.broken and draw.item == 2}
        read = [None if i in lost else clip for i, clip in enumerate(clips)]
        return ReadClips(read, [CAPTIONS[draw.item % 2] for draw in draws], [draw.item for draw in draws], None, lost)


def draws(*items: int) -> list[ClipDraw]:
    return [ClipDraw(item, 0) for item in items]


def clip_of(read: ReadClips, place: int) -> Tensor:
    clip = read.clips[place]
    assert clip is not None
    return clip


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    return Cascade(write_stages(tmp_path_factory.mktemp("captioned")), dtype=torch.float32)


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    """A model of three classes, which makes single frames."""
    folders = write_stages(tmp_path_factory.mktemp("classes"), classes=3, upscalers=0, frames=1)
    return Cascade(folders, dtype=torch.float32)


@pytest.fixture(scope="module")
def continuing(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    """A model that gets context frames in every step of its training."""
    folders = write_stages(tmp_path_factory.mktemp("continuing"), frame_prediction=1.0, upscalers=0)
    return Cascade(folders, dtype=torch.float32)


def source_of(cascade: Cascade, **changes: Any) -> RunSource:
    conditions = RealConditions(FakeClips(), Drawn(REAL))
    return RunSource("runs/tiny", cascade, SAMPLING, **({"conditions": conditions, "count": 9, "seed": 5} | changes))


def test_run_source_makes_clip_i_from_caption_i_and_seed_plus_i(captioned: Cascade) -> None:
    """As `walt sample` makes it: after the last real clip, the first one follows again."""
    read = source_of(captioned).read(draws(1, 4, 6), 9, 1, None)
    assert list(read.captions) == [CAPTIONS[1], CAPTIONS[1], CAPTIONS[1]] and list(read.labels) == [1, 1, 1]
    request = SampleRequest([CAPTIONS[1]] * 3, seeds=[6, 9, 11])
    expected = to_uint8(captioned.video(request, SAMPLING, 9))
    assert all(torch.equal(clip_of(read, i), torch.from_numpy(expected[i])) for i in range(3))
    assert clip_of(read, 0).shape == (9, 32, 32, 3) and not torch.equal(clip_of(read, 0), clip_of(read, 1))


def test_run_source_clip_does_not_depend_on_its_block(captioned: Cascade) -> None:
    source = source_of(captioned)
    block, again, alone = (source.read(draws(*items), 9, 1, (32, 32)) for items in ((2, 3, 4), (2, 3, 4), (3,)))
    assert all(torch.equal(clip_of(block, i), clip_of(again, i)) for i in range(3)), "equal blocks give equal bits"
    difference = (clip_of(block, 1).int() - clip_of(alone, 0).int()).abs()
    assert difference.max() <= 1, "another block: up to rounding"


def test_run_source_takes_the_first_frames_at_the_size_of_the_protocol(captioned: Cascade) -> None:
    source = source_of(captioned)
    whole, part = source.read(draws(0), 9, 1, None), source.read(draws(0), 4, 2, (16, 24))
    assert clip_of(part, 0).shape == (4, 16, 24, 3)
    assert torch.equal(clip_of(part, 0), cover_and_crop(clip_of(whole, 0)[::2][:4].numpy(), (16, 24)))
    assert source.lengths() == [9] * 9 and source.names()[:3] == ["clip3.mp4", "clip1.mp4", "clip0.mp4"]
    with pytest.raises(ValueError, match=r"runs/tiny makes clips of 9 frames, and the protocol wants 16: type --frames 9"):
        source.read(draws(0), 16, 1, None)


def test_run_source_facts_change_with_everything_that_changes_a_sample(captioned: Cascade, tmp_path: Path) -> None:
    other = Cascade(write_stages(tmp_path, frames=3, noise_aug_max=300), dtype=torch.float32)
    for stage in ("vae", "base", "sr1"):
        assert len(source_of(captioned).facts()["artifacts"][stage]["sha256"]) == 64
    found = [
        source_of(captioned),
        source_of(captioned, seed=6),
        source_of(captioned, negative_prompt="a plain bar"),
        source_of(captioned, conditions=RealConditions(FakeClips(), Drawn(REAL[1:]))),
        source_of(captioned, conditions=RealConditions(FakeClips(), Drawn(REAL), stride=2)),
        source_of(captioned, conditions=ClassesInTurn([0, 1])),
    ]
    for sampling in (
        SamplingConfig(3),
        SamplingConfig(2, eta=1.0),
        SamplingConfig(2, guidance={"base": Guidance(3.0)}),
        SamplingConfig(2, tile=4),
    ):
        found.append(RunSource("runs/tiny", captioned, sampling, found[0].conditions, 9, 5))
    facts = [json.dumps(source.facts()) for source in found]
    assert len(set(facts)) == len(facts), "plain values, all different"
    assert json.dumps(source_of(captioned).facts()) == facts[0]
    assert source_of(other).facts()["artifacts"]["vae"] == found[0].facts()["artifacts"]["vae"], "equal weights have equal hashes"
    other.artifacts["base"] = replace(other.artifacts["base"], card=other.artifacts["base"].card | {"sha256": "0" * 64, "steps": 7})
    changed = source_of(other).facts()["artifacts"]["base"]
    assert changed == {"sha256": "0" * 64, "step": 7, "ema": None}


@pytest.mark.parametrize(
    ("protocol", "ema"), [("the validation clips, view 0, averaged weights", True), ("the validation clips, view 0", False)]
)
def test_run_source_facts_say_whether_weights_are_averages(captioned: Cascade, protocol: str, ema: bool) -> None:
    artifact = captioned.artifacts["base"]
    card = artifact.card | {"metrics": {"protocol": protocol, "values": {}}}
    captioned.artifacts["base"] = replace(artifact, card=card)
    try:
        assert source_of(captioned).facts()["artifacts"]["base"]["ema"] is ema
    finally:
        captioned.artifacts["base"] = artifact


def test_run_source_of_classes_takes_them_in_turn_or_from_real_clips(of_classes: Cascade) -> None:
    in_turn = source_of(of_classes, conditions=ClassesInTurn([0, 1, 2]))
    read = in_turn.read(draws(0, 4, 8), 1, 1, None)
    assert list(read.labels) == [0, 1, 2] and clip_of(read, 0).shape == (1, 16, 16, 3)
    expected = of_classes.video(SampleRequest(labels=[0, 1, 2], seeds=[5, 9, 13]), SAMPLING, 1)
    assert torch.equal(torch.stack([clip_of(read, i) for i in range(3)]), torch.from_numpy(to_uint8(expected)))
    real = source_of(of_classes).read(draws(0, 1), 1, 1, None)
    assert real.clips[0] is None and real.failures == {0: "a real clip has the label 3, and the model has the classes 0 to 2"}
    assert list(real.labels) == [3, 1] and real.clips[1] is not None


def test_run_source_names_real_clips_that_cannot_be_read(captioned: Cascade) -> None:
    """The other samples of the block are made."""
    source = source_of(captioned, conditions=RealConditions(FakeClips(broken=True), Drawn(REAL)))
    read = source.read(draws(2, 3), 9, 1, None)
    assert read.clips[0] is not None and read.clips[1] is None and read.failures == {1: "clip2.mp4: no such file"}
    none = source.read(draws(3), 9, 1, None)
    assert none.clips == [None]


def test_run_source_continues_real_clips_from_their_first_frames(continuing: Cascade) -> None:
    real = FakeClips()
    source = source_of(continuing, conditions=RealConditions(real, Drawn(REAL), context_frames=5))
    read = source.read(draws(0, 1), 9, 1, (8, 8))
    originals = real.read(REAL[:2], 9, 1, (8, 8))
    assert read.originals is not None and all(torch.equal(read.originals[i], clip_of(originals, i)) for i in range(2))  # type: ignore[arg-type]
    given = [real.clips[item, start : start + 5] for item, start in REAL[:2]]
    context = torch.cat([continuing.encode_context(cover_and_crop(clip.numpy(), (16, 16)).numpy(), "x")["base"] for clip in given])
    request = SampleRequest([CAPTIONS[1]] * 2, seeds=[5, 6], context_latents={"base": context})
    expected = torch.from_numpy(to_uint8(continuing.video(request, SAMPLING, 9)))
    assert all(torch.equal(clip_of(read, i), cover_and_crop(expected[i].numpy(), (8, 8))) for i in range(2)), "the decoded frames count"
    facts = source.facts()["conditions"]
    assert facts["context_frames"] == 5 and facts["context_pixels"] == "decoded"
    with pytest.raises(ValueError, match="context frames in every step of its training"):
        source_of(continuing).read(draws(0), 9, 1, None)
