"""Frame prediction against the true continuation, and baselines of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tests.evaluation.test_run_source import FakeClips, clip_of
from tests.helpers.tiny_stages import write_stages
from walt_pl.data.index import Index
from walt_pl.data.quarantine import Quarantine
from walt_pl.data.transforms import ClipTransform
from walt_pl.evaluation import prediction
from walt_pl.evaluation.clip_reading import cover_and_crop
from walt_pl.evaluation.prediction import AUTOENCODER, LINEAR, MODEL, REPEATED, MeasuredPrediction, PredictionMeasurement
from walt_pl.evaluation.rows import MeasureOptions
from walt_pl.evaluation.source import ClipDraw, ReadClips
from walt_pl.evaluation.window_source import WindowSource
from walt_pl.media.reading import read_video
from walt_pl.sampling.cascade import Cascade, SamplingConfig

WINDOW = ClipTransform(32, frames=9)


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    """A base of 16 px that is always given frames, and super-resolution to 32 px."""
    folders = write_stages(tmp_path_factory.mktemp("predicting"), frame_prediction=1.0, context_frames=(1, 2))
    return Cascade(folders, dtype=torch.float32)


def measurement_of(cascade: Cascade, index: Path, run: Path, videos: int = 2) -> PredictionMeasurement:
    windows = WindowSource(str(index), "val", WINDOW, videos)
    windows.windows = windows.windows[::3]
    return PredictionMeasurement(run, cascade, windows, SamplingConfig(1), seed=4)


def measured_by_name(measurement: PredictionMeasurement, folder: Path) -> dict[tuple[str, int, str], MeasuredPrediction]:
    measured = measurement.measure(MeasureOptions(folder, folder, batch=3))
    return {(one.stage, one.given, one.prediction): one for one in measured}


def test_repeated_frame_is_the_last_given_one() -> None:
    real = FakeClips()
    read = prediction.RepeatedFrame(real, 5).read([ClipDraw(1, 2)], 8, 1, (16, 24))
    (original,) = real.read([ClipDraw(1, 2)], 8, 1, (16, 24)).clips
    assert original is not None and read.originals is not None and torch.equal(read.originals[0], original)  # type: ignore[arg-type]
    expected = original.numpy().copy()
    expected[5:] = expected[4]
    assert np.array_equal(clip_of(read, 0).numpy(), expected)


def test_linear_extrapolation_goes_on_by_the_last_difference_and_stays_in_range() -> None:
    real = FakeClips()
    read = prediction.LinearExtrapolation(real, 5).read([ClipDraw(0, 0), ClipDraw(3, 1)], 8, 1, (16, 24))
    for place in range(2):
        given = clip_of(real.read([[ClipDraw(0, 0), ClipDraw(3, 1)][place]], 8, 1, (16, 24)), 0).numpy().astype(np.int64)
        expected = [np.clip(given[4] + step * (given[4] - given[3]), 0, 255) for step in (1, 2, 3)]
        assert np.array_equal(clip_of(read, place).numpy(), np.concatenate([given[:5], expected]))


def test_extrapolation_passes_on_why_a_clip_cannot_be_read() -> None:
    read = prediction.RepeatedFrame(FakeClips(broken=True), 1).read([ClipDraw(2, 0), ClipDraw(1, 0)], 4, 1, None)
    assert read.clips[0] is None and read.clips[1] is not None and read.failures == {0: "clip2.mp4: no such file"}


def test_new_frames_leaves_the_given_ones_out_on_both_sides() -> None:
    whole = prediction.LinearExtrapolation(FakeClips(broken=True), 5)
    source = prediction.NewFrames(whole, 5)
    picked = [ClipDraw(0, 1), ClipDraw(2, 0)]
    read, both = source.read(picked, 3, 1, (16, 24)), whole.read(picked, 8, 1, (16, 24))
    assert read.originals is not None and both.originals is not None
    assert torch.equal(clip_of(read, 0), clip_of(both, 0)[5:]) and torch.equal(read.originals[0], both.originals[0][5:])  # type: ignore[arg-type, index]
    assert read.clips[1] is None and read.originals[1] is None and read.failures == both.failures
    assert list(source.lengths()) == [7] * 4 and source.facts()["of"]["kind"] == "LinearExtrapolation"


def test_window_source_spreads_windows_over_each_video_and_reads_them_by_the_rate_of_the_training(painted: Path) -> None:
    """Videos of the set have 17 frames, 8 a second: 5 frames at 4 a second last 9 of them, and 8 more may come before."""
    source = WindowSource(str(painted), "val", ClipTransform(32, frames=5, fps=4.0), 3)
    videos = sorted({window.item for window in source.windows})
    assert len(videos) == 3 and len(source) == 24
    assert [window.start for window in source.windows if window.item == videos[0]] == [0, 1, 2, 3, 5, 6, 7, 8]
    read = source.read([ClipDraw(4, 0), ClipDraw(15, 0)], 5, 1, (16, 16))
    entries = Index(painted, "val").videos
    for place, (item, start) in enumerate([(videos[0], 5), (videos[1], 8)]):
        frames = read_video(entries[item].path, 17)[start::2][:5]
        assert torch.equal(clip_of(read, place), cover_and_crop(frames, (16, 16)))
        assert read.captions[place] == entries[item].caption
    assert source.names()[4].endswith("window from frame 5")


def test_window_source_leaves_out_quarantined_and_short_videos(painted: Path) -> None:
    listed = Quarantine.beside(painted)
    place = Index(painted, "val").videos.places(np.array([1]))[0]
    listed.add(place, "somebody's reason")
    listed.write()
    try:
        found = WindowSource(str(painted), "val", WINDOW, 9)
        assert found.left_out_videos == 1 and 1 not in {window.item for window in found.windows}
        assert "quarantine_sha256" in found.facts()
    finally:
        listed.path.unlink()
    with pytest.raises(ValueError, match=r'no video of split "val" of .* has 18 frames at the rate of the training'):
        WindowSource(str(painted), "val", ClipTransform(32, frames=18), 9)


def test_measure_prediction_compares_new_frames_alone_with_the_true_ones(cascade: Cascade, painted: Path, tmp_path: Path) -> None:
    measurement = measurement_of(cascade, painted, tmp_path)
    found = measured_by_name(measurement, tmp_path)
    assert {(stage, given) for stage, given, _ in found} == {("base", 5), ("base", 1), ("sr1", 5), ("sr1", 1)}
    assert not found["base", 1, LINEAR].rows and found["base", 5, LINEAR].rows
    for (stage, given, name), one in found.items():
        if name == MODEL:
            source = measurement.sources(stage, given)[name]
            assert isinstance(source, prediction.RunSource)
            facts = source.facts()
            assert facts["conditions"]["context_frames"] == given and facts["seed"] == 4
            assert list(facts["steps"]) == cascade.stages[: 1 + cascade.stages.index(stage)], "no stage above is sampled"
        if not one.rows:
            continue
        source = measurement.sources(stage, given)[name]
        assert source is not None and one.windows == measurement.windows.windows and one.size == cascade.pixels(stage)
        (clip,), (true,) = (side.read([ClipDraw(2, 0)], 9, 1, one.size).clips for side in (source, measurement.windows))
        predicted, wanted = (side[given:].permute(0, 3, 1, 2).float() for side in (clip, true) if side is not None)
        tolerance = 0.05 if name in (MODEL, AUTOENCODER) else 1e-4  # another block rounds a sample otherwise
        assert float(one.rows["psnr"][2]) == pytest.approx(
            float(peak_signal_noise_ratio(predicted, wanted, data_range=255.0)), abs=tolerance
        )
        expected = structural_similarity_index_measure(predicted, wanted, data_range=255.0)
        assert isinstance(expected, Tensor) and float(one.rows["ssim"][2]) == pytest.approx(float(expected), abs=tolerance)


def test_measure_prediction_of_the_true_clip_beats_every_baseline(
    cascade: Cascade, painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Oracle(prediction.RunSource):
        """A sampler that knows the continuation."""

        def read(self, draws: Sequence[ClipDraw], frames: int, stride: int, size: tuple[int, int] | None) -> ReadClips:
            read = super().read(draws, frames, stride, size)
            assert read.originals is not None
            return replace(read, clips=read.originals)

    monkeypatch.setattr(prediction, "RunSource", Oracle)
    found = measured_by_name(measurement_of(cascade, painted, tmp_path), tmp_path)
    for (stage, given, name), one in found.items():
        if name == MODEL:
            assert one.rows["psnr"].min() > 100 and one.rows["ssim"].min() > 0.9999
            for other in (REPEATED, AUTOENCODER, *([LINEAR] if given > 1 else [])):
                assert (found[stage, given, other].rows["psnr"] < one.rows["psnr"]).all()
