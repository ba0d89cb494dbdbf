"""Samples of a run as a source of clips."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_stages import CAPTIONS, write_stages
from walt_pl.diffusion.ddim import Guidance
from walt_pl.evaluation import run_source
from walt_pl.evaluation.clip_reading import cover_and_crop
from walt_pl.evaluation.conditions import ClassesInTurn, RealConditions
from walt_pl.evaluation.run_source import RunSource
from walt_pl.evaluation.source import ClipDraw, ClipSource, Drawn, ReadClips
from walt_pl.media.contact_sheet import to_uint8
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig
from walt_pl.sampling.overlapped_decoding import overlap
from walt_pl.sampling.sampled_video import SampledVideo

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


BLOCKS = [draws(0, 1), draws(3), draws(2, 3), draws(4)]
"""Real clip 2 is that of draw 3: the second block has no sample where it cannot be read."""


def test_run_source_decodes_a_block_after_the_next_one_is_sampled(captioned: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `walt sample` does on a GPU, by its function; the pixels are those of a block at a time."""
    log: list[str] = []
    wanted = [source_of(captioned).read(block, 9, 1, (16, 16)) for block in BLOCKS]
    real = FakeClips()
    source = source_of(captioned, conditions=RealConditions(real, Drawn(REAL)))

    def sample_as_on_a_gpu(cascade: Cascade, requests: Iterable[SampleRequest], clips: int, *settings: Any) -> Iterator[Tensor]:
        assert clips == 9

        def sample(request: SampleRequest) -> tuple[list[int], SampledVideo]:
            log.append(f"sample {list(request.seeds)}")
            return list(request.seeds), cascade.sample_segments(request, *settings)

        def start_decoding(sampled: tuple[list[int], SampledVideo]) -> Callable[[], Tensor]:
            log.append(f"decode {sampled[0]}")
            return lambda: sampled[1].join(cascade.decode(sampled[1].latents, settings[0]))

        return overlap(requests, sample, start_decoding)

    monkeypatch.setattr(run_source, "sample_videos", sample_as_on_a_gpu)
    made = []
    for read in source.read_blocks(BLOCKS, 9, 1, (16, 16)):
        log.append(f"read {len(real.asked)}")
        made.append(read)
    seeds = ([5, 6], [8], [7, 8], [9])
    started = [[f"sample {of}", f"decode {of}"] for of in seeds]
    assert log == [*started[0], *started[1], "read 3", *started[2], "read 5", *started[3], "read 6", "read 6"], "and conditions as needed"
    assert [read.captions for read in made] == [read.captions for read in wanted]
    for got, expected in zip(made, wanted, strict=True):
        assert all(torch.equal(clip_of(got, i), clip_of(expected, i)) for i in range(len(expected.clips)))


def test_run_source_blocks_keep_their_order_and_name_the_clips_that_cannot_be_read(captioned: Cascade) -> None:
    source = source_of(captioned, conditions=RealConditions(FakeClips(broken=True), Drawn(REAL)))
    read = list(source.read_blocks([*BLOCKS, draws(3)], 9, 1, None))
    lost = "clip2.mp4: no such file"
    assert [one.failures for one in read] == [{}, {0: lost}, {1: lost}, {}, {0: lost}]
    assert [[clip is not None for clip in one.clips] for one in read] == [[True, True], [False], [True, False], [True], [False]]
    for block, item in ((2, 2), (3, 4)):
        request = SampleRequest([CAPTIONS[REAL[item].item % 2]], seeds=[5 + item])
        assert torch.equal(clip_of(read[block], 0), torch.from_numpy(to_uint8(captioned.video(request, SAMPLING, 9))[0]))


def test_run_source_error_in_decoding_comes_after_the_blocks_before_it(captioned: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, calls, released = captioned.decode, [0], []

    def fail_at_second(latents: Tensor, sampling: SamplingConfig) -> Tensor:
        calls[0] += 1
        if calls[0] == 2:
            raise RuntimeError("no memory for the decoder")
        return decode(latents, sampling)

    monkeypatch.setattr(captioned, "decode", fail_at_second)
    monkeypatch.setattr(captioned, "release_graphs", lambda: released.append(1))
    coming = source_of(captioned).read_blocks(BLOCKS, 9, 1, None)
    assert clip_of(next(coming), 1).shape == (9, 32, 32, 3)
    with pytest.raises(RuntimeError, match="no memory for the decoder"):
        next(coming)
    assert released == [1], "the memory of CUDA graphs is freed"
