"""The condition, noise and schedule that the cascade gives its networks, with networks whose error is known by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.known_network import Call, KnownNetwork
from tests.helpers.tiny_stages import CAPTIONS, LOW_NOISE, MEAN, STD, write_stages
from walt_pl.blocks.frames import FrameLayout
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.diffusion.ddim import Guidance
from walt_pl.diffusion.path import alpha_sigma_like, trailing_timesteps
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig

SIDES = {"base": 4, "sr1": 8}
LAYOUT = FrameLayout(2, 3, 0)
REQUEST = SampleRequest(prompts=CAPTIONS, seeds=[3, 4])


def raw_latents(stage: str) -> Tensor:
    """Return the raw clips [2 8 3 h w] that a stage's network leads to."""
    return STD * torch.randn(2, 8, 3, SIDES[stage], SIDES[stage], generator=torch.Generator().manual_seed(len(stage))) + MEAN


class Known:
    """A cascade whose networks lead to ``raw_latents`` of their stage."""

    def __init__(self, root: Path, **diffusion: Any) -> None:
        self.cascade = Cascade(write_stages(root, **diffusion), dtype=torch.float32)
        self.networks: dict[str, KnownNetwork] = {}
        normalised = diffusion.get("normalize_latents", True)
        for stage, artifact in self.cascade.artifacts.items():
            clips = raw_latents(stage)
            x0 = LAYOUT.join((clips - MEAN) / STD if normalised else clips, clips[:0])
            config = artifact.models["denoiser"].config
            network = KnownNetwork(config, x0, LAYOUT, None, DiffusionConfig(**diffusion).path())
            self.networks[stage] = network
            self.cascade.samplers[stage] = replace(self.cascade.samplers[stage], denoiser=network)  # type: ignore[arg-type]

    def calls(
        self, stage: str, request: SampleRequest = REQUEST, sampling: SamplingConfig = SamplingConfig(steps=2), **more: Any
    ) -> list[Call]:
        self.networks[stage].calls.clear()
        self.cascade.sample_stage(stage, request, sampling, **more)
        return list(self.networks[stage].calls)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return Known(tmp_path_factory.mktemp("known"))


