"""Number formats to compute in: autocast's dtype and the Trainer's precision."""

from typing import Literal

import torch

Float32Precision = Literal["highest", "high", "medium"]
"""Arithmetic of float32 products on GPUs, by torch's names."""
PRECISIONS = {
    **{name: name for name in ("32-true", "bf16-mixed", "16-mixed")},
    **{"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"},
}
"""Precisions of Lightning's Trainer that a stage can train in, and Lightning's short names of them."""


def compute_dtype(device: torch.device | str) -> torch.dtype:
    """Return the dtype that autocast should use on `device`: bfloat16 where the hardware has it, else float32.

    On a CPU this checks for AMX-BF16 and AVX512-BF16 directly. oneDNN's own test is also true where it only emulates bfloat16, and
    emulation is slower than float32.

    Args:
        device: device of the model.

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


def set_float32_precision(precision: Float32Precision) -> None:
    """Set the arithmetic of float32 matrix products and convolutions on GPUs. Without a GPU nothing changes: CPUs compute as before.

    torch's own default is TF32 in convolutions, and full float32 in matrix products.

    Args:
        precision: `highest` is float32, `high` TF32 (10 bits of mantissa, sums in float32), `medium` bfloat16 in matrix products.
    """
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision(precision)
        # The older of torch's two settings, as the line above: torch refuses to read one where only the other was set.
        torch.backends.cudnn.allow_tf32 = precision != "highest"


def normalize_precision(given: str | int) -> str:
    """Return Lightning's full name of a precision whose weights are float32.

    The optimiser's weights, their averages and the artifacts are float32. In the 7 bits of bfloat16, most updates of a trained weight
    are rounded away. With float64, each validation would leave float32 weights, since the averages replace the weights there.

    Args:
        given: value of trainer.precision, in any form that Lightning accepts.

    Returns:
        One of the values of `PRECISIONS`.

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
