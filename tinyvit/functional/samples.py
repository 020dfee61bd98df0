"""Sample inputs of operations: `Op.samples` yields them; tests, gradient checks and study pages run them."""

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sample:
    """Arguments of one `Op.apply`: float64 arrays (or None) for the differentiable inputs, and keyword parameters."""

    inputs: tuple[Any, ...]
    params: dict[str, Any] = field(default_factory=dict)


def sample(*shapes: tuple[int, ...] | None, low: float | None = None, high: float = 2.0, **params: Any) -> Sample:
    """A `Sample` of arrays of these shapes: standard normal, or uniform in [low, high) where `low` is given.

    The values depend on the arguments alone, and no two elements of an array come closer to each other or to zero than
    1e-4, so that finite differences stay clear of the kinks of abs, max and the like.
    """
    rng = np.random.default_rng(zlib.crc32(repr((shapes, low, high, sorted(params))).encode()))
    return Sample(tuple(None if s is None else _spread(rng, s, low, high) for s in shapes), params)


def _spread(rng: np.random.Generator, shape: tuple[int, ...], low: float | None, high: float) -> np.ndarray:
    while True:
        x = rng.standard_normal(shape) if low is None else rng.uniform(low, high, shape)
        gaps = np.diff(np.sort(np.append(x.ravel(), 0.0)))
        if gaps.size == 0 or gaps.min() > 1e-4:
            return x
