"""Reconstructions as a source of clips, each with its original."""

from pathlib import Path

import pytest
import torch

from tests.evaluation.test_run_source import FakeClips, clip_of
from tests.helpers.tiny_stages import write_stages
from walt_pl.evaluation.reconstruction_source import ReconstructionSource
from walt_pl.evaluation.source import ClipDraw
from walt_pl.media.contact_sheet import to_uint8
from walt_pl.sampling.cascade import Cascade


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    folder: Path = write_stages(tmp_path_factory.mktemp("vae"), upscalers=0)["vae"]
    return Cascade({"vae": folder}, dtype=torch.float32)


def test_reconstruction_source_gives_each_clip_with_its_original(cascade: Cascade) -> None:
    real = FakeClips(broken=True)
    source = ReconstructionSource("runs/tiny", cascade, real, (16, 24))
    picked = [ClipDraw(3, 1), ClipDraw(2, 0), ClipDraw(0, 2)]
    read = source.read(picked, 9, 1, None)
    originals = real.read(picked, 9, 1, (16, 24))
    assert read.originals is not None and read.originals[1] is None and read.clips[1] is None
    assert read.failures == {1: "clip2.mp4: no such file"}
    for place in (0, 2):
        original = clip_of(originals, place)
        assert torch.equal(read.originals[place], original)  # type: ignore[arg-type]
        pixels = original.permute(3, 0, 1, 2)[None] / 127.5 - 1
        expected = to_uint8(cascade.decode(cascade.encode(pixels)))[0]
        assert torch.equal(clip_of(read, place), torch.from_numpy(expected))
    assert source.names() == real.names() and source.lengths() == real.lengths() and len(source) == 4
    facts = source.facts()
    assert facts["kind"] == "reconstructions" and facts["artifacts"]["vae"]["sha256"] == cascade.sha256("vae")
    assert facts["of"] == {"kind": "fake"} and list(facts["artifacts"]) == ["vae"]


def test_reconstruction_source_has_the_stride_of_its_real_clips(cascade: Cascade) -> None:
    real = FakeClips()
    source = ReconstructionSource("runs/tiny", cascade, real, (16, 16), stride=2)
    read = source.read([ClipDraw(0, 1)], 5, 1, None)
    assert read.originals is not None and torch.equal(read.originals[0], clip_of(real.read([ClipDraw(0, 1)], 5, 2, (16, 16)), 0))  # type: ignore[arg-type]
    assert clip_of(read, 0).shape == (5, 16, 16, 3) and source.facts()["stride"] == 2


def test_reconstruction_source_extends_clips_by_their_last_frame(cascade: Cascade) -> None:
    """The autoencoder takes 1 + a multiple of 4 frames; 6 are extended to 9, and the first 6 of these are compared."""
    source = ReconstructionSource("runs/tiny", cascade, FakeClips(), (16, 16))
    read = source.read([ClipDraw(0, 0)], 6, 1, None)
    assert read.originals is not None and read.originals[0] is not None
    extended = torch.cat([read.originals[0], *[read.originals[0][-1:]] * 3]).permute(3, 0, 1, 2)[None] / 127.5 - 1
    assert torch.equal(clip_of(read, 0), torch.from_numpy(to_uint8(cascade.decode(cascade.encode(extended))))[0, :6])


def test_reconstruction_source_refuses_sizes_that_the_autoencoder_does_not_take(cascade: Cascade) -> None:
    source = ReconstructionSource("runs/tiny", cascade, FakeClips(), (16, 16))
    with pytest.raises(ValueError, match=r"takes sides that are multiples of 4 x 4, and the protocol wants 18 x 16 pixels"):
        source.read([ClipDraw(0, 0)], 9, 1, (18, 16))
