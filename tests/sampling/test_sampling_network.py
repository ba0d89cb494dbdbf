"""A sampling's network: both branches of guidance in one batch, features of the condition, CUDA graphs."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.condition_subset import select
from tests.helpers.two_call_guidance import two_call_guidance
from walt_pl.blocks.attention import CrossAttention
from walt_pl.blocks.frames import FrameLayout
from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.diffusion.ddim import Guidance, classifier_free_guidance, ddim
from walt_pl.diffusion.schedule import NoiseSchedule
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.latent_normalizer import LatentNormalizer
from walt_pl.sampling.cuda_graph import MOST_GRAPHS, GraphedNetwork
from walt_pl.sampling.sampling_network import SamplingNetwork
from walt_pl.sampling.stage_sampler import StageSampler, unconditional

CONFIG = DenoiserConfig(
    width=16,
    depth=2,
    num_heads=2,
    latent_channels=2,
    size=(3, 4, 4),
    window_size=(3, 2, 2),
    frame_prediction=0.1,
    num_classes=5,
    text_width=6,
    super_resolution=True,
)
JOINT, CLIPS = FrameLayout(2, 3, 3), FrameLayout(2, 3, 0)
ROUNDING = {"atol": 2e-5, "rtol": 1e-5}
"""Sums of a batch of another size may be taken in another order."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_denoiser(config: DenoiserConfig = CONFIG) -> Denoiser:
    denoiser, generator = Denoiser(config), torch.Generator().manual_seed(1)
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return denoiser.requires_grad_(False)


def draw_condition(layout: FrameLayout, seed: int = 0) -> Condition:
    samples, frames = layout.num_samples, layout.total_frames
    return Condition(
        layout,
        condition_kept=torch.arange(samples) != 1,
        text=noise(samples, 4, 6, seed=seed + 2),
        text_mask=torch.arange(4) < 1 + torch.arange(samples)[:, None] % 4,
        labels=torch.arange(samples) % 5,
        low_res=noise(frames, 2, 2, 2, seed=seed + 3),
        noise_aug_level=torch.arange(samples) * 10,
    ).with_context(noise(frames, 2, 4, 4, seed=seed + 4), torch.ones(samples, dtype=torch.int64))


def negative(condition: Condition) -> Condition:
    """Return the condition of a negative prompt, longer than the prompts."""
    mask = torch.ones(condition.layout.num_samples, 7, dtype=torch.bool)
    text = noise(condition.layout.num_samples, 7, 6, seed=9)
    return replace(condition.without_context(), text=text, text_mask=mask, condition_kept=torch.ones_like(condition.condition_kept))


@pytest.mark.parametrize("null", [unconditional, negative, Condition.without_text])
@pytest.mark.parametrize("layout", [JOINT, CLIPS], ids=["joint", "clips"])
@pytest.mark.parametrize("guidance", [Guidance(4.0, rescale=0.7), Guidance(3.0, "power-cosine")], ids=["rescale", "power-cosine"])
def test_guidance_in_one_batch_equals_two_calls(guidance: Guidance, layout: FrameLayout, null: Any) -> None:
    """At the first timestep, the power-cosine has w = 1: there, the batch is the conditional branch alone."""
    denoiser, condition, x = draw_denoiser(), draw_condition(layout), noise(layout.total_frames, 2, 4, 4)
    sizes = []
    denoiser.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    one, two = (
        ddim(wrap(denoiser, guidance, NoiseSchedule(), null), NoiseSchedule(), x, condition, 3)
        for wrap in (classifier_free_guidance, two_call_guidance)
    )
    torch.testing.assert_close(one, two, **ROUNDING)
    assert sizes[:3] == ([len(x), 2 * len(x), 2 * len(x)] if guidance.shape == "power-cosine" else [2 * len(x)] * 3)


