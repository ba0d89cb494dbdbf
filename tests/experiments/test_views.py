"""Windows, crops and mirrors that the stages of the shipped experiments see over all passes."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from datamodules.joint import JointData
from tests.helpers.environment import ROOT
from tests.helpers.experiments import COMMANDS, FILES, opening, planned, typed
from walt_pl.cli.config_files import extended_files
from walt_pl.data import transforms
from walt_pl.data.cache import LatentCache
from walt_pl.data.index import IndexEntry, write_index
from walt_pl.media.decode_options import DecodeOptions
from walt_pl.media.resizing import cover_size
from walt_pl.media.spans import FrameRange
from walt_pl.media.types import Frames, Size
from walt_pl.runs import artifact, card

ROW = {"caption": "a clip", "bytes": 1, "fps": 0.0, "width": 340, "height": 256}
PASSES = 6
"""Of a stage that draws a new window in every pass."""
FACTOR = 8
MARGIN = 0.02


class Seen(NamedTuple):
    """A picture that a stage was given."""

    start: int
    place: tuple[float, float]
    mirrored: bool


def sentinel(entry: IndexEntry, start: int, size: Size) -> Frames:
    """A picture that covers `size` and says where it is from: red is the first frame, green grows down, blue to the right."""
    rows, columns = cover_size(entry.height, entry.width, *size)
    clip = np.zeros((1, rows, columns, 3), np.uint8)
    clip[..., 0] = start % 256
    clip[..., 1] = np.linspace(0, 255, rows, dtype=np.float32).astype(np.uint8)[:, None]
    clip[..., 2] = np.linspace(0, 255, columns, dtype=np.float32).astype(np.uint8)
    return clip


def what_is_seen(content: Tensor) -> Seen:
    """Read a sentinel, or the latent of one, [3 t h w]."""
    first = content[:, 0]
    start, down, right = ((value + 1) / 2 for value in first.mean(dim=(1, 2)).tolist())
    return Seen(round(255 * start), (round(down, 2), round(right, 2)), bool(first[2, 0, 0] > first[2, 0, -1]))


class MeanOfPatches(nn.Module):
    """An autoencoder whose latents are small pictures."""

    def encode(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(mean=torch.nn.functional.avg_pool3d(x.float(), (1, FACTOR, FACTOR)))


@pytest.fixture
def sentinels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are not decoded, and the autoencoder needs no training."""

    def video(entry: IndexEntry, frame_range: FrameRange, sizes: Sequence[Size], options: DecodeOptions) -> list[Frames]:
        start = frame_range.start if frame_range.fps is None else frame_range.start * entry.fps  # a number, or seconds
        return [sentinel(entry, round(start), size).repeat(frame_range.frames, axis=0) for size in sizes]

    monkeypatch.setattr(transforms, "read_sizes", video)
    monkeypatch.setattr(transforms, "picture_sizes", lambda entry, sizes, options: [sentinel(entry, 0, size) for size in sizes])
    build = LatentCache.build

    def build_here(cache: LatentCache, *arguments: Any) -> None:
        source, kind, encode, batch_size, _, *more = arguments
        build(cache, source, kind, encode, batch_size, 0, *more)

    monkeypatch.setattr(LatentCache, "build", build_here)  # in this process, where files are sentinels
    monkeypatch.setattr(card, "read_card", lambda path: {"sha256": "1"})
    monkeypatch.setattr(artifact, "load", lambda path, device: SimpleNamespace(model={"vae": MeanOfPatches()}.get))


@pytest.fixture
def data_of(sentinels: None, painted: Path, tmp_path: Path) -> Callable[[Sequence[str]], JointData]:
    """The data of a command line with few clips.

    They are the painted set where it is the experiment's, clips as wide where it is painted in another aspect, else clips of ten seconds.
    """
    rows = [
        {**ROW, "path": f"{split}-{number}.{kind}", "kind": kind, "split": split, "label": number}
        | ({"frames": 250, "fps": 25.0, "duration": 10.0} if kind == "video" else {"frames": 1})
        for split in ("train", "val")
        for kind in ("video", "image")
        for number in range(2)
    ]
    write_index(rows, tmp_path / "index.parquet")
    wide = {"width": 224, "height": 128}
    write_index([row | wide | ({"frames": 17, "fps": 8.0} if row["kind"] == "video" else {}) for row in rows], tmp_path / "wide.parquet")
    painted_as = {"data/shapes/index.parquet": painted, "data/shapes_9x16/index.parquet": tmp_path / "wide.parquet"}

    def make(arguments: Sequence[str]) -> JointData:
        data = planned(*arguments, "--data.cache_dir", str(tmp_path / "cache"), "--data.num_workers", "0").datamodule
        data.index = str(painted_as.get(data.index, tmp_path / "index.parquet"))
        data.val_videos = 0
        return data

    return make


