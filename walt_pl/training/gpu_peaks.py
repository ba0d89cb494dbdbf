"""Peak rate of a device, for the share of it that a training uses (MFU: model FLOPs utilisation, PaLM, arXiv 2204.02311, appendix B)."""

import re
import time
from functools import lru_cache

import torch

# Lightning has a table, too (lightning.fabric.utilities.throughput). It is not used: for A40, A6000 and RTX cards it gives the rate without
# tensor cores, and for H100 NVL and H200 the rate with sparsity.
PEAKS = (
    # V100 has no bfloat16: its float16 rate stands in its place. https://www.nvidia.com/en-us/data-center/v100/
    (r"V100S", 130.0),
    (r"V100-PCIE|V100-FHHL", 112.0),
    (r"V100", 125.0),
    # https://www.nvidia.com/en-us/data-center/a100/
    (r"A100", 312.0),
    # H100 and H200 data sheets, half of the rates "with sparsity": https://www.nvidia.com/en-us/data-center/h100/, .../h200/
    (r"H100 PCIe", 756.5),
    (r"H100 NVL|H200 NVL", 835.5),
    (r"H100|H200|GH200", 989.5),
    # H20: from tables of third parties, which agree; NVIDIA's product pages do not list the card.
    (r"H20", 148.0),
    # Blackwell architecture brief, dense: https://resources.nvidia.com/en-us-blackwell-architecture
    (r"GB200", 2500.0),
    (r"B200", 2250.0),
    # https://www.nvidia.com/en-us/data-center/l40s/, .../l4/, .../products/a10-gpu/, .../a40/
    (r"L40S", 362.0),
    (r"L4", 121.0),
    (r"A10", 125.0),
    (r"A40", 149.7),
    # Ampere GA102, Ada and RTX Blackwell whitepapers: bfloat16 with float32 accumulation, dense.
    (r"RTX A6000", 154.8),
    (r"RTX 3090", 71.0),
    (r"RTX 4090", 165.2),
    (r"RTX 5090", 209.5),
    # AMD's data sheets. PyTorch sees each half of an MI250X as a device: half of 383. https://www.amd.com/en/products/accelerators/instinct.html
    (r"MI250X", 191.5),
    (r"MI300X", 1307.4),
)
"""Pattern of a device's name, and its dense bfloat16 rate in TFLOP/s; the first that matches counts."""
NOT_WHOLE = re.compile(r"\b(?:MIG|Laptop|Max-Q|Ti|SUPER|D)\b")
"""Words of names of other cards: parts of a card, and relatives with other rates."""
SECONDS = 0.2
"""Most time for the products of one size."""
SIZES = (256, 512, 1024, 2048, 4096, 8192)


def table_peak(name: str) -> float | None:
    """Return the dense bfloat16 rate of a card in FLOP/s; None for a card that is not in the table.

    Args:
        name: as torch.cuda.get_device_name gives it.
    """
    if NOT_WHOLE.search(name):
        return None
    return next((1e12 * rate for pattern, rate in PEAKS if re.search(rf"\b(?:{pattern})\b", name)), None)


@lru_cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the rate in FLOP/s that a device could reach in matrix products.

    It is the table's dense bfloat16 rate for a known GPU, else the best of a few measured products. They are taken once for each process.

    Args:
        device: device of the training.
        dtype: dtype of the training's matrix products; the products that are measured have it.
    """
    known = table_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return known if known is not None else measure_gemm(device, dtype)


def measure_gemm(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best rate of square matrix products in FLOP/s. It takes less than a second, and draws no random numbers."""
    best = 0.0
    for size in SIZES:
        a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
        _seconds(a, b)  # the first product of a size loads its kernel
        seconds = min(_seconds(a, b) for _ in range(3))
        best = max(best, 2 * size**3 / seconds)
        # Four products of twice the size take 32 times as long as one of this size.
        if 32 * seconds > SECONDS:
            break
    return best


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the seconds of one matrix product."""
    began = time.perf_counter()
    torch.mm(a, b)
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - began
