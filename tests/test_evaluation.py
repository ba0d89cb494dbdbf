"""Scores of a run, with an oracle in the place of its models."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from walt_pl.cascade import Request, Sampling
from walt_pl.data.index import Entry, Index
from walt_pl.evaluation import read_clips, score_continuation


@pytest.fixture(scope="module")
def entries(painted: Path) -> list[Entry]:
    return list(Index(painted, "val").videos)


@pytest.mark.parametrize("right", [True, False])
def test_motion_is_read_from_the_frames_that_were_not_given(entries: list[Entry], right: bool) -> None:
    """An oracle that knows its clip by its beginning; the wrong one lets the rest run backwards."""
    clips = read_clips(entries, 32)
    asked: list[Request] = []

    def refine(stage: str, request: Request, sampling: Sampling) -> Tensor:
        asked.append(request)
        if not request.past:
            return clips[[0] * len(request)]
        places = [int((clips[:, :, :5] - past).abs().sum(dim=(1, 2, 3, 4)).argmin()) for past in request.past["base"]]
        rest = clips[places, :, 5:]
        return torch.cat([request.past["base"], rest if right else rest.flip(2)], dim=2)

    cascade: Any = SimpleNamespace(overlap=5, encode=lambda clip: clip, decode=lambda clip: clip, refine=refine)
    shares = score_continuation(cascade, entries, Sampling(), seed=0, batch=4)
    alike = sum(entry.caption.split()[-1] == entries[0].caption.split()[-1] for entry in entries) / len(entries)
    assert shares == {"motion_continued": float(right), "motion_without_past": pytest.approx(alike)}
    assert all(not any(request.prompts) for request in asked), "the caption is not told"
    assert [request.seeds for request in asked[:2]] == [request.seeds for request in asked[2:]], "from the same noise"