@pytest.mark.parametrize("layout", [JOINT, CLIPS, FrameLayout(0, 3, 2)], ids=["joint", "clips", "images"])
def test_condition_double_holds_both_conditions(layout: FrameLayout) -> None:
    first, second = draw_condition(layout), draw_condition(layout, seed=50)
    both = first.double(second)
    assert both.layout == layout.doubled() == FrameLayout(2 * layout.videos, 3, 2 * layout.images)
    given = torch.ones(layout.num_samples, dtype=torch.bool)
    rows = layout.double_samples(given, ~given)
    for wanted, branch in ((first, rows), (second, ~rows)):
        found = select(both, branch)
        assert found.layout == layout
        for item in fields(Condition)[1:]:
            assert torch.equal(getattr(found, item.name), getattr(wanted, item.name)), item.name
    x, y = noise(layout.total_frames, 3), noise(layout.total_frames, 3, seed=1)
    halves = layout.halve_frames(layout.double_frames(x, y))
    assert torch.equal(halves[0], x) and torch.equal(halves[1], y)
    empty = Condition(layout, given).double(Condition(layout, given))
    assert empty.text is None and empty.context_mask is None and empty.low_res is None


@pytest.mark.parametrize("change", [{}, {"super_resolution": False, "num_classes": None, "text_width": None}], ids=["all", "none"])
def test_denoiser_with_prepared_features_equals_without(change: dict[str, Any]) -> None:
    denoiser, condition, x = draw_denoiser(replace(CONFIG, **change)), draw_condition(JOINT), noise(JOINT.total_frames, 2, 4, 4)
    features = denoiser.prepare(condition)
    for seed in (1, 2):
        timestep = torch.randint(1000, (JOINT.num_samples,), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(denoiser(x, timestep, condition, x, features), denoiser(x, timestep, condition, x))
    videos = select(condition, torch.arange(5) < 2)
    windows = draw_denoiser(replace(CONFIG, stw_cross_attention=True))
    timestep = torch.tensor([3, 700])
    assert torch.equal(windows(x[:6], timestep, videos, None, windows.prepare(videos)), windows(x[:6], timestep, videos))


def sample(sampler: StageSampler, seed: int = 0, layout: FrameLayout = CLIPS, steps: int = 4) -> Tensor:
    x = noise(layout.total_frames, 2, 4, 4, seed=seed)
    return sampler.sample(draw_condition(layout, seed), x, steps, Guidance(3.0, "power-cosine"))


def test_stage_sampler_computes_text_keys_once_a_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each set of samples: the power-cosine begins with the conditional branch alone."""
    sampler = StageSampler(draw_denoiser(), DiffusionConfig(), LatentNormalizer(torch.zeros(2), torch.ones(2)))
    block = sampler.denoiser.blocks[0]
    assert isinstance(block.text, CrossAttention)
    lengths = []
    block.text.kv.register_forward_hook(lambda _, inputs, out: lengths.append(inputs[0].shape[1]))
    sample(sampler, steps=6)
    assert lengths.count(4) == 2 and lengths.count(16) == 6, "4 words, 16 tokens of a frame"


def test_sampling_network_prepares_nothing_where_weights_are_partitioned(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO-3 leaves empty tensors outside a pass."""
    denoiser, condition = draw_denoiser(), draw_condition(CLIPS)
    denoiser.null_text = nn.Parameter(torch.empty(0), requires_grad=False)
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(denoiser, "forward", lambda *inputs: calls.append(inputs) or inputs[0])
    monkeypatch.setattr(denoiser, "prepare", lambda _: pytest.fail("weights were read outside of a pass"))
    network = SamplingNetwork(denoiser, GraphedNetwork(denoiser, lambda *_: pytest.fail("a graph was captured")))
    x = noise(CLIPS.total_frames, 2, 4, 4)
    assert network(x, torch.tensor([5, 5]), condition, None) is x
    assert len(calls[0]) == 4


class Recorder:
    """Repeats a call on the memory that it read, as a CUDA graph does."""

    def __init__(self) -> None:
        self.records = 0
        self.replays = 0

    def __call__(self, call: Any, device: torch.device) -> tuple[Any, Tensor]:
        output = call()
        self.records += 1

        def replay() -> None:
            self.replays += 1
            output.copy_(call())

        return replay, output.fill_(torch.nan)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def graphed(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Iterator[StageSampler]:
    """A sampler that takes its graphs on a CPU, too."""
    sampler = StageSampler(draw_denoiser(), DiffusionConfig(), LatentNormalizer(torch.zeros(2), torch.ones(2)))
    sampler.__dict__["graphs"] = GraphedNetwork(sampler.denoiser, recorder)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    yield sampler


def without_graphs(sampler: StageSampler, **asked: Any) -> Tensor:
    plain = replace(sampler)
    plain.__dict__["graphs"] = None
    return sample(plain, **asked)


def test_graphed_network_equals_eager_for_every_clip(graphed: StageSampler, recorder: Recorder) -> None:
    for seed in (0, 1):
        assert torch.equal(sample(graphed, seed), without_graphs(graphed, seed=seed))
    assert (recorder.records, recorder.replays) == (2, 8), "one for w = 1, one for both branches; each step is one replay"


def test_graphed_network_records_anew_for_other_shapes_and_modes(graphed: StageSampler, recorder: Recorder) -> None:
    for layout in (CLIPS, FrameLayout(1, 3, 0), JOINT):
        assert torch.equal(sample(graphed, layout=layout), without_graphs(graphed, layout=layout))
        assert len(graphed.graphs._recorded) == MOST_GRAPHS
    assert recorder.records == 6
    graphed.release_graphs()
    assert not graphed.graphs._recorded


def test_graphed_network_records_anew_for_another_dtype_of_the_arithmetic(recorder: Recorder) -> None:
    """Here, no input has another dtype."""
    denoiser, condition = draw_denoiser(replace(CONFIG, super_resolution=False, num_classes=None, text_width=None)), draw_condition(CLIPS)
    graphs, x, timestep = GraphedNetwork(denoiser, recorder), noise(CLIPS.total_frames, 2, 4, 4), torch.tensor([3, 700])
    features = denoiser.prepare(condition)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), torch.no_grad():
            assert torch.equal(graphs(x, timestep, condition, None, features), denoiser(x, timestep, condition))
    assert recorder.records == 2


def test_graphed_network_follows_weights_in_place_and_records_those_that_moved(graphed: StageSampler, recorder: Recorder) -> None:
    before = sample(graphed)
    for p in graphed.denoiser.parameters():
        p.mul_(1.1)
    after = sample(graphed)
    assert recorder.records == 2 and not torch.equal(after, before)
    assert torch.equal(after, without_graphs(graphed))
    graphed.denoiser.final_layer.weight.data = 2 * graphed.denoiser.final_layer.weight
    assert torch.equal(sample(graphed), without_graphs(graphed))
    assert recorder.records == 4


def test_graphed_network_falls_back_with_one_warning(graphed: StageSampler) -> None:
    tried: list[int] = []

    def fail(*_: Any) -> Any:
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    graphed.graphs.record = fail
    with pytest.warns(UserWarning, match="without a CUDA graph, .*: operation not permitted") as warned:
        made = [sample(graphed) for _ in range(2)]
    assert len(warned) == len(tried) == 1
    assert all(torch.equal(one, without_graphs(graphed)) for one in made)


def test_graphed_network_is_not_used_under_autograd(graphed: StageSampler, recorder: Recorder) -> None:
    denoiser = graphed.denoiser.requires_grad_(True)
    x = noise(CLIPS.total_frames, 2, 4, 4)
    SamplingNetwork(denoiser, graphed.graphs)(x, torch.tensor([5, 5]), draw_condition(CLIPS), None).sum().backward()
    assert recorder.records == 0 and denoiser.final_layer.weight.grad is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs exist on a GPU alone")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_graph_equals_eager_and_waits_for_nothing(dtype: torch.dtype) -> None:
    sampler = StageSampler(draw_denoiser().cuda(), DiffusionConfig(), LatentNormalizer(torch.zeros(2), torch.ones(2)))
    plain = replace(sampler)
    plain.__dict__["graphs"] = None
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        for seed in (0, 1):
            condition = draw_condition(CLIPS, seed)
            on_gpu = {item.name: getattr(condition, item.name).cuda() for item in fields(Condition)[1:]}
            condition, x = replace(condition, **on_gpu), noise(CLIPS.total_frames, 2, 4, 4, seed=seed).cuda()
            want = plain.sample(condition, x, 4, Guidance(3.0))
            torch.cuda.synchronize()
            graphs = sampler.graphs._recorded
            assert torch.equal(sampler.sample(condition, x, 4, Guidance(3.0)), want)
            assert len(graphs) == 1 and not sampler.graphs.failed

        def watch() -> None:
            """Allow no wait for the device from the end of the first step to the last."""
            taken.append(1)
            torch.cuda.set_sync_debug_mode("error" if len(taken) < 4 else "default")

        taken: list[int] = []
        try:
            sampler.sample(condition, x, 5, Guidance(3.0, rescale=0.5), 0.5, fresh_noise=lambda: x, each_step=watch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
