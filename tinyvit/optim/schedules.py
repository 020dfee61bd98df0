"""Schedules: the learning rate of a step."""

import math


def cosine_with_warmup(step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float = 0.0) -> float:
    """Linear from 0 to lr over the warm-up, then half a cosine down to min_lr at `total_steps`.

    (Loshchilov and Hutter, SGDR, 2017, equation 5, with one cycle.)
    """
    progress = _progress(step, total_steps, warmup_steps)
    return (
        lr * step / warmup_steps
        if step < warmup_steps
        else min_lr + (lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2
    )


def linear_with_warmup(step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float = 0.0) -> float:
    """Linear from 0 to lr over the warm-up, then linear down to min_lr at `total_steps`."""
    progress = _progress(step, total_steps, warmup_steps)
    return lr * step / warmup_steps if step < warmup_steps else lr + (min_lr - lr) * progress


def constant_with_warmup(step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float = 0.0) -> float:
    """Linear from 0 to lr over the warm-up, then lr."""
    return lr * step / warmup_steps if step < warmup_steps else lr


SCHEDULES = {"cosine": cosine_with_warmup, "linear": linear_with_warmup, "constant": constant_with_warmup}


def _progress(step: int, total_steps: int, warmup_steps: int) -> float:
    """How far `step` is from the end of the warm-up (0) to the last step (1)."""
    return min(max((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0), 1.0)
