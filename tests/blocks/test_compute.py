"""The choice of number format."""

import pytest
import torch

from walt_pl.blocks.compute import compute_dtype


@pytest.mark.parametrize(
    ("has", "wanted"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_compute_dtype_is_bfloat16_only_where_the_processor_has_it(
    has: dict[str, bool], wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert compute_dtype("cpu") is wanted
