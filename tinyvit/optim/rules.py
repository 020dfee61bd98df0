"""The updates of single parameters, which change their arrays in place."""

from typing import Any

import numpy as np

from ..backend import Array, widened
from .bundle import UPDATES

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of Jordan's quintic, which raises small singular values fastest


def adam_update(p: Array, g: Array, kept: dict[str, Array], group: dict[str, Any], decoupled: bool) -> None:
    """Update p by its gradient g with the moments in `kept`, see `Adam`; `decoupled` as in `AdamW`."""
    lr, (b1, b2), decay = group["lr"], group["betas"], group["weight_decay"]
    m, v = kept["m"], kept["v"]
    kept[UPDATES] += 1
    t = int(kept[UPDATES])
    if decay and decoupled:
        p *= 1 - lr * decay
    elif decay:
        g = g + decay * p
    m *= b1
    m += (1 - b1) * g
    v *= b2
    v += (1 - b2) * (g * g)
    mhat = m / (1 - b1**t)
    vhat = v / (1 - b2**t)
    p -= lr * mhat / (np.sqrt(vhat) + group["eps"])


def orthogonalized(matrices: Array, steps: int) -> Array:
    """Bring the singular values of each of `matrices` (..., rows, columns) near 1, by a Newton-Schulz iteration.

    X <- a X + (b A + c A^2) X with A = X X^T, from X = G / |G|. After five steps singular values that were not tiny lie
    between 0.7 and 1.2. (Jordan et al., Muon, 2024.)
    """
    a, b, c = _NEWTON_SCHULZ
    x = widened(matrices)
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.swapaxes(-1, -2) if is_tall else x
    x = x / (np.sqrt((x * x).sum(axis=(-2, -1), keepdims=True)) + 1e-7)
    for _ in range(steps):
        square = x @ x.swapaxes(-1, -2)
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.swapaxes(-1, -2) if is_tall else x
