"""Learning-rate schedules: functions that return the learning rate of a step.

They reach `min_lr` at `total_steps`. So that the last step learns too, count the steps 1 ... n and set `total_steps` to
n + 1, as training runs do. Step 1 then has the full rate if `warmup_steps` is 1, and a little less if it is 0.

All of them raise TypeError for an argument that is no number, and ValueError for one that is negative or not finite.
"""

import math
from collections.abc import Callable
from typing import Any

from ..backend.checks import finite_number


def cosine_with_warmup(step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float = 0.0) -> float:
    """Increase linearly from 0 to lr in the warm-up, then decrease by half a cosine to min_lr at `total_steps`.

    (Loshchilov and Hutter, SGDR, 2017, equation 5, with one cycle.)
    """
    _check("cosine_with_warmup", step, total_steps, warmup_steps, lr, min_lr)
    if step < warmup_steps:
        return lr * step / warmup_steps
    progress = _progress(step, total_steps, warmup_steps)
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


def linear_with_warmup(step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float = 0.0) -> float:
    """Increase linearly from 0 to lr in the warm-up, then decrease linearly to min_lr at `total_steps`."""
    _check("linear_with_warmup", step, total_steps, warmup_steps, lr, min_lr)
    if step < warmup_steps:
        return lr * step / warmup_steps
    return lr + (min_lr - lr) * _progress(step, total_steps, warmup_steps)


def constant_with_warmup(step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float = 0.0) -> float:
    """Increase linearly from 0 to lr in the warm-up, then stay at lr."""
    _check("constant_with_warmup", step, total_steps, warmup_steps, lr, min_lr)
    return lr * step / warmup_steps if step < warmup_steps else lr


def constant_with_cooldown(
    step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float = 0.0, cooldown: float = 0.2
) -> float:
    """Increase linearly from 0 to lr in the warm-up, stay there, and decrease linearly to min_lr at `total_steps`.

    `cooldown` is the share of the steps in which it decreases. A run may go on from where it stood at lr, for any
    number of steps. (Zhai et al., Scaling vision transformers, 2022, section 3.5; Haegele et al., Scaling laws and
    compute-optimal training beyond fixed training durations, 2024.)
    """
    _check("constant_with_cooldown", step, total_steps, warmup_steps, lr, min_lr)
    finite_number("constant_with_cooldown: cooldown", cooldown, 0)
    if step < warmup_steps:
        return lr * step / warmup_steps
    begin = max(warmup_steps, total_steps - cooldown * total_steps)
    progress = min(max((step - begin) / max(total_steps - begin, 1), 0.0), 1.0)
    return lr + (min_lr - lr) * progress


SCHEDULES: dict[str, Callable[..., float]] = {
    "cosine": cosine_with_warmup,
    "linear": linear_with_warmup,
    "constant": constant_with_warmup,
    "cooldown": constant_with_cooldown,
}


def _check(name: str, *values: Any) -> None:
    """Raise TypeError or ValueError, which names the argument, for one that is no number, negative or not finite."""
    for each, value in zip(("step", "total_steps", "warmup_steps", "lr", "min_lr"), values, strict=True):
        finite_number(f"{name}: {each}", value, 0)


def _progress(step: int, total_steps: int, warmup_steps: int) -> float:
    """Return how far `step` is between the end of the warm-up (0) and the last step (1)."""
    return min(max((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0), 1.0)
