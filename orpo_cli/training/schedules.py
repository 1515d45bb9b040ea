"""Compute the learning rate as a pure function of the step; a resumed run needs no scheduler state."""

import math

from orpo_cli.config.optimization import SchedulerConfig, WsdConfig


def warmup_steps(config: SchedulerConfig, total_steps: int) -> int:
    """Return the number of warm-up steps: `warmup_steps` if set, otherwise the share `warmup_ratio` of all steps."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return round((config.warmup_ratio or 0.0) * total_steps)


def lr_factor(config: SchedulerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of `step` (from 1) as a share of the highest.

    During a warm-up of w steps it is step / (w + 1), so that no step is wasted on a rate of 0.
    """
    warmup = warmup_steps(config, total_steps)
    done = step - 1
    if done < warmup:
        return step / (warmup + 1)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * _after_warmup(
        config, done - warmup, total_steps - warmup, warmup
    )


def _after_warmup(config: SchedulerConfig, done: int, steps: int, warmup: int) -> float:
    """Return a factor that falls from 1 towards 0 over the steps after warm-up.

    Args:
        done: the number of steps since the end of the warm-up.
        steps: the number of all steps after it.
    """
    progress = min(done / max(steps, 1), 1.0)
    if isinstance(config, WsdConfig):
        decay = config.decay_ratio * (steps + warmup)
        return 1.0 if decay == 0 else min(1.0, max(steps - done, 0) / decay)
    shapes = {
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "constant": 1.0,
        "inverse_sqrt": math.sqrt((warmup or INVERSE_SQRT_TIMESCALE) / ((warmup or INVERSE_SQRT_TIMESCALE) + done)),
    }
    return shapes[config.name]


INVERSE_SQRT_TIMESCALE = 10_000
"""Steps after which the rate has fallen to 0.71 if there is no warm-up to measure by, as in transformers."""
