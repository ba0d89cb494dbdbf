"""Peak rates of devices: the table by names that PyTorch reports, and the measured matrix product."""

import time

import pytest
import torch

from walt_pl.training.gpu_peaks import measure_gemm, peak_flops, table_peak


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H20", 148.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A40", 149.7),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla V100-SXM2-32GB", 125.0),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_table_peak_knows_the_dense_bfloat16_rate_of_a_card(name: str, tflops: float) -> None:
    assert table_peak(name) == pytest.approx(1e12 * tflops)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A10G", "NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"],
)
def test_table_peak_gives_no_rate_of_a_relative(name: str) -> None:
    assert table_peak(name) is None


def test_peak_flops_of_a_cpu_are_measured_once_in_under_a_second() -> None:
    peak_flops.cache_clear()
    state, began = torch.get_rng_state(), time.process_time()
    first = peak_flops(torch.device("cpu"), torch.float32)
    assert time.process_time() - began < 1 and torch.equal(torch.get_rng_state(), state)
    assert 1e9 < first == peak_flops(torch.device("cpu"), torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures matrix products of a GPU, and this machine has none")
def test_measure_gemm_of_a_known_gpu_is_below_its_table_peak() -> None:
    known = table_peak(torch.cuda.get_device_name())
    if known is None:
        pytest.skip("the table has no rate of this card to compare with")
    assert 0.4 * known < measure_gemm(torch.device("cuda"), torch.bfloat16) < 1.05 * known
