"""Sums in float32 whose rounding errors do not grow with the number of summands.

NumPy sums the axis that lies closest in memory in pairs, and all others one element after the other: the sum of a
million rows has lost the last four of its seven digits, and where 2^24 ones are summed, further ones are lost.
"""

from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

Axis = int | tuple[int, ...] | None

TOGETHER = 64  # elements that are added one after the other


def total(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Return what `x.sum` does; of NumPy's arrays in float32, at most `TOGETHER` numbers are added one by one."""
    if type(x) is not np.ndarray or x.dtype != np.float32 or x.size <= TOGETHER:
        return x.sum(axis=axis, keepdims=keepdims)
    if x.flags.forc if axis is None else axis == -1 and x.flags.c_contiguous:
        return x.sum(axis=axis, keepdims=keepdims)
    axes = tuple(range(x.ndim)) if axis is None else normalize_axis_tuple(axis, x.ndim)
    in_turn = 1
    for a in axes:
        in_turn *= 1 if _is_summed_in_pairs(x, a) else x.shape[a]
    if in_turn <= TOGETHER:
        return x.sum(axis=axis, keepdims=keepdims)
    for a in sorted(axes, key=lambda a: abs(x.strides[a])):
        x = _total_along(x, a)
    return x if keepdims else x.reshape([n for a, n in enumerate(x.shape) if a not in axes])[()]


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Return what `x.mean` does, from the sum of `total`."""
    if type(x) is not np.ndarray or not (x.dtype == np.float32 or (x.size == 0 and x.dtype.kind == "f")):
        return x.mean(axis=axis, keepdims=keepdims)
    summed = total(x, axis, keepdims)  # NumPy's own mean of nothing warns by other means than `errstate`
    return summed / x.dtype.type(x.size // summed.size if summed.size else 1)


def sum_to_shape(array: Any, shape: tuple[int, ...]) -> Any:
    """Sum `array` over the axes along which an array of this shape was broadcast to that of `array`."""
    array = total(array, axis=tuple(range(array.ndim - len(shape))))
    return total(array, axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def running(x: Any, axis: int) -> Any:
    """Return what `x.cumsum` does; float32 is summed in float64."""
    return x.cumsum(axis=axis, dtype=np.float64).astype(x.dtype) if x.dtype == np.float32 else x.cumsum(axis=axis)


def add_at(out: np.ndarray, index: Any, x: np.ndarray) -> None:
    """Do what `numpy.add.at` does; float32 is summed in float64."""
    if out.dtype != np.float32:
        np.add.at(out, index, x)
        return
    sums = out.astype(np.float64)
    np.add.at(sums, index, x.astype(np.float64))
    out[...] = sums


def _is_summed_in_pairs(x: np.ndarray, a: int) -> bool:
    """Return whether NumPy goes along this axis in its innermost loop."""
    repeats = any(step == 0 and n > 1 for step, n in zip(x.strides, x.shape, strict=True))
    return x.strides[a] == x.itemsize and not repeats


def _total_along(x: np.ndarray, a: int) -> np.ndarray:
    """Return the sum over one axis, which is kept with length 1."""
    if _is_summed_in_pairs(x, a):
        return np.sum(x, axis=a, keepdims=True)
    before = (slice(None),) * a
    while (n := x.shape[a]) > TOGETHER:
        blocks = n // TOGETHER
        whole = x[(*before, slice(blocks * TOGETHER))]
        sums = whole.reshape(*x.shape[:a], blocks, TOGETHER, *x.shape[a + 1 :]).sum(axis=a + 1)
        if blocks * TOGETHER < n:
            sums[(*before, -1)] += x[(*before, slice(blocks * TOGETHER, None))].sum(axis=a)
        x = sums
    return np.sum(x, axis=a, keepdims=True)
