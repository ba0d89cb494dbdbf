"""cuDNN takes no part in attention: every module that reaches torch's fused call turns it off first.

The denoiser's calls are in `test_attention.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from walt_pl.metrics.extractors.videomae import VideoMAE
from walt_pl.text.pretrained_encoder import PretrainedTextEncoder
from walt_pl.text.small_encoder import PretrainedTextConfig, SmallTextConfig, SmallTextEncoder


@pytest.fixture(autouse=True)
def cudnn_allowed() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def watch(module: torch.nn.Module) -> list[bool]:
    """Return a list that gets, at each call of the module, whether torch may choose cuDNN."""
    allowed: list[bool] = []
    module.register_forward_pre_hook(lambda *_: allowed.append(torch.backends.cuda.cudnn_sdp_enabled()))
    return allowed


@pytest.mark.parametrize("training", [True, False])
def test_small_text_encoder_never_lets_torch_choose_cudnn(training: bool) -> None:
    encoder = SmallTextEncoder(SmallTextConfig(width=16, depth=1, num_heads=2, vocab_size=48, max_length=12)).train(training)
    allowed = watch(encoder.layers)
    for _ in range(2):
        torch.backends.cuda.enable_cudnn_sdp(True)  # as another library may do
        encoder(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool))
    assert allowed == [False, False], "a step with cuDNN and a step without it break exact resume"


def test_pretrained_text_encoder_never_lets_torch_choose_cudnn(tiny_t5: Path) -> None:
    encoder = PretrainedTextEncoder(PretrainedTextConfig("t5", str(tiny_t5), width=16, dtype="float32"))
    allowed = watch(encoder._library.model)
    torch.backends.cuda.enable_cudnn_sdp(True)
    encoder.encode(["a red circle"])
    assert allowed == [False]


def test_videomae_never_lets_torch_choose_cudnn() -> None:
    extractor: Any = VideoMAE.__new__(VideoMAE)
    extractor.device = torch.device("cpu")

    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return type("Output", (), {"last_hidden_state": x.flatten(2)})

    extractor.network = Network()
    allowed = watch(extractor.network)
    extractor._compute(torch.zeros(1, 3, 2, 4, 4))
    assert allowed == [False]
