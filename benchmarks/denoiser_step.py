"""One training step (forward and backward) of the UCF-101 L denoiser, with windows and with full attention, alternately in one run.

    python -m benchmarks.denoiser_step [--rounds 3] [--batch 1]

The paper (Table 3): windows of 5 x 8 x 8 make 1.67 times the steps of full attention on its hardware (2.00 and 1.20 a second).
"""

import argparse
import json
import os
import time

import torch

from walt_pl.blocks.compute import compute_dtype
from walt_pl.blocks.frames import FrameLayout
from walt_pl.diffusion.condition import Condition
from walt_pl.evaluation.program import machine
from walt_pl.models.denoiser import Denoiser, DenoiserConfig

WINDOWS = {"windows": (5, 8, 8), "full": (5, 16, 16)}


def step(denoiser: Denoiser, x: torch.Tensor, condition: Condition, dtype: torch.dtype) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        loss = denoiser(x, condition.labels, condition, x).square().mean()
    loss.backward()
    denoiser.zero_grad(set_to_none=True)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Print the seconds of each round and the ratio of the best ones, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = compute_dtype(device)
    torch.manual_seed(0)
    models = {
        name: Denoiser(DenoiserConfig(num_classes=101, window_size=window)).to(device)  # type: ignore[arg-type]
        for name, window in WINDOWS.items()
    }
    layout = FrameLayout(arguments.batch, 5, 0)
    labels = torch.zeros(arguments.batch, dtype=torch.int64, device=device)
    condition = Condition(layout, torch.ones_like(labels, dtype=torch.bool), labels=labels)
    x = torch.randn(layout.total_frames, 8, 16, 16, device=device)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(arguments.rounds + 1):
        for name, model in models.items():
            spent = step(model, x, condition, dtype)
            if number:  # the first round warms up
                seconds[name].append(round(spent, 2))
    figures = {
        "machine": machine(),
        "dtype": str(dtype).removeprefix("torch."),
        "batch": arguments.batch,
        "parameters": sum(p.numel() for p in models["windows"].parameters()),
        "seconds": seconds,
        "full_over_windows": round(min(seconds["full"]) / min(seconds["windows"]), 2),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
