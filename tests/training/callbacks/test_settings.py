"""Settings of callbacks out of their range are refused before training."""

from typing import Any

import pytest

from walt_pl.training.callbacks.ema import EMA
from walt_pl.training.callbacks.previews import Previews
from walt_pl.training.callbacks.throughput import Throughput


@pytest.mark.parametrize(
    ("callback", "settings", "said"),
    [
        (EMA, {"decay": 1.0}, r"ema\.decay must be at least 0 and less than 1, got 1\.0"),
        (EMA, {"warmup": 0}, r"ema\.warmup must be at least 1, got 0"),
        (Previews, {"every_n_validations": -1}, r"previews\.every_n_validations must be at least 0, got -1"),
        (Throughput, {"every_n_steps": 0}, r"throughput\.every_n_steps must be at least 1, got 0"),
    ],
)
def test_callback_refuses_a_setting_out_of_range(callback: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        callback(**settings)
