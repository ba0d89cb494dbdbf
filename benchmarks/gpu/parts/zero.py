"""Training of the L model with 4 layers under ZeRO 1, 2 and 3 of DeepSpeed, on one rank (NCCL on a GPU)."""

from benchmarks.gpu.bench import Bench, Figure, Missing, require

QUICK = "left out of quick runs: it takes 20 s, and tests/training/strategies train under ZeRO on CPUs"


def measure(bench: Bench) -> None:
    for stage in (1, 2, 3):
        bench.attempt(f"ZeRO {stage}", lambda stage=stage: _measure(bench, stage))


def _measure(bench: Bench, stage: int) -> dict[str, Figure]:
    require("deepspeed")
    if bench.quick:
        raise Missing(QUICK)
    from benchmarks.gpu.zero_training import train  # Lightning and DeepSpeed take seconds to import

    return train(bench, stage)
