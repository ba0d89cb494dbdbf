"""The choice of number format."""

import pytest
import torch

from walt_pl.blocks.compute import Float32Precision, compute_dtype, set_float32_precision


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


@pytest.mark.parametrize(
    ("precision", "products", "convolutions"), [("highest", "ieee", False), ("high", "tf32", True), ("medium", None, True)]
)
def test_float32_precision_covers_products_and_convolutions_on_gpus_only(
    precision: Float32Precision, products: str | None, convolutions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        set_float32_precision(precision)
        assert torch.get_float32_matmul_precision() == before, "without a GPU"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        set_float32_precision(precision)
        assert torch.get_float32_matmul_precision() == precision
        assert products in (None, torch.backends.cuda.matmul.fp32_precision)
        assert torch.backends.cudnn.allow_tf32 == convolutions
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == convolutions
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = True
