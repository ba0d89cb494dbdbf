"""Compiled layers in sampling: where they pay, one length of text, and the values of before."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.sampling.test_sampling_network import CLIPS, draw_condition, draw_denoiser, negative, noise
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.diffusion.ddim import Guidance
from walt_pl.models.compiled_blocks import TEXT_TOKENS, are_compiled
from walt_pl.models.latent_normalizer import LatentNormalizer
from walt_pl.sampling import compiled_sampling
from walt_pl.sampling.compiled_sampling import COMPILED_FROM, compile_for
from walt_pl.sampling.stage_sampler import StageSampler

GPU = torch.device("cuda")


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> Iterator[StageSampler]:
    """A sampler on a CPU, where torch.compile is taken to work on every device."""
    monkeypatch.setattr(compiled_sampling, "find_obstacle", lambda device: None)
    compiled_sampling._can_compile.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    yield StageSampler(draw_denoiser(), DiffusionConfig(), LatentNormalizer(torch.zeros(2), torch.ones(2)))
    compiled_sampling._can_compile.cache_clear()
    torch._dynamo.reset()


@pytest.mark.parametrize(("device", "clips", "wanted"), [("cuda", 0, True), ("cuda", -1, False), ("cpu", 10_000, False)])
def test_compile_for_compiles_many_clips_on_cuda_alone(sampler: StageSampler, device: str, clips: int, wanted: bool) -> None:
    compile_for(COMPILED_FROM + clips, [sampler], torch.device(device), "eager")
    assert are_compiled(sampler.denoiser.blocks) is wanted


def test_compile_for_warns_once_and_leaves_the_layers_where_it_fails(sampler: StageSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_sampling, "find_obstacle", lambda device: "RuntimeError: no C compiler")
    with pytest.warns(UserWarning, match=r"torch\.compile fails on cuda.*no C compiler") as warned:
        for _ in range(2):
            compile_for(COMPILED_FROM, [sampler], GPU)
    assert len(warned) == 1 and not are_compiled(sampler.denoiser.blocks)


def test_compiled_sampling_keeps_values_and_pads_text(sampler: StageSampler) -> None:
    """The text of the condition has 4 words, that of the negative prompt 7."""
    x = noise(CLIPS.total_frames, 2, 4, 4)

    def sample() -> Any:
        return sampler.sample(draw_condition(CLIPS), x, 2, Guidance(3.0), unconditional=negative)

    wanted, lengths = sample(), []
    prepare = sampler.denoiser.prepare
    sampler.denoiser.prepare = lambda given: lengths.append(given.text.shape[1]) or prepare(given)  # type: ignore[method-assign,assignment,func-returns-value,union-attr]
    compile_for(COMPILED_FROM, [sampler], GPU, "eager")
    compile_for(COMPILED_FROM, [sampler], GPU, "eager")
    torch.testing.assert_close(sample(), wanted, atol=2e-5, rtol=1e-5)
    assert lengths == [TEXT_TOKENS] and counters["stats"]["unique_graphs"] > 0