@pytest.mark.parametrize("diffusion", [{}, {"zero_terminal_snr": False}, {"normalize_latents": False}])
@pytest.mark.parametrize("steps", [1, 2])
def test_cascade_samples_with_noise_schedule_and_latent_statistics_of_the_artifact(
    tmp_path: Path, diffusion: dict[str, bool], steps: int
) -> None:
    made = Known(tmp_path, **diffusion).cascade.sample(REQUEST, SamplingConfig(steps=steps))
    for stage, latents in made.items():
        torch.testing.assert_close(latents, raw_latents(stage), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("rescaled", [True, False])
def test_cascade_noises_low_res_at_the_noise_aug_level_of_the_artifact(tmp_path: Path, normalised: bool, rescaled: bool) -> None:
    known = Known(tmp_path, normalize_latents=normalised, zero_terminal_snr=rescaled)
    known.cascade.sample(REQUEST, SamplingConfig(steps=2))
    clean, schedule = known.networks["base"].x0, known.networks["sr1"].schedule
    for call in known.networks["sr1"].calls:
        assert call.condition.low_res is not None and call.condition.noise_aug_level is not None
        assert call.condition.noise_aug_level.tolist() == [LOW_NOISE] * 2
        alpha, sigma = alpha_sigma_like(schedule, torch.tensor([LOW_NOISE]), clean)
        eps = (call.condition.low_res - alpha * clean) / sigma
        assert float(eps.std()) == pytest.approx(1, abs=0.1) and float(eps.mean()) == pytest.approx(0, abs=0.1)
        assert float(torch.corrcoef(eps.view(2, -1))[0, 1].abs()) < 0.15
    assert known.networks["base"].calls[0].condition.low_res is None


@pytest.mark.parametrize("rescaled", [True, False])
def test_cascade_low_res_noise_follows_the_noise_schedule_of_the_artifact(tmp_path: Path, rescaled: bool) -> None:
    """However large the clean latents are, the same noise is left without them."""
    known = Known(tmp_path, zero_terminal_snr=rescaled)
    found = []
    for scale in (1, 1000):
        clean = scale * known.networks["base"].x0
        clips = STD * clean.view(2, 3, 8, 4, 4).transpose(1, 2) + MEAN
        low_res = known.calls("sr1", low_res=clips)[0].condition.low_res
        alpha, sigma = alpha_sigma_like(known.networks["sr1"].schedule, torch.tensor([LOW_NOISE]), clean)
        found.append((low_res - alpha * clean) / sigma)
    torch.testing.assert_close(found[0], found[1], atol=0.05, rtol=0)


def test_cascade_noise_differs_by_stage(known: Known) -> None:
    known.networks["sr1"].calls.clear()
    known.cascade.sample(REQUEST, SamplingConfig(steps=1))
    sampled = known.networks["sr1"].calls[0].x
    second, first = (known.calls("sr1", sampling=SamplingConfig(steps=1), low_res=raw_latents("base"), number=n)[0].x for n in (1, 0))
    assert torch.equal(sampled, second) and not torch.allclose(sampled, first)


def test_cascade_noise_of_a_clip_depends_on_its_seed_stage_and_segment(known: Known) -> None:
    def start(stage: str = "base", request: SampleRequest = REQUEST, number: int = 0) -> Tensor:
        low_res = raw_latents("base") if stage == "sr1" else None
        return known.calls(stage, request, low_res=low_res, number=number)[0].x.view(2, -1)

    noise = start()
    torch.manual_seed(99)
    assert torch.equal(start(), noise)
    assert torch.equal(start(request=replace(REQUEST, seeds=[4, 3])), noise.flip(0))
    others = [start(request=replace(REQUEST, segment=1)), start(number=1), start(request=replace(REQUEST, seeds=[5, 6]))]
    flat = torch.cat([noise, *others])
    assert float((torch.corrcoef(flat) - torch.eye(8)).abs().max()) < 0.25
    assert float(flat.std()) == pytest.approx(1, abs=0.05)


def test_cascade_low_res_noise_differs_from_the_starting_noise(known: Known) -> None:
    call = known.calls("sr1", low_res=torch.full((2, 8, 3, 4, 4), MEAN))[0]
    assert call.condition.low_res is not None
    eps = call.condition.low_res / call.condition.low_res.std()
    start = call.x[:, :, :4, :4]
    assert float(torch.corrcoef(torch.stack([eps.flatten(), start.flatten()]))[0, 1].abs()) < 0.2
    first = call.x.flatten()[: eps.numel()]
    assert float(torch.corrcoef(torch.stack([eps.flatten(), first]))[0, 1].abs()) < 0.2


def test_cascade_self_conditions_on_the_previous_step_at_every_stage(known: Known) -> None:
    known.cascade.sample(REQUEST, SamplingConfig(steps=3, guidance={"base": Guidance(2.0)}))
    base = known.networks["base"].calls[-6:]
    assert base[0].estimate is None and base[1].estimate is None
    for call in base[2:]:
        assert call.estimate is not None
        torch.testing.assert_close(call.estimate, known.networks["base"].x0, atol=1e-3, rtol=1e-3)
    larger = known.networks["sr1"].calls[-3:]
    assert larger[0].estimate is None and larger[1].estimate is not None


@pytest.mark.parametrize("prompts, condition_kept", [(["a bar", CAPTIONS[0]], [True, True]), ([CAPTIONS[1], ""], [True, False])])
def test_cascade_passes_the_text_of_each_prompt_with_its_mask(known: Known, prompts: list[str], condition_kept: list[bool]) -> None:
    assert known.cascade.text is not None
    text, mask = known.cascade.text.encode(prompts)
    assert not mask.all(), "one prompt is padded"
    for call in known.calls("base", replace(REQUEST, prompts=prompts)):
        assert call.condition.text is not None and call.condition.text_mask is not None
        assert torch.equal(call.condition.text, text) and torch.equal(call.condition.text_mask, mask)
        assert call.condition.condition_kept.tolist() == condition_kept, "no words are the null"


def has_context(call: Call) -> bool:
    """Return whether a network is told of context frames. Without them it is given zeros with a zero mask."""
    latents, mask = call.condition.context_latents, call.condition.context_mask
    assert latents is not None and mask is not None
    return bool(latents.any()) or bool(mask.any())


def test_cascade_guidance_drops_text_and_context_and_keeps_low_res(known: Known) -> None:
    sampling = SamplingConfig(steps=1, guidance={"base": Guidance(2.0), "sr1": Guidance(2.0)})
    for stage, low_res in (("base", None), ("sr1", raw_latents("base"))):
        context_latents = {stage: raw_latents(stage)[:, :, :2]}
        given, null = known.calls(stage, replace(REQUEST, context_latents=context_latents), sampling, low_res=low_res)
        assert given.condition.condition_kept.tolist() == [True, True] and given.condition.context_latents is not None
        assert null.condition.condition_kept.tolist() == [False, False] and not has_context(null)
        if low_res is not None:
            for name in ("low_res", "noise_aug_level"):
                assert torch.equal(getattr(null.condition, name), getattr(given.condition, name))


def test_cascade_negative_prompt_replaces_text_and_drops_context(known: Known) -> None:
    request = replace(
        REQUEST, prompts=[CAPTIONS[1], ""], negative_prompt=CAPTIONS[0], context_latents={"base": raw_latents("base")[:, :, :1]}
    )
    given, null = known.calls("base", request, SamplingConfig(steps=1, guidance={"base": Guidance(2.0)}))
    assert known.cascade.text is not None
    text, mask = known.cascade.text.encode([CAPTIONS[0]] * 2)
    assert null.condition.text is not None and torch.equal(null.condition.text, text)
    assert null.condition.text_mask is not None and torch.equal(null.condition.text_mask, mask)
    assert null.condition.condition_kept.tolist() == [True, True] and not has_context(null)
    assert given.condition.condition_kept.tolist() == [True, False], "the clip without words is led away from the negative prompt, too"
    assert given.condition.text is not None and not torch.equal(given.condition.text, text) and given.condition.context_latents is not None


@pytest.mark.parametrize("count", [1, 2])
def test_cascade_context_is_normalised_and_fills_the_first_frames(known: Known, count: int) -> None:
    context_latents = raw_latents("base")[:, :, :count] + 1
    condition = known.calls("base", replace(REQUEST, context_latents={"base": context_latents}))[0].condition
    assert condition.context_latents is not None and condition.context_mask is not None
    mask = condition.context_mask[:, 0, 0, 0].view(2, 3)
    assert mask.tolist() == [[1.0] * count + [0.0] * (3 - count)] * 2
    frames = condition.context_latents.view(2, 3, 8, 4, 4).transpose(1, 2)[:, :, :count]
    torch.testing.assert_close(frames, (context_latents - MEAN) / STD)


def test_cascade_guidance_steps_and_eta_are_as_requested(known: Known) -> None:
    assert len(known.calls("base", sampling=SamplingConfig(steps=3, guidance={"sr1": Guidance(2.0)}))) == 3
    assert len(known.calls("base", sampling=SamplingConfig(steps=3, guidance={"base": Guidance(2.0)}))) == 6
    assert SamplingConfig().steps_of("base") == 50 and len(known.calls("base", sampling=SamplingConfig())) == 50
    plain, ancestral = (known.calls("base", sampling=SamplingConfig(steps=3, eta=eta)) for eta in (0.0, 1.0))
    assert torch.equal(plain[0].x, ancestral[0].x) and not torch.allclose(plain[1].x, ancestral[1].x)


def test_cascade_ancestral_noise_of_a_clip_does_not_depend_on_others(known: Known) -> None:
    sampling = SamplingConfig(steps=3, eta=1.0)
    x = [call.x.view(2, -1) for call in known.calls("base", sampling=sampling)]
    torch.manual_seed(99)
    swapped = [call.x.view(2, -1) for call in known.calls("base", replace(REQUEST, seeds=[4, 3]), sampling)]
    clean = known.networks["base"].x0.view(2, -1)
    schedule = known.networks["base"].schedule
    for level, mine, theirs in zip(trailing_timesteps(schedule, 3), x, swapped, strict=True):
        alpha, sigma = alpha_sigma_like(schedule, torch.tensor([level]), clean)
        torch.testing.assert_close((mine - alpha * clean) / sigma, (theirs - alpha * clean).flip(0) / sigma, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("text_width", [None, 16])
def test_cascade_passes_each_label_and_guidance_drops_it(known: Known, monkeypatch: pytest.MonkeyPatch, text_width: int | None) -> None:
    network = known.networks["base"]
    monkeypatch.setattr(network, "config", replace(network.config, num_classes=3, text_width=text_width))
    request = replace(REQUEST, labels=[1, 0], prompts=CAPTIONS if text_width else ())
    given, null = known.calls("base", request, SamplingConfig(steps=1, guidance={"base": Guidance(2.0)}))
    assert given.condition.labels is not None and given.condition.labels.tolist() == [1, 0]
    assert given.condition.condition_kept.tolist() == [True, True] and null.condition.condition_kept.tolist() == [False, False]
    assert (given.condition.text is None) is (text_width is None)


def test_cascade_encodes_to_the_mean_and_decodes_within_minus_one_and_one(known: Known) -> None:
    clips = torch.rand(2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(known.cascade.encode(clips), known.cascade.vae.encode(clips).mean, atol=1e-4, rtol=1e-4)
        pixels = known.cascade.vae.decode(100 * raw_latents("base"))
    assert float(pixels.abs().max()) > 1
    torch.testing.assert_close(known.cascade.decode(100 * raw_latents("base")), pixels.clamp(-1, 1), atol=1e-4, rtol=1e-4)


def test_sample_request_part_takes_the_values_of_its_clips() -> None:
    context_latents = {"base": torch.arange(3.0)[:, None, None, None, None]}
    part = SampleRequest(labels=[2, 1, 0], prompts=["a", "b", "c"], seeds=[7, 8, 9], context_latents=context_latents).part(1, 2)
    assert (part.labels, part.prompts, part.seeds, part.context_latents["base"].flatten().tolist()) == ([1, 0], ["b", "c"], [8, 9], [1, 2])
