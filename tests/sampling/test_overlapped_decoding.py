"""Decoding beside the sampling of the next videos: order, errors, bound, and pixels."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.tiny_stages import CAPTIONS, write_stages
from walt_pl.diffusion.ddim import Guidance
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig
from walt_pl.sampling.overlapped_decoding import overlap, sample_videos
from walt_pl.sampling.sampled_video import SampledVideo

REQUEST = SampleRequest(prompts=[*CAPTIONS, CAPTIONS[0]], seeds=[3, 4, 5])
PARTS = [REQUEST.part(start, 1) for start in range(3)]
SAMPLING = SamplingConfig(steps=2, guidance={"base": Guidance(2.0)})


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    """A base model that knows frame prediction."""
    folders = write_stages(tmp_path_factory.mktemp("run"), upscalers=0, frame_prediction=0.1)
    return Cascade(folders, dtype=torch.float32)


class Queue:
    """Notes when parts are sampled, decoded and waited for."""

    def __init__(self, failing: str = "") -> None:
        self.log: list[str] = []
        self.failing = failing

    def note(self, what: str) -> None:
        self.log.append(what)
        if what == self.failing:
            raise RuntimeError(what)

    def sample(self, part: int) -> int:
        self.note(f"sample {part}")
        return part

    def start_decoding(self, part: int) -> Callable[[], int]:
        self.note(f"decode {part}")

        def wait() -> int:
            self.note(f"wait {part}")
            return part

        return wait

    def run(self) -> list[int]:
        made = []
        for part in overlap(range(3), self.sample, self.start_decoding):
            self.note(f"write {part}")
            made.append(part)
        return made


def test_overlap_writes_each_part_while_the_next_is_decoded() -> None:
    queue = Queue()
    assert queue.run() == [0, 1, 2]
    wanted = "sample 0, decode 0, sample 1, decode 1, wait 0, write 0, sample 2, decode 2, wait 1, write 1, wait 2, write 2"
    assert queue.log == wanted.split(", ")


@pytest.mark.parametrize(
    ("failing", "written"),
    [("sample 0", 0), ("sample 1", 1), ("sample 2", 2), ("decode 0", 0), ("decode 1", 1), ("wait 1", 1), ("decode 2", 2), ("wait 2", 2)],
)
def test_overlap_error_comes_after_the_parts_before_it(failing: str, written: int) -> None:
    queue = Queue(failing)
    with pytest.raises(RuntimeError, match=failing):
        queue.run()
    assert [line for line in queue.log if line.startswith("write")] == [f"write {part}" for part in range(written)]
    assert queue.log.count("wait 0") <= 1


def test_overlap_error_of_a_part_that_cannot_be_made_comes_after_the_parts_before_it() -> None:
    queue = Queue()

    def parts() -> Iterator[int]:
        yield from range(2)
        raise RuntimeError("no part 2")

    coming = overlap(parts(), queue.sample, queue.start_decoding)
    assert [next(coming), next(coming)] == [0, 1]
    with pytest.raises(RuntimeError, match="no part 2"):
        next(coming)


def test_overlap_stops_with_its_consumer() -> None:
    queue = Queue()
    coming = overlap(range(3), queue.sample, queue.start_decoding)
    assert next(coming) == 0
    coming.close()
    assert "sample 2" not in queue.log


@pytest.mark.parametrize("frames", [9, 13])
def test_sample_videos_equals_one_video_at_a_time(cascade: Cascade, frames: int) -> None:
    """On a CPU one after the other, and through the overlap of a GPU: equal bits, also of videos of two segments."""
    wanted = [cascade.video(part, SAMPLING, frames) for part in PARTS]
    steps: list[int] = []
    made = list(sample_videos(cascade, PARTS, len(REQUEST), SAMPLING, frames, lambda: steps.append(1)))
    assert all(map(torch.equal, made, wanted)) and len(made) == 3
    assert len(steps) == 3 * cascade.num_evaluations(SAMPLING, frames)

    def start_decoding(sampled: SampledVideo) -> Callable[[], torch.Tensor]:
        return lambda: sampled.join(cascade.decode(sampled.latents, SAMPLING))

    made = list(overlap(PARTS, lambda part: cascade.sample_segments(part, SAMPLING, frames), start_decoding))
    assert all(map(torch.equal, made, wanted)) and len(made) == 3


def test_sample_videos_releases_graphs_after_an_error(cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    released = []

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(cascade, "release_graphs", lambda: released.append(1))
    monkeypatch.setattr(cascade, "video", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        list(sample_videos(cascade, PARTS, len(REQUEST), SAMPLING, 9))
    assert released == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA streams exist on a GPU alone")
def test_sample_videos_on_a_gpu_equals_one_video_at_a_time(tmp_path: Path) -> None:
    cascade = Cascade(write_stages(tmp_path), device="cuda", dtype=torch.float32)
    wanted = [cascade.video(part, SAMPLING, 9) for part in PARTS]
    made = list(sample_videos(cascade, PARTS, len(REQUEST), SAMPLING, 9))
    assert len(made) == 3 and all(map(torch.equal, made, wanted))
