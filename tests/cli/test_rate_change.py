"""The learning rate where a training goes on with another horizon."""

from typing import Any

import pytest
import torch

from stages.optimisation import LRSchedule, learning_rate
from walt_pl.cli.rate_change import describe_rate_change


def config(lr_schedule: LRSchedule, max_steps: int, lr: float = 0.001) -> dict[str, Any]:
    model = {"lr_schedule": lr_schedule, "warmup_steps": 2, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": lr}}}
    return {"model": {"init_args": model}, "trainer": {"max_steps": max_steps}}


def rate(lr_schedule: LRSchedule, max_steps: int, step: int) -> str:
    """Return the rate that the optimiser has for a step, counted from 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.001)
    schedule = learning_rate(optimizer, 2, max_steps, lr_schedule)
    for _ in range(step - 1):
        optimizer.step()
        schedule.step()
    return f"{schedule.get_last_lr()[0]:.3g}"


def test_describe_rate_change_of_a_cosine_that_had_ended_has_the_rates_of_the_optimiser() -> None:
    last, first = rate("cosine", 12, 12), rate("cosine", 24, 13)
    assert float(first) > 20 * float(last)
    assert describe_rate_change(config("cosine", 12), config("cosine", 24), 12) == (
        f"learning rate: {last} at step 12, {first} at step 13: the cosine over 12 steps had ended; the cosine over 24 steps falls to 0 "
        "from here (--model.lr_schedule constant stays at 0.001)"
    )


def test_describe_rate_change_names_the_constant_that_was_chosen() -> None:
    assert describe_rate_change(config("cosine", 12), config("constant", 24, 0.0002), 12) == (
        f"learning rate: {rate('cosine', 12, 12)} at step 12, 0.0002 at step 13 and from there on (constant; --model.optimizer.lr sets "
        "another)"
    )


def test_describe_rate_change_of_a_constant_before_a_cosine_does_not_speak_of_an_end() -> None:
    said = describe_rate_change(config("constant", 12), config("cosine", 24), 12)
    assert said.startswith(f"learning rate: 0.001 at step 12, {rate('cosine', 24, 13)} at step 13: the cosine over 24 steps")


@pytest.mark.parametrize("before", [config("constant", 12), {}, {"model": {"init_args": {"optimizer": {"init_args": {}}}}}])
def test_describe_rate_change_is_silent_where_nothing_changes_or_is_known(before: dict[str, Any]) -> None:
    assert describe_rate_change(before, config("constant", 24), 12) == ""
