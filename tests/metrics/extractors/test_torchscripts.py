"""I3D and C3D: the published calls, with tiny torchscripts in their place."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.scripted_extractors import TinyC3D, TinyI3D, write_torchscript
from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.c3d import C3D
from walt_pl.metrics.extractors.configured import ExtractorSettings
from walt_pl.metrics.extractors.i3d import I3D
from walt_pl.metrics.protocol import EvaluationProtocol, Resize
from walt_pl.metrics.resize import prepare_video


class Constant(nn.Module):
    """Gives equal rows, whatever the clips."""

    def __init__(self, row: Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(row)

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        return self.row.expand(x.shape[0], self.row.shape[0])


class WithoutOptions(nn.Module):
    """Lacks the arguments of I3D."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3, 4])


class SumOfAll(nn.Module):
    """Gives one number for the batch."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        return x.sum()


def i3d(module: nn.Module, folder: Path, resize: Resize = "half_pixel") -> I3D:
    return I3D(ExtractorSettings(EvaluationProtocol(resize=resize), str(folder / "i3d.pt"), write_torchscript(module, folder / "i3d.pt")))


def c3d(module: nn.Module, folder: Path) -> C3D:
    return C3D(ExtractorSettings(EvaluationProtocol(), str(folder / "c3d.pt"), write_torchscript(module, folder / "c3d.pt")))


def clips(*shapes: tuple[int, int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8) for shape in shapes]


@pytest.mark.parametrize("resize", ["tf1", "half_pixel", "short_side"])
def test_i3d_gives_features_of_resized_videos(resize: Resize, tmp_path: Path) -> None:
    extractor, given = i3d(TinyI3D(), tmp_path, resize), clips((9, 12, 20), (9, 20, 12))
    rows = extractor(ClipBatch(given))["video_features"]
    wanted = TinyI3D()(torch.stack([prepare_video(clip, resize) for clip in given]), False, False, True)
    assert rows.dtype == torch.float32 and not rows.requires_grad
    torch.testing.assert_close(rows, wanted.detach())
    assert extractor.identity()["resize"] == resize and extractor.identity()["file"] == "i3d.pt"


def test_i3d_resizes_inside_clips_of_mixed_sizes_in_their_order(tmp_path: Path) -> None:
    given = clips((9, 12, 20), (9, 20, 12), (9, 12, 20))
    rows = i3d(TinyI3D(), tmp_path, "inside")(ClipBatch(given))["video_features"]
    for clip, row in zip(given, rows, strict=True):
        wanted = TinyI3D()(clip.permute(3, 0, 1, 2)[None].float(), True, True, True)[0]
        torch.testing.assert_close(row, wanted.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("resize", ["inside", "half_pixel"])
def test_i3d_takes_floats_as_they_are(resize: Resize, tmp_path: Path) -> None:
    noise = torch.rand(9, 12, 12, 3, generator=torch.Generator().manual_seed(0))
    rows = i3d(TinyI3D(), tmp_path, resize)(ClipBatch([noise]))["video_features"]
    torch.testing.assert_close(rows, TinyI3D()(noise.permute(3, 0, 1, 2)[None], False, False, True).detach())


def test_i3d_gives_equal_rows_on_every_call(tmp_path: Path) -> None:
    extractor, batch = i3d(TinyI3D(), tmp_path), ClipBatch(clips((9, 12, 20)))
    first = extractor(batch)["video_features"]
    assert all(torch.equal(extractor(batch)["video_features"], first) for _ in range(3))


def test_i3d_refuses_short_clips_and_what_is_no_i3d(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="i3d wants clips of at least 9 frames, got 8; set --frames"):
        i3d(TinyI3D(), tmp_path)(ClipBatch(clips((8, 12, 12))))
    batch = ClipBatch(clips((9, 12, 12)))
    with pytest.raises(
        ValueError, match=r"fails at the call \(clips, rescale=False, resize=False, return_features=True\).*expected at most 2 argument"
    ):
        i3d(WithoutOptions(), tmp_path)(batch)
    with pytest.raises(ValueError, match=r"i3d gives torch\.float32 \[\], wanted floats \[1 d\]"):
        i3d(SumOfAll(), tmp_path)(batch)
    with pytest.raises(ValueError, match="not finite for clip 0"):
        i3d(Constant(torch.tensor([1.0, torch.nan])), tmp_path)(batch)
    (tmp_path / "text.pt").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"text\.pt is no torchscript"):
        I3D(ExtractorSettings(EvaluationProtocol(), str(tmp_path / "text.pt"), hashlib.sha256(b"text").hexdigest()))


def test_c3d_gives_finite_log_probabilities(tmp_path: Path) -> None:
    given = clips((16, 12, 20), (16, 9, 9))
    logits = c3d(TinyC3D(), tmp_path)(ClipBatch(given))["class_logits"]
    wanted = torch.cat([TinyC3D()(clip.permute(3, 0, 1, 2)[None]) for clip in given])
    assert bool(logits.isfinite().all()), "0 * -inf would be no number"
    torch.testing.assert_close(logits.softmax(dim=1), wanted)


def test_c3d_refuses_other_lengths_and_rows_that_are_no_probabilities(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"exactly 16 frames, got 17; set --frames 16"):
        c3d(TinyC3D(), tmp_path)(ClipBatch(clips((17, 9, 9))))
    for row in ([0.5, 0.6], [1.5, -0.5]):
        with pytest.raises(ValueError, match=r"gives no probabilities.*is it c3d_ucf101\.pt"):
            c3d(Constant(torch.tensor(row)), tmp_path)(ClipBatch(clips((16, 9, 9))))
