"""Copies between host and device."""

import pytest
import torch

from walt_pl.blocks.transfer import HostCopy, to_device


def test_to_device_on_a_cpu_copies_nothing() -> None:
    x = torch.arange(3)
    assert to_device(x, "cpu") is x and to_device(x, torch.device("meta")).device.type == "meta"


def test_host_copy_keeps_the_value_of_its_moment() -> None:
    x = torch.tensor([1.0, 2.0])
    copy = HostCopy(x)
    x.zero_()
    assert copy.read().tolist() == [1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
def test_copies_do_not_wait_for_the_gpu() -> None:
    x = torch.arange(1000.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = to_device(x, "cuda")
        copy = HostCopy(on_gpu)
        on_gpu.zero_()
        assert torch.equal(copy.read(), x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
