"""Protocols: published values by name, and values of one's own."""

from __future__ import annotations

from typing import Any

import pytest

from walt_pl.metrics.protocol import PRESETS, EvaluationProtocol, resolve_protocol

PUBLISHED = {
    # name: split, generated clips, real clips, folds, frames, size, resize, context frames
    "magvit_ucf": ("train", 10_000, 10_000, 4, 16, (128, 128), "tf1", 0),
    "k600": ("val", 50_000, 50_000, 4, 16, (64, 64), "tf1", 5),
    "stylegan_v": ("all", 2048, 2048, 1, 16, None, "inside", 0),
    "tats": ("train", 2048, 2048, 1, 16, (128, 128), "half_pixel", 0),
    "videogpt": ("test", 256, 256, 4, 16, None, "short_side", 0),
    "common_metrics": ("test", 2048, 2048, 1, 16, None, "short_side", 0),
    "adm_imagenet": ("train", 50_000, None, 1, 1, None, "half_pixel", 0),
}


def test_presets_have_the_published_values() -> None:
    found = {name: (p.split, p.clips, p.real_clips, p.folds, p.frames, p.size, p.resize, p.context_frames) for name, p in PRESETS.items()}
    assert found == PUBLISHED
    assert all(protocol.stride == 1 and protocol.seed == 0 for protocol in PRESETS.values())


def test_resolve_protocol_keeps_the_name_of_an_unchanged_preset_alone() -> None:
    assert resolve_protocol("tats") == ("tats", PRESETS["tats"])
    assert resolve_protocol("magvit_ucf", clips=10_000, size=[128, 128]) == ("magvit_ucf", PRESETS["magvit_ucf"])
    name, protocol = resolve_protocol("magvit_ucf", clips=9, seed=3)
    assert name is None and (protocol.clips, protocol.seed, protocol.folds) == (9, 3, 4)
    assert resolve_protocol(None) == (None, EvaluationProtocol())


def test_resolve_protocol_of_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r'no preset "styleganv": did you mean stylegan_v\? There are magvit_ucf, k600, '):
        resolve_protocol("styleganv")
    with pytest.raises(ValueError, match=r'no preset "zzz": There are magvit_ucf'):
        resolve_protocol("zzz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": 0}, "clips must be at least 1, got 0"),
        ({"real_clips": 0}, "real_clips must be at least 1, got 0"),
        ({"real_clips": None, "folds": 4}, "folds must be 1, got 4"),
        ({"start": "first", "clips_per_video": 2}, 'start "first" wants clips_per_video 1, got 2'),
        ({"start": "window", "clips_per_video": 2}, 'start "window" wants clips_per_video 1, got 2'),
        ({"start": "window", "order": "names"}, "order must be shuffled, got names"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"context_frames": 16}, "context_frames must lie between 0 and frames - 1 = 15, got 16"),
        ({"size": (0, 4)}, "size must be at least 1 x 1"),
    ],
)
def test_protocol_refuses_impossible_values_with_the_wanted_ones(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationProtocol(**changes)


def test_protocol_to_plain_gives_every_value_and_leads_back() -> None:
    for protocol in PRESETS.values():
        plain = protocol.to_plain()
        assert ("bicubic" in plain.pop("crop")) if protocol.size else plain.pop("crop") is None
        assert EvaluationProtocol(**plain) == protocol
