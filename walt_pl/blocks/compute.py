"""Which number format to compute in on a device."""

import torch


def compute_dtype(device: torch.device | str) -> torch.dtype:
    """Says in which dtype autocast should run on `device`: bfloat16 where the hardware has it, else float32.

    On a CPU this asks for AMX-BF16 or AVX512-BF16 themselves. oneDNN's own test is also true where it only emulates
    bfloat16, which is slower than float32.

    Args:
        device: Where the model runs.

    Returns:
        `torch.bfloat16` or `torch.float32`.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        has = torch.cpu.get_capabilities()
        native = bool(has.get("amx_bf16") or has.get("avx512_bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32
