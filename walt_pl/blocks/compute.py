"""Which number format to compute in on a device."""

import torch

PRECISIONS = {
    **{name: name for name in ("32-true", "bf16-mixed", "16-mixed")},
    **{"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"},
}
"""Precisions of Lightning's Trainer that a stage trains in, and its short names for them."""


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


def normalize_precision(given: str | int) -> str:
    """Return Lightning's full name of a precision whose weights are float32.

    The weights that the optimiser moves, their averages and the artifacts are float32. In 7 bits of bfloat16 most updates of a trained
    weight are rounded away. Of float64, each validation would leave float32, since the averages take the weights' place there.

    Args:
        given: value of trainer.precision, as Lightning takes it.

    Raises:
        ValueError: the weights would not be float32.
    """
    name = str(given)
    if name in PRECISIONS:
        return PRECISIONS[name]
    kept, type_next = "bfloat16", "bf16-mixed (float32 weights, bfloat16 products; 16-mixed on GPUs without bfloat16)"
    if name.startswith("64"):
        kept, type_next = "float64", "32-true"
    elif name in ("16-true", "transformer-engine-float16"):
        kept = "float16"
    raise ValueError(
        f"trainer.precision: {name} keeps the weights in {kept}; the optimiser, the averages and the artifacts want them in float32: "
        f"type --trainer.precision {type_next}"
    )
