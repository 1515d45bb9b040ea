"""Learning rates by hand: 10 steps, 2 of warm-up."""

from collections.abc import Callable

import pytest

from orpo_cli.config.schema import RunConfig
from orpo_cli.training.schedules import lr_factor, warmup_steps

BY_HAND = {
    # warm-up: 1/3, 2/3; then 8 steps from 1 down in eighths
    "linear": [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8],
    # (1 + cos(pi k / 8)) / 2
    "cosine": [1 / 3, 2 / 3, 1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060],
    "constant": [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1],
    # sqrt(2 / (2 + k))
    "inverse_sqrt": [1 / 3, 2 / 3, 1, 0.816497, 0.707107, 0.632456, 0.577350, 0.534522, 0.5, 0.471405],
    # the last 2 of 10 steps fall: 2/2, 1/2 of the rate
    "wsd": [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1 / 2],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_rates_by_hand(name: str, compose_config: Callable[..., RunConfig]) -> None:
    config = compose_config(f"scheduler={name}", "scheduler.warmup_steps=2").scheduler
    assert [lr_factor(config, step, 10) for step in range(1, 11)] == pytest.approx(BY_HAND[name], abs=1e-6)


@pytest.mark.parametrize("name", BY_HAND)
def test_floor(name: str, compose_config: Callable[..., RunConfig]) -> None:
    """min_lr_ratio m maps a factor f after warm-up to m + (1 - m) f."""
    config = compose_config(f"scheduler={name}", "scheduler.warmup_steps=2", "scheduler.min_lr_ratio=0.1").scheduler
    expected = BY_HAND[name][:2] + [0.1 + 0.9 * factor for factor in BY_HAND[name][2:]]
    assert [lr_factor(config, step, 10) for step in range(1, 11)] == pytest.approx(expected, abs=1e-6)


def test_warmup_as_a_ratio(compose_config: Callable[..., RunConfig]) -> None:
    assert warmup_steps(compose_config("scheduler.warmup_ratio=0.1").scheduler, 200) == 20
    assert warmup_steps(compose_config("scheduler.warmup_ratio=null").scheduler, 200) == 0
    assert warmup_steps(compose_config("scheduler.warmup_ratio=0.1", "scheduler.warmup_steps=7").scheduler, 200) == 7


@pytest.mark.parametrize("name", BY_HAND)
def test_runs_shorter_than_their_warmup_have_a_rate(name: str, compose_config: Callable[..., RunConfig]) -> None:
    config = compose_config(f"scheduler={name}", "scheduler.warmup_steps=50").scheduler
    assert [lr_factor(config, step, 3) for step in (1, 2, 3)] == pytest.approx([1 / 51, 2 / 51, 3 / 51])