def seen(data: JointData, kind: str) -> dict[int, list[Seen]]:
    """Return the first two clips (or images) as training gets them, in all passes that differ."""
    data.prepare_data()
    source = data._source("train", 0)
    passes = PASSES if data.clip_transform.crop else data.clip_transform.views
    found: dict[int, list[Seen]] = defaultdict(list)
    for item in range(2):
        for number in range(passes):
            sample = source[transforms.SampleRef(kind, item, number, 0)]  # type: ignore[arg-type]
            assert not sample.failure
            found[item].append(what_is_seen(sample.content))
            if sample.low_res is not None:
                low_res = what_is_seen(sample.low_res)
                assert low_res.start == found[item][-1].start and low_res.mirrored == found[item][-1].mirrored
                assert low_res.place == pytest.approx(found[item][-1].place, abs=MARGIN), "low and high resolution of one crop"
    return found


def data_section(arguments: Sequence[str]) -> dict[str, Any]:
    """The key `data` of a command line: of its config files, one over the other, and of its words."""
    configs = [ROOT / name for word, name in pairwise(arguments) if word == "--config"]
    section: dict[str, Any] = {}
    for path in [*extended_files(configs[0]), *configs]:
        section |= yaml.safe_load(path.read_text(encoding="utf-8")).get("data", {})
    return section | {word.removeprefix("--data."): value for word, value in pairwise(arguments) if word.startswith("--data.")}


LINES = sorted((tuple(arguments) for command in COMMANDS for arguments in typed(command)), key=len)
STAGES = list({str(data_section(arguments)): arguments for arguments in reversed(LINES)}.values())
"""The shortest command line for each data section of the shipped stages and overlays."""


def name_of(arguments: Sequence[str]) -> str:
    return "+".join(word.removeprefix("experiments/") for word in arguments if word.endswith(".yaml"))


@pytest.mark.parametrize("arguments", STAGES, ids=name_of)
def test_experiment_stage_sees_several_starts_and_crops_of_each_clip(
    arguments: Sequence[str], data_of: Callable[[Sequence[str]], JointData]
) -> None:
    """A clip that is as long as what is read of it has one start, and a square one has one crop where squares are read."""
    data = data_of(arguments)
    if not data.videos_per_batch:
        pytest.skip("sees images alone")
    entries = data._entries("train")["video"]
    rows, columns = data.clip_transform.shape(data.clip_transform.size)
    for item, views in seen(data, "video").items():
        starts, places = ({getattr(view, name) for view in views} for name in ("start", "place"))
        assert len(starts) > 1 or data.clip_transform.spare(entries[item]) == 0
        covered = cover_size(entries[item].height, entries[item].width, rows, columns)
        assert len(places) > 1 or covered == (rows, columns)


@pytest.mark.parametrize("config", ["imagenet/vae", "imagenet/base"])
def test_experiment_imagenet_is_cropped_and_mirrored(config: str, data_of: Callable[[Sequence[str]], JointData]) -> None:
    for views in seen(data_of(["--config", f"experiments/{config}.yaml"]), "image").values():
        assert {view.mirrored for view in views} == {False, True}
        assert len({view.place for view in views}) > 2


def test_experiment_text_to_video_reads_8_frames_a_second_and_never_mirrors() -> None:
    """Its captions say left and right."""
    components = [data_section(arguments) for arguments in LINES if "text_to_video" in " ".join(arguments)]
    assert len(components) > 6
    assert not [section for section in components if section.get("fps") != 8 or section.get("flip")]


CACHED = re.compile(r"(?:for|same|Its) (\d+) views.*?([\d.,]+) ([GM]B)(?: for (a million) clips)?, ([\d,]+) bytes each")


def number(text: str) -> float:
    return float(text.replace(",", ""))


@pytest.mark.parametrize("config", [path for path in FILES if " bytes each" in opening(path)], ids=lambda path: "/".join(path.parts[-2:]))
def test_experiment_file_states_the_disk_of_its_cached_views(config: Path) -> None:
    """Rows of float16 values and a CRC-32 each (walt_pl/data/cache.py)."""
    text = " ".join(line.removeprefix("# ") for line in opening(config).splitlines())
    found = CACHED.search(text)
    assert found, text
    views, disk, unit, million, size = found.groups()
    plan = planned("--config", str(config.relative_to(ROOT)))
    c = plan.model.denoiser.config
    clips = 1e6 if million else number(re.search(r"views \(.*?\) of ([\d,]+)", text)[1])  # type: ignore[index]
    assert int(views) == plan.datamodule.clip_transform.views
    assert number(size) == c.latent_channels * np.prod(c.size) * 2 + 4
    assert number(disk) == pytest.approx(clips * int(views) * number(size) / {"GB": 1e9, "MB": 1e6}[unit], rel=0.02)


def test_experiment_every_file_with_views_states_their_disk() -> None:
    files = [path for path in FILES if re.search(r"\bviews: ", path.read_text(encoding="utf-8"))]
    assert len(files) == 8 and not [path for path in files if " bytes each" not in opening(path)]
