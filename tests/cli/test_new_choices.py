"""Sizes that `walt new` chooses for rows of an index, whose files nobody reads."""

from typing import Any

import pyarrow as pa
import pytest

from walt_pl.cli.new_choices import SCALES, Choices, choose, choose_motion, choose_size
from walt_pl.cli.new_files import Experiment, stage_files
from walt_pl.data.index_table import DEFAULTS, LARGE
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.models.vae import VAEConfig
from walt_pl.untrusted import parse_yaml

EXPERIMENT = Experiment("mine", "--videos clips", "data/mine.parquet", "walt index clips --out data/mine.parquet", True)


def rows(count: int = 1, **changes: Any) -> list[dict[str, Any]]:
    """Return rows of clips of 8 seconds."""
    row = {
        "kind": "video",
        "frames": 240,
        "fps": 30.0,
        "width": 640,
        "height": 360,
        "caption": "",
        "label": -1,
        "split": "train",
        "bytes": 1,
    }
    found = {**DEFAULTS, **row, **changes, "path": "a.mp4"}
    found["duration"] = changes.get("duration", found["frames"] / found["fps"] if found["fps"] else 0.0)
    return [found] * count


def table(*parts: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([row for part in parts for row in part], schema=LARGE)


def chosen(*parts: list[dict[str, Any]], has_classes: bool = False, class_count: int = 0) -> Choices:
    return choose(table(*parts), has_classes, class_count)


def configs(choices: Choices) -> dict[str, dict[str, Any]]:
    """Return the files that the choices give, parsed."""
    return {name: parse_yaml(text, name) for name, text in stage_files(EXPERIMENT, choices).items()}


@pytest.mark.parametrize(
    ("height", "width", "sizes"),
    [
        (512, 512, ["128 x 128", "256 x 256", "512 x 512"]),
        (511, 511, ["128 x 128", "256 x 256"]),
        (720, 1280, ["128 x 224", "256 x 448", "512 x 896"]),
        (360, 640, ["128 x 224", "256 x 448"]),
        (240, 320, ["96 x 128", "192 x 256"]),
        (480, 640, ["96 x 128", "192 x 256", "384 x 512"]),
        (1280, 720, ["224 x 128", "448 x 256", "896 x 512"]),
        (640, 480, ["128 x 96", "256 x 192", "512 x 384"]),
        (128, 128, ["64 x 64", "128 x 128"]),
        (64, 64, ["32 x 32", "64 x 64"]),
        (32, 32, ["32 x 32"]),
    ],
)
def test_choose_size_gives_the_largest_sizes_that_the_clip_has(height: int, width: int, sizes: list[str]) -> None:
    *_, reason = choose_size(table(rows(height=height, width=width)))
    assert reason.split(";")[0] == f"frame size: {', then '.join(sizes)}"


def test_choose_size_never_enlarges_the_median_clip_and_fits_all_stages() -> None:
    for height in (57, 70, 130, 144, 240, 481, 1081):
        for width in (56, 129, 176, 320, 640, 1919):
            choices = chosen(rows(height=height, width=width))
            files, last = configs(choices), choices.scale.doublings
            assert all(made <= given for made, given in zip(choices.pixels(last), (height, width), strict=True))
            vae = VAEConfig(**{key: _tuples(value) for key, value in files["vae.yaml"]["model"]["init_args"]["vae"].items()})
            assert vae.factors == (4, choices.scale.factor, choices.scale.factor)
            below: list[int] = []
            for stage in ("base", *(f"sr{number}" for number in range(1, last + 1))):
                denoiser = {**files.get("sr1.yaml" if stage != "base" else "base.yaml", {})["model"]["init_args"]["denoiser"]}
                denoiser |= files[f"{stage}.yaml"]["model"]["init_args"]["denoiser"]
                config = DenoiserConfig(**{key: _tuples(value) for key, value in denoiser.items()})
                size, data = list(config.size), files[f"{stage}.yaml"]["data"]
                assert size == [
                    5,
                    data["size"] // vae.factors[1],
                    round(data["size"] * files["data.yaml"]["data"]["aspect"]) // vae.factors[2],
                ]
                assert config.grid == choices.tokens(), "super-resolution has as many tokens as the base"
                assert not below or (size[1:] == [2 * side for side in below] and data["low_res_size"] * 2 == data["size"])
                below = size[1:]
            crop = files["vae.yaml"]["data"]["crop"]
            assert crop <= min(choices.pixels(0)) and crop % vae.factors[1] == 0


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def test_choose_size_takes_the_median_and_the_shape_that_crops_least() -> None:
    sizes = table(rows(3, height=256, width=256), rows(2, height=1024, width=1024))
    assert choose_size(sizes)[1] == SCALES[1], "most clips have no room for 512 px"
    mixed = table(rows(3, height=720, width=1280), rows(2, height=2000, width=2000), rows(1, height=40, width=70))
    picture, scale, _ = choose_size(mixed)
    assert (picture.name, scale) == ("landscape 16:9", SCALES[0])
    assert choose_size(table(rows(2, height=720, width=1280), rows(2, height=1280, width=720)))[0].name == "square"


def test_choose_size_refuses_clips_that_are_smaller_than_every_size() -> None:
    with pytest.raises(
        ValueError, match="the median clip has 31 rows x 31 columns, and the smallest size of square is 32 x 32: bring larger"
    ):
        choose_size(table(rows(height=31, width=31)))


@pytest.mark.parametrize(
    ("clips", "frames", "fps"),
    [
        (rows(fps=30.0), 17, 10.0),
        (rows(fps=25.0), 17, 8.3333),
        (rows(fps=24.0), 17, 8.0),
        (rows(fps=8.0), 17, None),
        (rows(fps=5.0), 17, None),
        (rows(fps=30.0, frames=40), 17, 15.0),
        (rows(fps=30.0, frames=17), 17, None),
        (rows(fps=30.0, frames=16), 13, None),
        (rows(fps=30.0, frames=9), 9, None),
        (rows(fps=30.0, frames=5), 5, None),
        (rows(fps=30.0, frames=4), 1, None),
        (rows(3, fps=24.0) + rows(2, fps=30.0), 17, 8.0),
        (rows(3, fps=29.97) + rows(2, fps=30.0) + rows(4, fps=24.0), 17, 9.99),
        (rows(fps=24.0, frames=17, variable_rate=True), 17, 24.0),
        (rows(9, fps=8.0) + rows(1, fps=8.0, frames=5), 17, None),
        (rows(8, fps=8.0) + rows(2, fps=8.0, frames=13), 13, None),
        (rows(5, fps=8.0) + rows(5, fps=8.0, frames=2), 17, None),
    ],
)
def test_choose_motion_takes_a_divisor_of_the_most_common_rate_and_frames_of_most_clips(
    clips: list[dict[str, Any]], frames: int, fps: float | None
) -> None:
    assert choose_motion(table(clips))[:2] == (frames, fps)


def test_choose_motion_says_how_many_clips_are_slower_than_the_rate() -> None:
    assert "4 clips have fewer than 8, so some of their frames come twice" in choose_motion(table(rows(9, fps=24.0), rows(4, fps=5.0)))[2]


def test_choose_conditions_follow_captions_and_labels() -> None:
    captioned, plain = rows(5, caption="a dog"), rows(5)
    assert chosen(captioned, plain).task == "text"
    assert chosen(captioned, plain, plain).task == "unconditional"
    labelled = chosen(rows(6, label=2, caption="a dog"), plain, has_classes=True, class_count=3)
    assert (labelled.task, labelled.num_classes, labelled.videos) == ("class", 3, 6), "the program leaves out clips without a label"
    assert chosen(rows(2, label=7)).num_classes == 8, "labels by number, without names"
    assert chosen(rows(2, label=1, caption="a dog")).task == "text", "words say more than a number"


def test_choose_text_length_is_that_of_the_longest_caption_of_any_clip() -> None:
    long = chosen(rows(caption="a"), rows(caption="b", more_captions=[" ".join(f"{number:03d}" for number in range(40))]))
    assert long.text is not None and long.text.longest >= 40, "the second caption of the second clip has 40 words"
    assert long.text.longest <= long.text.max_length == -(-long.text.longest // 8) * 8
    (encoder,) = (configs(long)["base.yaml"]["model"]["init_args"][key] for key in ("text",))
    assert (encoder["max_length"], encoder["vocab_size"]) == (long.text.max_length, long.text.vocab_size)


def test_choose_kinds_joins_images_unless_one_kind_is_rare() -> None:
    videos, images = rows(100), rows(100, kind="image", frames=1, fps=0.0)
    joint = chosen(videos, images)
    assert (joint.videos, joint.images) == (100, 100)
    data = {name: config["data"] for name, config in configs(joint).items() if name != "data.yaml"}
    assert {(d["videos_per_batch"], d["image_stacks_per_batch"], d["images_per_stack"]) for d in data.values() if "views" in d} == {
        (24, 8, 5),
        (12, 4, 5),
    }
    assert (chosen(videos, images[:4]).images, chosen(videos, images[:5]).images) == (0, 5)
    alone = chosen(videos[:4], images)
    assert (alone.videos, alone.images, alone.frames, alone.views) == (0, 100, 1, 1)
    short = chosen(rows(50, frames=3), images)
    assert (short.videos, short.frames) == (0, 1)


def test_choose_images_alone_makes_all_layers_spatial_and_the_autoencoder_flat() -> None:
    files = configs(chosen(rows(100, kind="image", frames=1, fps=0.0, height=256, width=256)))
    vae, base = (files[name]["model"]["init_args"] for name in ("vae.yaml", "base.yaml"))
    assert (vae["vae"]["time_kernel"], vae["vae"]["strides"]) == (1, [[1, 2, 2]] * 3)
    assert (base["denoiser"]["size"], base["denoiser"]["window_size"]) == ([1, 16, 16], [1, 16, 16])
    assert files["sr1.yaml"]["model"]["init_args"]["denoiser"]["window_size"] == [1, 16, 16]
    assert files["data.yaml"]["data"]["frames"] == 1 and files["base.yaml"]["data"]["videos_per_batch"] == 0


def test_choose_views_are_the_windows_of_the_median_clip() -> None:
    assert [chosen(rows(fps=8.0, frames=count)).views for count in (17, 34, 60, 1000)] == [1, 2, 3, 8]


def test_choose_validation_counts_the_usable_clips_of_the_split() -> None:
    assert chosen(rows(2)).val_videos == 0
    assert chosen(rows(2), rows(3, split="val"), rows(1, split="val", frames=4)).val_videos == 3
    assert chosen(rows(2), rows(300, split="val")).val_videos == 64
    with pytest.raises(ValueError, match=r"no usable file is of split train \(there are: test, val\): move files, or give a smaller --val"):
        chosen(rows(2, split="val"), rows(1, split="test"))


def test_stage_files_of_a_small_set_have_fewer_steps() -> None:
    small, large = (configs(chosen(rows(count))) for count in (20, 5000))
    assert [config["trainer"]["max_steps"] for name, config in small.items() if name != "data.yaml"] == [5000, 2000, 2500]
    assert [config["trainer"]["max_steps"] for name, config in large.items() if name != "data.yaml"] == [20_000, 40_000, 30_000]
    assert any("small set: 20 clips" in reason for reason in chosen(rows(20)).reasons)


def test_stage_files_keep_a_hostile_folder_name_in_its_comment() -> None:
    hostile = Experiment("mine", "--videos 'a\nmodel: {}\u2028b\x00'", "data/mine.parquet", "walt index 'a\rtrainer: {}'", True)
    for name, text in stage_files(hostile, chosen(rows())).items():
        assert parse_yaml(text, name) == configs(chosen(rows()))[name]


def test_stage_files_explain_the_keys_that_one_will_change() -> None:
    text = "\n".join(stage_files(EXPERIMENT, chosen(rows(caption="a dog"))).values())
    for key in ("width", "depth", "num_heads", "size", "window_size", "videos_per_batch", "views", "frames", "fps", "aspect", "max_steps"):
        assert any(line.strip().startswith((f"{key}:", f"trainer: {{{key}")) and " # " in line for line in text.split("\n")), key
    assert "num_workers: 2  #" in text and "make plan EXP=mine STAGE=base" in text
